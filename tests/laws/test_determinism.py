"""Same seed, machine and number of threads: the same numbers, bit for bit, on both sides of a save and a load."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import small_policy

from palimpsest import envs, memory
from palimpsest.agents import MemoryPPO

ROWS, STEPS = 4, 8


def worlds():
    return envs.make_vec("Palimpsest/EndlessTMaze-v0", ROWS, seed=5, corridors=2, length=3)


def agent(name: str, seed: int = 3) -> MemoryPPO:
    return MemoryPPO(
        "MlpMemoryPolicy",
        worlds(),
        n_steps=STEPS,
        batch_size=2 * STEPS,
        n_epochs=2,
        memory_carry_over=0.5,
        policy_kwargs=small_policy(name),
        seed=seed,
        device="cpu",
    )


def numbers(model: MemoryPPO) -> dict[str, torch.Tensor]:
    """Parameters, the optimiser's moments, and the last rollout."""
    found = {name: value.detach().clone() for name, value in model.policy.state_dict().items()}
    for number, state in model.policy.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{name}": value.clone() for name, value in state.items()}
    columns = model.rollout_buffer.columns
    for name in ("observations", "actions", "old_values", "old_log_prob", "returns", "memory_start"):
        found[name] = getattr(columns, name).clone()
    return found


def assert_equal_bits(one: MemoryPPO, other: MemoryPPO) -> None:
    mine, its = numbers(one), numbers(other)
    assert mine.keys() == its.keys()
    for name, value in mine.items():
        assert torch.equal(value, its[name]), name


@pytest.mark.parametrize("name", memory.names())
def test_two_trainings_are_equal_and_another_seed_is_not(name):
    first, again, other = agent(name), agent(name), agent(name, seed=4)
    # The global streams are seeded when an agent is made, so each trains right after it is made.
    for model in (first, again, other):
        model.set_random_seed(model.seed)
        model.learn(2 * ROWS * STEPS)
    assert_equal_bits(first, again)
    assert any(not torch.equal(a, b) for a, b in zip(first.policy.parameters(), other.policy.parameters()))


@pytest.mark.parametrize("name", memory.names())
def test_training_goes_on_alike_after_a_save_and_a_load(name, tmp_path):
    """Both go on in fresh worlds; `test_resume` has what a checkpoint keeps besides: worlds and global streams."""
    kept = agent(name)
    kept.learn(2 * ROWS * STEPS)
    kept.save(tmp_path / "model.zip")
    loaded = MemoryPPO.load(tmp_path / "model.zip", env=worlds(), device="cpu")
    kept.set_env(worlds(), force_reset=True)
    for model in (kept, loaded):
        model.env.seed(7)
        torch.manual_seed(0)
        model.learn(2 * ROWS * STEPS, reset_num_timesteps=False)
    assert_equal_bits(kept, loaded)


def digest(name: str) -> str:
    """What `name` is after a short training, as one number."""
    model = agent(name)
    model.learn(2 * ROWS * STEPS)
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in numbers(model).values())).hexdigest()


@pytest.mark.learning
def test_every_process_finds_the_same_numbers():
    """Nothing depends on Python's hashing, on addresses, or on who compiled the kernels and who loaded them."""
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from test_determinism import digest, memory\n"
        "print(*(digest(name) for name in memory.names()))"
    )
    here = Path(__file__).resolve()
    paths = os.pathsep.join(map(str, (here.parent, here.parents[1], here.parents[2])))

    def digests(hash_seed: str) -> list[str]:
        # two new processes: in this one other tests may have set what torch computes by
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return run.stdout.split()

    first = digests("1")
    assert len(first) == len(memory.names())
    assert digests("2") == first
