"""Two halves that step by turns give what all rows at once give: parameters, rollouts, logs, errors."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from divided import ACTIONS, CASES, Recall, trained
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from small import small_agent, small_policy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize
from test_law import assert_alike
from worlds import Broken, Counter, Guarded

from palimpsest.agents import MemoryPPO
from palimpsest.agents.learn.dump import FILE
from palimpsest.agents.learn.failure import reproduce
from palimpsest.agents.learn.numerics import NotFinite
from palimpsest.agents.tree import tree_map
from palimpsest.agents.worlds.vectors import make_environments
from palimpsest.envs.halves import VecHalves
from palimpsest.envs.sb3 import VectorEnvAdaptor
from palimpsest.memory.kernels import torch_only

LAW = [f"memory-{name}" for name in ("rewrite", "lstm", "ffm", "hcam", "shm")] + [
    *("dict", "several", "switches", "box", "gsde", "segments", "one-column", "undone", "reconstructing", "no-carry"),
]


def subproc(makers) -> SubprocVecEnv:
    return SubprocVecEnv(list(makers), start_method="fork")


def halves(makers) -> VecHalves:
    border = (len(makers) + 1) // 2
    return VecHalves(subproc(makers[:border]), subproc(makers[border:]))


@pytest.mark.learning
@pytest.mark.parametrize("case", LAW)
def test_halves_give_what_all_rows_at_once_give(case):
    assert case in CASES
    assert_alike(trained(case), trained(case, halves=True))


def learned(env, kind: str = "MlpMemoryPolicy", **kwargs) -> dict[str, np.ndarray]:
    """Parameters and the rollout after two iterations in float32, by kernels where there are any."""
    arguments = dict(n_steps=8, batch_size=16, n_epochs=2, seed=0, device="cpu", memory_carry_over=0.5)
    model = MemoryPPO(kind, env, **arguments | dict(policy_kwargs=small_policy("gru")) | kwargs)
    model.learn(2 * 8 * env.num_envs)
    env.close()
    found = {name: value.numpy().copy() for name, value in model.policy.state_dict().items()}
    buffer = model.rollout_buffer
    found |= {name: getattr(buffer, name) for name in ("actions", "rewards", "advantages", "episode_starts")}
    return found | {"masks": np.zeros(0) if buffer.action_masks is None else buffer.action_masks}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_masks_are_those_of_the_next_step():
    makers = [lambda: Monitor(Guarded())] * 4
    whole = learned(DummyVecEnv(makers))
    assert not whole["masks"].all()
    assert_same(whole, learned(halves(makers)))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_vector_environments_of_gymnasium_step_by_turns_too(mode):
    """With truncated episodes, whose last observations are evaluated, and with marks of first steps."""

    def adapted(rows) -> VectorEnvAdaptor:
        one = [lambda row=row: Counter(row, truncate=True) for row in rows]
        return VectorEnvAdaptor(AsyncVectorEnv(one, autoreset_mode=mode, context="fork"))

    whole = learned(adapted(range(4)), normalize_observations=True, gamma=0.9)
    assert whole["rewards"].max() != 1
    parts = VecHalves(adapted(range(2)), adapted(range(2, 4)))
    assert_same(whole, learned(parts, normalize_observations=True, gamma=0.9))


class Slow(Counter):
    def step(self, action):
        time.sleep(0.02)
        return super().step(action)


class Order(BaseCallback):
    """Notes which halves step while a callback runs, and asks the environments something."""

    def __init__(self) -> None:
        super().__init__()
        self.stepping: list[tuple[bool, ...]] = []
        self.seen: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.stepping.append(tuple(half._steps for half in self.training_env.halves))
        self.seen.append(self.locals["new_obs"].copy())
        if self.n_calls == 3:
            assert self.training_env.env_method("get_wrapper_attr", "row", indices=[3, 0]) == [3, 0]
            assert self.training_env.get_attr("truncate") == [False] * 4
        return self.n_calls != 14


def test_one_half_steps_while_the_other_is_waited_for():
    """Questions of a callback are answered between steps, and a stop leaves environments that can go on."""
    makers = [lambda row=row: Slow(row) for row in range(4)]
    env, order = halves(makers), Order()
    model = small_agent(env, memory_carry_over=0.5)
    model.learn(4 * 16, order)
    # the last step of a rollout is followed by none
    assert order.stepping == ([(True, False)] * 7 + [(False, False)] + [(True, False)] * 6)
    counted = [[row, t % (3 + row)] for t in (1, 2, 3) for row in range(4)]
    np.testing.assert_array_equal(np.concatenate(order.seen[:3]), counted)
    model.learn(4 * 8, reset_num_timesteps=False)
    model.learn(4 * 8)
    assert model.num_timesteps == 4 * 8
    env.close()


class Recalled(BaseCallback):
    """The memory before each step, as a callback finds it."""

    def _on_step(self) -> bool:
        self.found = [*getattr(self, "found", []), self.model.recall()]
        return True


@pytest.mark.parametrize("name", ["gru", "hcam"])
def test_a_callback_finds_the_memory_of_all_rows(name):
    makers = [lambda row=row: Counter(row) for row in range(3)]
    found = []
    for env in (DummyVecEnv(makers), halves(makers)):
        model, look = small_agent(env, name=name, sequence_length=4, memory_carry_over=0.5), Recalled()
        with torch_only():
            model.learn(2 * 24, look)
        found.append([*look.found, model._last_state])
        env.close()
    for one, other in zip(*found, strict=True):
        tree_map(lambda a, b: torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5), one, other)


@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("row", [0, 2])
def test_errors_name_rows_and_steps_as_ever(what, row, tmp_path):
    makers = [lambda r=r: Broken(r, 4 if r == row else -1, what, np.nan, truncate=True) for r in range(3)]
    said = []
    for name, env in (("whole", DummyVecEnv(makers)), ("halves", halves(makers))):
        with pytest.raises(NotFinite) as caught:
            small_agent(env, tmp_path / name).learn(48)
        said.append(str(caught.value).partition(";")[0])
        env.close()
        (dump,) = (tmp_path / name).rglob(FILE)
        with pytest.raises(NotFinite):
            reproduce(dump)
    assert said[0] == said[1]


def test_parameters_that_are_not_finite_are_named():
    class Spoil(BaseCallback):
        @torch.no_grad()
        def _on_step(self) -> bool:
            if self.n_calls == 3:
                self.model.policy.action_net.bias[0] = np.nan
            return True

    env = halves([Counter, Counter])
    with pytest.raises(NotFinite, match=r"action_net\.bias holds nan"):
        small_agent(env).learn(16, Spoil())
    env.close()


def test_what_cannot_step_by_turns_is_refused():
    dummy, apart = DummyVecEnv([Counter] * 2), subproc([Counter] * 2)
    with pytest.raises(ValueError, match=r"a half must step in other processes.*got a DummyVecEnv"):
        VecHalves(apart, dummy)
    with pytest.raises(ValueError, match="VecNormalize has statistics of one half alone"):
        VecHalves(apart, VecNormalize(apart))
    other = subproc([lambda: Recall(ACTIONS["one"], False)])
    with pytest.raises(ValueError, match="both halves must have the same spaces"):
        VecHalves(apart, other)
    whole = VecHalves(apart, apart)
    with pytest.raises(ValueError, match=r"wrappers go around each half.*got VecMonitor around it"):
        small_agent(VecMonitor(whole))
    with pytest.raises(ValueError, match="an adaptive allocator learns from the ends of all rows"):
        MemoryPPO("MlpMemoryPolicy", whole, policy_kwargs={"memory": "sat", "memory_kwargs": {"allocator": "adaptive"}})
    apart.close()
    other.close()


@pytest.mark.parametrize(
    ("rows", "vec", "message"),
    [
        (4, None, "overlap needs environments in other processes, vec 'subproc' or 'async'; got vec=None"),
        (4, "dummy", "overlap needs environments in other processes.*got vec='dummy'"),
        (1, "async", "overlap needs two environments or more in each worker; got 1"),
    ],
)
def test_the_command_line_refuses_it_in_a_line(rows, vec, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_environments("CartPole-v1", rows, 0, {}, vec=vec, overlap=True)
    assert "\n" not in str(caught.value)


def test_wrappers_go_around_each_half_and_pictures_are_transposed():
    def pictures() -> gym.Env:
        env = gym.make("CartPole-v1")
        return gym.wrappers.TransformObservation(
            env, lambda obs: np.zeros((36, 40, 3), np.uint8), gym.spaces.Box(0, 255, (36, 40, 3), np.uint8)
        )

    env = VecHalves(VecMonitor(subproc([pictures])), VecMonitor(subproc([pictures])))
    wrapped = MemoryPPO._wrap_env(env)
    assert isinstance(wrapped, VecHalves)
    assert wrapped.observation_space.shape == (3, 36, 40)
    assert MemoryPPO._wrap_env(wrapped) is wrapped
    assert wrapped.reset().shape == (2, 3, 36, 40)
    obs, rewards, dones, infos = wrapped.step(np.zeros(2, int))
    assert (obs.shape, rewards.shape, dones.shape, len(infos)) == ((2, 3, 36, 40), (2,), (2,), 2)
    env.close()


def test_rows_have_the_seeds_that_they_have_in_one_piece():
    makers = [lambda: Monitor(Recall(ACTIONS["one"], False))] * 3
    envs = DummyVecEnv(makers), halves(makers)
    for env in envs:
        env.seed(7)
    assert np.array_equal(*(env.reset() for env in envs))
    assert not np.array_equal(*(env.reset() for env in (envs[1], envs[1])))
    envs[1].close()
