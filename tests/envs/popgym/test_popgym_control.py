"""POPGym's control beside the package `popgym`: the same states and noise, the same actions, step by step."""

from __future__ import annotations

import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
from faces import make, make_rows

from palimpsest import envs
from palimpsest.envs.actions import random_actions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own spaces, and of pygame, which it imports
    import popgym.envs

IDS = [id for id in envs.ids() if re.search("POPGym-.*(CartPole|Pendulum)", id)]
POLES, RODS = [id for id in IDS if "CartPole" in id], [id for id in IDS if "Pendulum" in id]


def theirs(id):
    game, level = re.fullmatch(r"Palimpsest/POPGym-(\w+)-(\w+)-v0", id).groups()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(popgym.envs, f"{game}{level}")()


class Told:
    """The generator of the package's environment: it gives the start and the noise of our world."""

    def __init__(self, world):
        self.world = world

    def uniform(self, **bounds):
        return motion(self.world)

    def normal(self, mean, sigma):
        assert mean == 0
        assert (sigma == self.world.rules.sigma).all()
        return self.world.state.noise[0].astype(np.float64)


def motion(world):
    state = world.state
    return state.motion[0].copy() if hasattr(state, "motion") else np.array([state.angle[0], state.turning[0]])


def test_there_are_fifteen():
    assert len(POLES) == 9
    assert len(RODS) == 6


@pytest.mark.parametrize("id", IDS)
def test_equals_the_package(id):
    """From copied states; to the last bit where numpy's and numba's sine and cosine agree, but for a squared torque."""
    world, their_env, rng = make(id), theirs(id), np.random.default_rng(0)
    their_env.reset(seed=0)
    their_env.np_random = Told(world)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert world.observation_space == their_env.observation_space
    assert world.action_space == their_env.action_space
    assert world.rules.limit == their_env.max_episode_length
    ends, steps, totals = set(), 0, []
    for seed in range(16):
        skill, total, over = (0.0, 1.0, 0.9, 0.5)[seed % 4], 0.0, False
        obs, _ = world.reset(seed=seed)
        np.testing.assert_allclose(obs, their_env.reset()[0], rtol=1e-6, atol=1e-7)
        while not over:
            their_env.unwrapped.state = motion(world)
            action = world.expert_action() if rng.random() < skill else random_actions(world.action_space, rng, 1)[0]
            obs, reward, terminated, truncated, info = world.step(action)
            their_obs, their_reward, their_terminated, their_truncated, _ = their_env.step(action)
            np.testing.assert_allclose(obs, their_obs, rtol=1e-6, atol=1e-7)
            assert reward == pytest.approx(float(their_reward), rel=1e-12, abs=1e-11)
            assert (terminated, truncated) == (their_terminated, their_truncated and not their_terminated)
            np.testing.assert_allclose(motion(world), their_env.unwrapped.state, rtol=1e-13, atol=1e-15)
            total, steps, over = total + reward, steps + 1, terminated or truncated
        ends.add((terminated, truncated))
        assert info.keys() == {"success", "is_success"}
        assert -1 <= total <= 1 + 1e-9
        totals.append(total)
    assert steps >= 1000
    assert ends == ({(True, False), (False, True)} if id in POLES else {(False, True)})
    assert max(totals) == pytest.approx(1) or id in RODS


@pytest.mark.parametrize("id", IDS)
def test_the_expert(id):
    """Every pole stands to the end, and rods come up from wherever they begin."""
    vector = make_rows(id, 512)
    vector.reset(seed=0)
    total = np.zeros(512)
    for _ in range(vector.world.rules.limit):
        _, reward, _, truncated, infos = vector.step(vector.expert_action())
        total += reward
    assert truncated.all()
    assert infos["final_info"]["success"].mean() >= vector.world.expert_success
    assert total.mean() == pytest.approx(1) if id in POLES else total.mean() > 0.8


@pytest.mark.parametrize("id", [id for id in POLES if "Velocity" in id])
def test_velocities_alone_carry_a_player_without_memory_for_a_while(id):
    vector, rng = make_rows(id, 1024), np.random.default_rng(5)
    obs, _ = vector.reset(seed=0)
    falls, noise = np.zeros(1024, bool), 0.02 if "Hard" in id else 0
    for _ in range(vector.world.rules.limit):
        obs, _, terminated, *_ = vector.step((obs @ [0.1, 1] + noise * rng.logistic(size=1024) > 0).astype(int))
        falls |= terminated
    assert 1 - falls.mean() == pytest.approx(vector.chance_level(), abs=0.06)


@pytest.mark.parametrize("id", RODS)
def test_springs_without_damping(id):
    vector = make_rows(id, 2048)
    obs, _ = vector.reset(seed=0)
    for _ in range(vector.world.rules.limit):
        obs, *_, infos = vector.step((-12 * obs[:, 1:]).astype(np.float32))
    assert infos["final_info"]["success"].mean() == pytest.approx(vector.chance_level(), abs=0.015)


def test_the_first_observation_of_velocities_shows_positions():
    vector = make_rows("Palimpsest/POPGym-VelocityOnlyCartPole-Easy-v0", 8)
    obs, _ = vector.reset(seed=0)
    state = vector.hidden_state()["motion"].astype(np.float32)
    assert (obs == state[:, [0, 2]]).all()
    obs, *_ = vector.step(np.ones(8, int))
    assert (obs == vector.hidden_state()["motion"].astype(np.float32)[:, [1, 3]]).all()


@pytest.mark.parametrize("id", [id for id in IDS if "Noisy" in id])
def test_noise_is_normal_and_fresh(id):
    vector = make_rows(id, 2048)
    vector.reset(seed=0)
    sigma, drawn = vector.world.rules.sigma, [vector.hidden_state()["noise"]]
    for _ in range(20):
        vector.step(vector.expert_action())
        drawn.append(vector.hidden_state()["noise"])
    noise = np.stack(drawn).astype(np.float64) / sigma
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert (noise**3).mean() == pytest.approx(0, abs=0.06)
    assert (noise**4).mean() == pytest.approx(3, abs=0.15)
    assert (noise[..., 0] * noise[..., 1]).mean() == pytest.approx(0, abs=0.02)
    assert (noise[1:] * noise[:-1]).mean() == pytest.approx(0, abs=0.02)
    assert abs(np.corrcoef(noise[0, 1:, 0], noise[0, :-1, 0])[0, 1]) < 0.08
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_noise_is_for_positions():
    with pytest.raises(ValueError, match=r"noise must be a number, 0 to 0; got 0\.1"):
        gym.make("Palimpsest/POPGym-VelocityOnlyCartPole-Easy-v0", noise=0.1)


def test_what_few_steps_allow_is_not_declared():
    """Where a player that looks at nothing survives, and where no expert gets the rod up in time."""
    rng = np.random.default_rng(0)
    for limit, survives in ((8, 0.9), (199, None), (200, 0)):
        vector = make_rows("Palimpsest/POPGym-PositionOnlyCartPole-Easy-v0", 512, limit=limit)
        vector.reset(seed=0)
        fell = np.zeros(512, bool)
        for _ in range(limit):
            fell |= vector.step(rng.integers(2, size=512))[2]
        assert survives in (0, None) or (~fell).mean() > survives
        assert vector.chance_level() == (0 if limit == 200 else None)
    rods = {limit: make("Palimpsest/POPGym-PositionOnlyPendulum-Easy-v0", limit=limit) for limit in (20, 99, 100)}
    assert [rod.chance_level() for rod in rods.values()] == [0.055] * 3
    assert [rod.expert_success for rod in rods.values()] == [None, None, 0.98]


@pytest.mark.parametrize(("noise", "limit", "chance"), [(1e-6, 200, None), (0.1, 20, None), (0.1, 200, 0.01)])
def test_noise_that_was_not_measured(noise, limit, chance):
    id = "Palimpsest/POPGym-PositionOnlyPendulum-Easy-v0"
    assert make(id, noise=noise, limit=limit).chance_level() == chance
