"""Control without velocities: gymnasium's physics step by step, the experts, and what players without memory reach."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from faces import any_actions, make, make_rows, mixed, reported

CART, ROD, CAR = (f"Palimpsest/{name}NoVel-v0" for name in ("CartPole", "Pendulum", "MountainCarContinuous"))
GYMNASIUM = {CART: ("CartPole-v1", [0, 2]), ROD: ("Pendulum-v1", [0, 1]), CAR: ("MountainCarContinuous-v0", [0])}


def copied(id, hidden):
    """The state of gymnasium's environment that is a world's hidden state."""
    if id == CART:
        return hidden["motion"][0]
    names = ("angle", "turning") if id == ROD else ("position", "velocity")
    state = np.array([hidden[name][0] for name in names])
    return state.astype(np.float32) if id == CAR and hidden["steps"][0] > 0 else state


@pytest.mark.parametrize("id", GYMNASIUM)
@pytest.mark.parametrize("velocities", [True, False])
def test_equals_gymnasium(id, velocities):
    """From copied states. Numbers agree to the last bit where numpy's and numba's sine and cosine do.

    The exception is a pendulum's reward: gymnasium squares the torque in float32 by a power, which is not always
    rounded to the nearest.
    """
    world, (name, kept) = make(id, velocities=velocities), GYMNASIUM[id]
    theirs, rng = gym.make(name), np.random.default_rng(0)
    world.action_space.seed(0)
    terminations = truncations = steps = 0
    for seed in range(24 if velocities else 6):
        skill = (0.0, 1.0, 0.9)[seed % 3]
        obs, _ = world.reset(seed=seed)
        theirs.reset(seed=seed)
        over = False
        while not over:
            hidden = world.hidden_state()
            theirs.unwrapped.state = copied(id, hidden)
            action = world.action_space.sample() if rng.random() >= skill else world.expert_action()
            if id != CART and seed % 2:
                action = (action * rng.choice([1, 1.5, -3])).astype(np.float32)  # beyond the bounds, too
            obs, reward, terminated, truncated, info = world.step(action)
            their_obs, their_reward, their_terminated, their_truncated, _ = theirs.step(action)
            assert (terminated, truncated) == (their_terminated, their_truncated and not their_terminated)
            assert reward == pytest.approx(float(their_reward), rel=1e-12, abs=1e-9 if id == ROD else 1e-14)
            np.testing.assert_allclose(obs, their_obs if velocities else their_obs[kept], rtol=1e-6, atol=1e-7)
            ours, state = copied(id, world.hidden_state()), theirs.unwrapped.state
            assert ours.dtype == state.dtype
            np.testing.assert_allclose(ours, state, rtol=1e-13 if id != CAR else 2e-7, atol=1e-15)
            steps, over = steps + 1, terminated or truncated
        terminations, truncations = terminations + terminated, truncations + truncated
        assert info == reported(truncated if id == CART else terminated if id == CAR else info["success"])
    assert steps >= (3000 if velocities else 1000)
    assert truncations >= 2
    assert terminations >= 2 or id == ROD
    assert world.rules.limit == theirs.spec.max_episode_steps


@pytest.mark.parametrize("id", GYMNASIUM)
def test_spaces_and_starts_are_gymnasiums(id):
    name, kept = GYMNASIUM[id]
    theirs = gym.make(name)
    space = theirs.observation_space
    for velocities, indices in ((True, slice(None)), (False, kept)):
        world = make(id, velocities=velocities)
        assert world.action_space == theirs.action_space
        assert world.observation_space == gym.spaces.Box(space.low[indices], space.high[indices], dtype=np.float32)
    first = make_rows(id, 4096, velocities=True).reset(seed=0)[0]
    other = np.stack([theirs.reset(seed=seed)[0] for seed in range(4096)])
    for ours, its in zip(first.T, other.T, strict=True):
        np.testing.assert_allclose(np.sort(ours), np.sort(its), rtol=0, atol=0.07 * np.ptp(its))


def outcomes(id, act, rows=512, **kwargs):
    """Success, and return, of the first episodes of `rows` rows whose actions are `act(obs, world)`."""
    vector = make_rows(id, rows, **kwargs)
    obs, _ = vector.reset(seed=0)
    running, won, total = np.ones(rows, bool), np.zeros(rows, bool), np.zeros(rows)
    while running.any():
        obs, reward, terminated, truncated, infos = vector.step(act(obs, vector.world))
        total += running * reward
        ended = running & (terminated | truncated)
        if ended.any():
            won[ended] = infos["final_info"]["success"][ended]
        running &= ~ended
    return won.mean(), total.mean()


@pytest.mark.parametrize(("id", "least"), [(CART, 500), (ROD, -160), (CAR, 95)])
def test_the_experts_level(id, least):
    success, total = outcomes(id, lambda obs, world: world.expert())
    assert success == 1
    assert total >= least


def column(numbers):
    return numbers.astype(np.float32)[:, None]


def test_players_without_memory():
    """Each is the best that a search over such players found."""
    rng = np.random.default_rng(0)

    def linear(weights, noise):
        return lambda obs, world: (obs @ weights + noise * rng.logistic(size=64) > 0).astype(int)

    lives = [
        outcomes(CART, linear(np.array(weights), noise), rows=64)
        for weights in ([0.0, 1.0], [-0.04, 2.8], [0.3, 3.0], [1.0, 1.0])
        for noise in (0, 0.1)
    ]
    assert max(success for success, _ in lives) == 0
    assert max(total for _, total in lives) < 60
    spring, _ = outcomes(ROD, lambda obs, world: column(-40 * obs[:, 1]), rows=4096)
    assert spring == pytest.approx(make(ROD).chance_level(), abs=0.015)
    any_side, total = outcomes(
        CAR, lambda obs, world: column(np.where(obs[:, 0] > -0.4, 1.0, rng.choice([-1.0, 1.0], 1024))), rows=1024
    )
    assert any_side == pytest.approx(make(CAR).chance_level(), abs=0.05)
    assert total < 20


def test_the_twin_needs_no_memory():
    assert outcomes(CART, lambda obs, _: (obs @ [0.5, 1, 10, 2] > 0).astype(int), velocities=True)[0] == 1
    assert outcomes(CAR, lambda obs, _: column(np.where(obs[:, 1] >= 0, 0.6, -0.6)), velocities=True)[0] == 1

    def pump_and_hold(obs, _):
        cos, sin, turning = obs.T
        hold = np.abs(np.arctan2(sin, cos)) < 0.4
        return column(
            np.where(hold, -10 * np.arctan2(sin, cos) - 2 * turning, -20 * (turning**2 / 30 + cos - 1) * turning)
        )

    assert outcomes(ROD, pump_and_hold, velocities=True)[0] == 1


def test_success_of_a_pendulum_is_a_second_upright_at_the_end():
    world = make(ROD)
    world.reset(seed=0)
    for held, away, wanted in ((19, 0.0, True), (18, 0.0, False), (100, 0.25, False), (100, 3 * np.pi, False)):
        hidden = world.hidden_state()
        hidden["angle"][:], hidden["turning"][:], hidden["held"][:], hidden["steps"][:] = away, 0, held, 199
        world.reset(options={"hidden_state": hidden})
        *_, truncated, info = world.step(np.zeros(1, np.float32))
        assert truncated
        assert info == reported(wanted)
        world.reset(seed=0)


@pytest.mark.parametrize("id", GYMNASIUM)
def test_two_positions_tell_the_velocity(id):
    """What the player cannot see follows from its last two observations, while nothing is clipped."""
    vector = make_rows(id, 64)
    before, _ = vector.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(8):
        obs, _, terminated, truncated, _ = vector.step(
            mixed(rng.random(64) < 0.5, vector.expert_action(), any_actions(vector, rng))
        )
        state = vector.world.state
        going = ~(terminated | truncated)
        if id == ROD:
            seen = np.angle((obs[:, 0] + 1j * obs[:, 1]) / (before[:, 0] + 1j * before[:, 1])) / 0.05
            assert np.allclose(seen, state.turning, atol=1e-3)
        elif id == CAR:
            assert np.allclose(obs[:, 0] - before[:, 0], state.velocity, atol=1e-6)
        else:
            # Euler: two positions tell the velocity between them, one step's push before the present one
            assert np.allclose((obs - before)[going] / 0.02, state.motion[going][:, [1, 3]], atol=0.7)
        before = obs
