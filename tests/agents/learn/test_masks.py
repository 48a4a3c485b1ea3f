"""Action masks: what an environment forbids is never done, neither in training nor later, and trains as it should."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from small import small_policy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecMonitor, VecNormalize
from tiny_world import ITEMS, Masked
from worlds import Counter, Fatal, Guarded

from palimpsest.agents import MemoryPPO, evaluate_policy, get_action_masks, is_masking_supported
from palimpsest.agents.learn.loss import evaluated
from palimpsest.agents.masks import checked_masks
from palimpsest.envs.sb3 import VectorEnvAdaptor, WorldVecEnv
from palimpsest.envs.sb3_wrappers import VecPreviousActionReward
from palimpsest.envs.vector import WorldVectorEnv
from palimpsest.envs.wrappers import VectorPreviousActionReward

SPACES = [spaces.Discrete(4), spaces.MultiDiscrete([3, 2]), spaces.MultiDiscrete([[2], [4]]), spaces.MultiBinary(3)]
IDS = ["discrete", "multidiscrete", "of two dimensions", "multibinary"]
B, T = 4, 16


def rows_of(space: spaces.Space | None = None, rows: int = B) -> DummyVecEnv:
    return DummyVecEnv([lambda: Guarded(space)] * rows)


def agent(env, **kwargs) -> MemoryPPO:
    arguments = dict(n_steps=T, batch_size=2 * T, n_epochs=2, seed=0, device="cpu", policy_kwargs=small_policy("gru"))
    return MemoryPPO("MlpMemoryPolicy", env, **arguments | kwargs)


@pytest.mark.learning
@pytest.mark.parametrize("space", [SPACES[0], SPACES[1], SPACES[3]], ids=[IDS[0], IDS[1], IDS[3]])
def test_an_environment_whose_other_actions_are_fatal_is_learned(space):
    model = agent(
        rows_of(space, 16), learning_rate=5e-3, n_steps=32, batch_size=256, n_epochs=4, ent_coef=0.01, gamma=0.9
    )
    model.learn(20_000)
    for deterministic in (True, False):
        mean, _ = evaluate_policy(model, rows_of(space, 16), 64, deterministic, warn=False)
        assert mean == 1 if deterministic else mean > 0.9
    with pytest.raises(Fatal):
        evaluate_policy(model, rows_of(space), 64, deterministic=False, use_masking=False, warn=False)


def test_it_is_fatal_without_masks():
    with pytest.raises(Fatal):
        agent(rows_of()).learn(T * B, use_masking=False)


@pytest.mark.parametrize("sequence_length", [5, T])
@pytest.mark.parametrize("space", SPACES, ids=IDS)
def test_every_ratio_is_one_before_the_first_gradient_step(space, sequence_length):
    model = agent(rows_of(space), sequence_length=sequence_length, n_epochs=1, learning_rate=0.0)
    model.learn(2 * T * B)
    buffer = model.rollout_buffer
    assert buffer.action_masks.shape == (T, B, sum(Guarded(space).sizes))
    assert not buffer.action_masks.all()
    for batch in buffer.get(2 * sequence_length, np.random.default_rng(0)):
        with torch.no_grad():
            found = evaluated(model.policy, batch)
        ratio = (found.log_prob - batch.old_log_prob).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-4)
        assert torch.isfinite(found.entropy).all()
        without = evaluated(model.policy, batch._replace(action_masks=None))
        assert (without.entropy > found.entropy + 1e-3).any()


def test_the_mask_of_a_step_is_kept_beside_its_observation():
    class Look(BaseCallback):
        seen: list = []  # noqa: RUF012  filled by the only instance

        def _on_step(self) -> bool:
            self.seen.append(self.locals["action_masks"].copy())
            return True

    model = agent(rows_of())
    model.learn(T * B, callback=Look())
    buffer = model.rollout_buffer
    np.testing.assert_array_equal(buffer.action_masks, Look.seen)
    assert np.take_along_axis(buffer.action_masks, buffer.actions[..., None], 2).all()
    # when the answer is asked, the environment allows 0 and 1
    asked = buffer.observations[..., 1] == 1
    np.testing.assert_array_equal(buffer.action_masks[asked], np.tile([True, True, False, False], (asked.sum(), 1)))


def test_masks_that_allow_everything_change_nothing():
    class Free(Counter):
        def action_masks(self):
            return [True] * 3

    def trained(env):
        model = agent(DummyVecEnv([env] * B))
        model.learn(3 * T * B)
        return model

    free, plain = trained(Free), trained(Counter)
    assert free.rollout_buffer.action_masks.all()
    assert plain.rollout_buffer.action_masks is None
    for name, value in free.policy.state_dict().items():
        assert torch.equal(value, plain.policy.state_dict()[name]), name


class MaskedRows(WorldVectorEnv):
    """The same without single rows: one array for all."""

    def action_masks(self) -> np.ndarray:
        return np.arange(ITEMS) != (self.world.state.item[:, None] + 1) % ITEMS


FACES = {
    "normalised": lambda: VecNormalize(rows_of()),
    "monitored": lambda: VecMonitor(rows_of()),
    "with previous actions": lambda: VecPreviousActionReward(rows_of()),
    "gymnasium wrappers": lambda: DummyVecEnv([lambda: gym.wrappers.TimeLimit(Guarded(), 3)] * B),
    "gymnasium vector": lambda: VectorEnvAdaptor(SyncVectorEnv([Guarded] * B)),
}


@pytest.mark.parametrize("face", FACES)
def test_masks_are_found_under_every_wrapper(face):
    env = FACES[face]()
    assert is_masking_supported(env)
    model = agent(env).learn(2 * T * B)
    evaluate_policy(model, env, 8, warn=False)
    assert model.rollout_buffer.action_masks is not None


@pytest.mark.parametrize(
    "make", [lambda: SubprocVecEnv([Guarded] * 2), lambda: VectorEnvAdaptor(AsyncVectorEnv([Guarded] * 2))]
)
def test_masks_of_other_processes(make):
    env = make()
    try:
        assert is_masking_supported(env)
        env.reset()
        assert get_action_masks(env).shape == (2, 4)
    finally:
        env.close()


WORLDS = {
    "VecEnv": lambda: WorldVecEnv(Masked, 5),
    "VectorEnv": lambda: VectorEnvAdaptor(MaskedRows(Masked, 5)),
    "wrapped VectorEnv": lambda: VectorEnvAdaptor(VectorPreviousActionReward(MaskedRows(Masked, 5))),
}


@pytest.mark.parametrize("make", WORLDS.values(), ids=WORLDS)
def test_masks_of_worlds(make):
    env = make()
    env.seed(3)
    env.reset()
    item = (env.world if isinstance(env, WorldVecEnv) else env.env.unwrapped.world).state.item
    assert is_masking_supported(env)
    np.testing.assert_array_equal(get_action_masks(env), np.arange(ITEMS) != (item[:, None] + 1) % ITEMS)


def test_predict_on_one_observation_and_on_a_batch():
    model = agent(rows_of())
    obs = np.zeros((3, 2), np.float32)
    only = np.eye(4, dtype=bool)
    for deterministic in (True, False):
        actions, state = model.predict(obs, deterministic=deterministic, action_masks=only[[2, 0, 3]])
        assert actions.tolist() == [2, 0, 3]
        actions, _ = model.predict(obs, state, deterministic=deterministic, action_masks=only[[1, 1, 2]].astype(int))
        assert actions.tolist() == [1, 1, 2]
        for mask in (only[1], only[1:2], [False, True, False, False]):
            action, _ = model.predict(obs[0], deterministic=deterministic, action_masks=mask)
            assert action == 1
            assert action.shape == ()


def test_a_single_environment_gives_its_mask():
    env = gym.wrappers.TimeLimit(Guarded(), 3)
    obs, _ = env.reset(seed=0)
    assert is_masking_supported(env)
    assert not is_masking_supported(Counter())
    state, over = None, False
    model = agent(Guarded())
    while not over:
        masks = get_action_masks(env)
        assert masks.shape == (4,)
        action, state = model.predict(obs, state, action_masks=masks)
        obs, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated


@pytest.mark.parametrize("space", SPACES, ids=IDS)
def test_a_loaded_model_predicts_with_masks(space, tmp_path):
    model = agent(rows_of(space)).learn(T * B)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    env = rows_of(space, 16)
    env.seed(0)
    obs = env.reset()
    masks = get_action_masks(env)
    want, _ = model.predict(obs, deterministic=True, action_masks=masks)
    again = MemoryPPO.load(tmp_path / "model", device="cpu")
    for loaded in (again, type(model.policy).load(tmp_path / "policy", device="cpu")):
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True, action_masks=masks)[0], want)
    again.set_env(rows_of(space))
    again.learn(T * B)


def test_a_model_that_goes_on_keeps_to_the_masks(tmp_path):
    """From a file, in the middle of episodes, as if it had not stopped."""
    env = WorldVecEnv(Masked, B)
    arguments = dict(policy_kwargs=small_policy("gru"), n_steps=T, batch_size=2 * T, seed=0, device="cpu")
    model = MemoryPPO("MultiInputMemoryPolicy", env, **arguments)
    model.learn(2 * T * B)
    model.save(tmp_path / "model")
    world, generator = env.snapshot(), torch.get_rng_state()
    model.learn(2 * T * B, reset_num_timesteps=False)

    other = WorldVecEnv(Masked, B)
    again = MemoryPPO.load(tmp_path / "model", env=other, device="cpu", force_reset=False)
    other.restore(world)
    torch.set_rng_state(generator)
    again.learn(2 * T * B, reset_num_timesteps=False)
    assert not again.rollout_buffer.action_masks.all()
    np.testing.assert_array_equal(again.rollout_buffer.action_masks, model.rollout_buffer.action_masks)
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, again.policy.state_dict()[name]), name


WRONG = [
    (spaces.Discrete(3), 2, [[1, 0, 0], [0, 0, 0]], "allow nothing in row 1; at least one action must be allowed"),
    (spaces.MultiDiscrete([2, 2]), 2, [[1, 0, 0, 1], [1, 1, 0, 0]], "allow nothing in choice 1 of row 1;"),
    (spaces.MultiBinary(2), 1, [[0, 0, 0, 1]], "allow nothing in choice 0 of row 0;"),
    (spaces.Discrete(3), 2, np.ones((2, 4), bool), r"must be \[2, 3\] for Discrete\(3\).*; got \[2, 4\]"),
    (spaces.Discrete(3), 2, np.ones((3, 2), bool), r"must be \[2, 3\] for Discrete\(3\).*; got \[3, 2\]"),
    (spaces.Discrete(3), 2, np.ones(3, bool), r"must be \[2, 3\] .*; got \[3\]"),
    (spaces.MultiBinary(2), 1, np.ones((1, 2), bool), r"must be \[1, 4\] for MultiBinary\(2\).*; got \[1, 2\]"),
    (spaces.Discrete(3), 2, [[True] * 3, [True] * 2], r"must have 3 booleans in each row; got rows of \[3, 2\]"),
    (spaces.Discrete(3), 1, [[0, 1, 2]], "must be booleans, true for what is allowed; got int64 values"),
    (spaces.Box(-1, 1, (2,)), 1, [[True] * 2], "need Discrete, MultiDiscrete or MultiBinary actions; got Box"),
]


@pytest.mark.parametrize(("space", "rows", "masks", "message"), WRONG)
def test_masks_that_do_not_fit_are_refused(space, rows, masks, message):
    with pytest.raises(ValueError, match=message):
        checked_masks(masks, space, rows)
    with pytest.raises(ValueError, match="at step 7" if "Box" not in message else message):
        checked_masks(masks, space, rows, step=7)


class Stuck(Guarded):
    """Allows nothing after its second step."""

    def action_masks(self):
        return super().action_masks() & (self.steps < 2)


def test_a_row_that_is_stuck_is_named_with_its_step():
    env = DummyVecEnv([Guarded, Guarded, Stuck])
    with pytest.raises(ValueError, match=r"allow nothing in row 2 at step 6;"):
        agent(env).learn(T * 3)
    model = agent(rows_of())
    with pytest.raises(ValueError, match=r"allow nothing in row 2 at step 2;"):
        evaluate_policy(model, env, 3, warn=False)
    with pytest.raises(ValueError, match=r"allow nothing in row 0;"):
        model.predict(np.zeros((1, 2), np.float32), action_masks=np.zeros((1, 4), bool))


class Bare(gym.Wrapper):
    """Hides the masks."""

    def has_wrapper_attr(self, name):
        return name != "action_masks" and super().has_wrapper_attr(name)

    def get_wrapper_attr(self, name):
        if name == "action_masks":
            raise AttributeError(name)
        return super().get_wrapper_attr(name)


def test_environments_of_which_some_have_masks_are_refused():
    def bare():
        return Bare(Guarded())

    for env in (DummyVecEnv([Guarded, bare, Guarded, bare]), VecNormalize(DummyVecEnv([bare, bare, Guarded, bare]))):
        model = agent(env)
        with pytest.raises(ValueError, match=r"every row must have action_masks\(\), or none; rows \[.*3\] have none"):
            model.learn(T * B)
    assert not is_masking_supported(DummyVecEnv([bare] * B))


def test_a_vector_environment_without_rows_has_no_masks():
    class Whole(VecEnvWrapper):
        """Knows no rows, as a simulator on a GPU."""

        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            return self.venv.step_wait()

        def has_attr(self, attr_name):
            return False

        def env_method(self, method_name, *args, indices=None, **kwargs):
            raise NotImplementedError

    assert not is_masking_supported(Whole(rows_of()))


def test_box_actions_cannot_be_masked():
    class Odd(Counter):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(-1, 1, (2,), np.float32)

        def action_masks(self):
            return [True, True]

    model = agent(DummyVecEnv([Odd] * B))
    with pytest.raises(ValueError, match="need Discrete, MultiDiscrete or MultiBinary actions; got Box"):
        model.learn(T * B)
    model.learn(T * B, use_masking=False)
