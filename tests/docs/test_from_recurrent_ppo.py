"""docs/from-recurrent-ppo.md: every argument of RecurrentPPO is in its tables, and what it shows runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from palimpsest.agents import MemoryActorCriticPolicy, MemoryPPO
from palimpsest.agents.policy.policy_kwargs import POLICY_ARGUMENTS, SET_BY_THE_AGENT

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "from-recurrent-ppo.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BEFORE, AFTER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

REQUIRED = inspect.Parameter.empty
RECURRENT_PPO = dict(
    policy=REQUIRED,
    env=REQUIRED,
    learning_rate=3e-4,
    n_steps=128,
    batch_size=128,
    n_epochs=10,
    gamma=0.99,
    gae_lambda=0.95,
    clip_range=0.2,
    clip_range_vf=None,
    normalize_advantage=True,
    ent_coef=0.0,
    vf_coef=0.5,
    max_grad_norm=0.5,
    use_sde=False,
    sde_sample_freq=-1,
    target_kl=None,
    stats_window_size=100,
    tensorboard_log=None,
    policy_kwargs=None,
    verbose=0,
    seed=None,
    device="auto",
    _init_setup_model=True,
)
"""The arguments of sb3-contrib 2.9, with their defaults."""

THEIR_POLICY = (
    *("observation_space", "action_space", "lr_schedule", "net_arch", "activation_fn", "ortho_init", "use_sde"),
    *("log_std_init", "full_std", "use_expln", "squash_output", "features_extractor_class"),
    *("features_extractor_kwargs", "share_features_extractor", "normalize_images", "optimizer_class"),
    *("optimizer_kwargs", "lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs"),
)


def rows(section: str) -> list[list[str]]:
    """The rows of a section's table, without its head."""
    table = [line.strip("|").split("|") for line in SECTIONS[section].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table[2:]]


def named(cell: str) -> list[str]:
    return re.findall(r"`(\w+)", cell)


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    return {name: each for name, each in inspect.signature(cls).parameters.items() if each.kind != each.VAR_KEYWORD}


def test_the_lists_are_those_of_sb3_contrib():
    contrib = pytest.importorskip("sb3_contrib")
    policies = pytest.importorskip("sb3_contrib.common.recurrent.policies")
    found = parameters(contrib.RecurrentPPO)
    assert {name: each.default for name, each in found.items()} == RECURRENT_PPO
    assert tuple(parameters(policies.RecurrentActorCriticPolicy)) == THEIR_POLICY


def test_the_arguments_are_recurrent_ppos_in_its_order_and_ours_by_name():
    ours = parameters(MemoryPPO)
    positional = {name: each.default for name, each in ours.items() if each.kind == each.POSITIONAL_OR_KEYWORD}
    assert list(positional.items()) == list(RECURRENT_PPO.items())
    table = rows("Arguments of the algorithm")
    assert [named(theirs)[0] for theirs, *_ in table if theirs != "none"] == list(RECURRENT_PPO)
    assert {name for theirs, here, _ in table for name in named(theirs if here == "same" else here)} == set(ours)


def test_every_argument_of_the_policy_is_in_the_table():
    table = rows("Arguments of the policy")
    assert tuple(named(theirs)[0] for theirs, *_ in table if theirs != "none") == THEIR_POLICY
    kept = {named(theirs if here == "same" else here)[0] for theirs, here, _ in table if here != "not there"}
    assert kept == set(POLICY_ARGUMENTS) | set(SET_BY_THE_AGENT)
    assert set(parameters(MemoryActorCriticPolicy)) <= kept


def test_every_file_of_ours_is_in_the_table_of_theirs():
    there = {path.name for path in (ROOT / "tests" / "agents" / "sb3").glob("test_*.py")}
    assert {name for _, ours, *_ in rows("Held to their tests") for name in re.findall(r"`([\w.]+)`", ours)} == there


def test_links_lead_somewhere_and_lead_here():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    assert "docs/from-recurrent-ppo.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def run(code: str):
    shorter = code.replace("50_000", "32").replace("128", "4").replace("256", "32")
    made: dict = {}
    exec(compile(shorter, "from-recurrent-ppo.md", "exec"), made)
    return made["model"]


@pytest.mark.learning
def test_the_second_script_runs_and_has_the_network_of_the_first():
    after = run(AFTER)
    assert after.num_timesteps == 32
    pytest.importorskip("sb3_contrib")
    before = run(BEFORE)
    sizes = [sum(p.numel() for p in model.policy.parameters()) for model in (before, after)]
    assert sizes[0] == sizes[1]
    for model in (before, after):
        assert model._n_updates == before._n_updates
