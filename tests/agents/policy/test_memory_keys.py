"""Where an agent is and what its task is reach the memories that ask."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Spaces

from palimpsest import memory
from palimpsest.agents import MemoryPPO
from palimpsest.agents.policy.spaces import check_place, place_of, task_of

SPACE = spaces.Dict(seen=spaces.Box(0, 1, (3,), np.float32), place=spaces.Discrete(3), task=spaces.Discrete(2))


def sat(**kwargs):
    return memory.make("sat", 4, output_size=6, capacity=6, num_layers=1, num_heads=2, **kwargs)


@pytest.mark.parametrize(
    ("num_places", "space"),
    [
        (2, SPACE),
        (3, SPACE["seen"]),
        (3, spaces.Dict(seen=SPACE["seen"])),
        (3, spaces.Dict(place=spaces.Box(0, 2, (1,), np.int64))),
    ],
)
def test_a_memory_with_places_needs_them_told(num_places, space):
    with pytest.raises(ValueError, match=f"'sat' with num_places={num_places} needs a Discrete .* or set num_places=1"):
        check_place(sat(num_places=num_places), "sat", space)
    check_place(sat(num_places=1), "sat", space)
    check_place(sat(num_places=3), "sat", SPACE)


def test_places_count_from_zero():
    obs = {"seen": torch.rand(2, 5, 3), "place": torch.randint(2, 5, (2, 5)).int()}
    space = spaces.Dict(place=spaces.Discrete(3, start=2))
    assert place_of(obs, sat(num_places=1), space) is None
    found = place_of(obs, sat(num_places=3), space)
    assert torch.equal(found, obs["place"].long() - 2)


def test_a_task_is_a_number_or_one_hot_and_zero_where_none_is_told():
    tasks = torch.tensor([1, 0, 2])
    assert task_of({"task": tasks.int()}, 3).tolist() == [1, 0, 2]
    assert task_of({"task": torch.eye(3)[tasks]}, 3).tolist() == [1, 0, 2]
    assert task_of({"seen": tasks}, 3).tolist() == task_of(tasks, 3).tolist() == [0, 0, 0]


def test_an_agent_tells_its_memory_both(monkeypatch):
    env = DummyVecEnv([lambda: Spaces(SPACE, spaces.Discrete(2))] * 3)
    arguments = dict(num_places=3, allocator="adaptive", num_tasks=2, output_size=8, capacity=6)
    policy = {"memory": "sat", "memory_kwargs": arguments}
    model = MemoryPPO("MultiInputMemoryPolicy", env, n_steps=8, batch_size=24, policy_kwargs=policy, device="cpu")
    inner, places, tasks = model.policy.memory, [], []
    scan, choose = inner.scan, inner.strategy_values.choose

    def seen(read):
        return lambda x, state, place, strategy: places.append(place) or read(x, state, place, strategy)

    def seen_scan(x, start, state, place, strategy):
        places.append(place)
        return scan(x, start, state, place, strategy)

    def seen_choose(task, epsilon, rng):
        tasks.extend(task.tolist())
        return choose(task, epsilon, rng)

    for name in ("step", "advance"):
        monkeypatch.setattr(inner, name, seen(getattr(inner, name)))
    monkeypatch.setattr(inner, "scan", seen_scan)
    monkeypatch.setattr(inner.strategy_values, "choose", seen_choose)
    model.learn(24)
    shown = {key: model.rollout_buffer.observations[key].reshape(8, 3) for key in ("place", "task")}
    rescanned = places[-1]
    assert sorted(rescanned.T.tolist()) == sorted(shown["place"].T.tolist())
    assert [place.tolist() for place in places[:8]] == shown["place"].tolist()
    assert tasks == [*shown["task"][0].tolist(), *shown["task"][5].tolist()]  # where episodes begin
    tasks.clear()
    rows = {key: np.stack([SPACE[key].sample() for _ in range(4)]) for key in SPACE}
    model.predict(rows)
    assert tasks == rows["task"].tolist()
    assert places[-1].tolist() == rows["place"].tolist()
