"""Every public constructor argument, and what it must refuse: one clear line, and nothing is left behind.

The rows are written down here and compared with the signatures, so that an argument without a row fails a test.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.optim import Adam
from worlds import Counter, Spaces

from palimpsest import envs, memory
from palimpsest.agents import MemoryActorCriticPolicy, MemoryPPO
from palimpsest.agents.policy.policies import MlpMemoryPolicy
from palimpsest.envs.registration import families

TEXTS = ["", "x", "8", "1\n2", "a\0b", "../../etc/passwd", "$(id)", "__import__('os').system('id')", "ø" * 300]
NO_VALUES = [object, [1], {"a": 1}, b"1", Path("x"), 1j]
FLOATS = [float("nan"), float("inf"), float("-inf"), -0.5, 1.5]
HUGE = [2**31, 2**63, 2**64, 10**40]

ZERO = 0
NUMBERS = [None, *TEXTS, *NO_VALUES, np.array([1, 2]), True]
"""What no number is."""

SIZE = [*NUMBERS, *FLOATS, -0.0, 3.0, ZERO, -1, -(2**63), *HUGE]
"""What an integer of 1 or more is not, nor one of a size that fits into a machine."""

COUNT = [bad for bad in SIZE if bad is not ZERO]
FLAG = [None, *TEXTS, *NO_VALUES, *FLOATS, 0, 1, -1, 10**40, "True", "true\n"]
CHOICE = [*TEXTS, *NO_VALUES, *FLOATS, 0, 1, 10**40, True]
FRACTION = [*NUMBERS, *FLOATS, -1e-9, 1 + 1e-9, 2, -1, *HUGE]
NOISE = [*NUMBERS, *FLOATS[:4], -1e-9, 11, -1, *HUGE]
RENDER = ["human", *CHOICE]


def same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and repr(one) == repr(other))


def without(values: list, *allowed: Any) -> list:
    return [value for value in values if not any(same(value, good) for good in allowed)]


def label(value: Any) -> str:
    return f"{type(value).__name__}-{str(value)[:12]!r}"


def assert_refused(make, name: str, value: Any, directory: Path) -> None:
    """One ValueError of one line that names the argument, and an empty directory after it."""
    with pytest.raises(ValueError, match=name) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message, message
    assert len(message) < 1500, message
    assert list(directory.iterdir()) == [], value


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Memories ------------------------------------------------------------------------------------------------------------

LAYERS = {"num_layers": SIZE}
HEADS = {"num_heads": [*SIZE, 7]}
TABLES = {"num_heads": SIZE, "key_size": SIZE, "value_size": SIZE}
MEMORIES: dict[str, dict[str, list]] = {
    "rewrite": {
        **LAYERS,
        **TABLES,
        "clock": FLAG,
    },
    "ffm": {
        "memory_size": SIZE,
        "context_size": SIZE,
        "max_period": [*NUMBERS, *without(FLOATS, 1.5), 0, 1, 1.0, -1, -(2**63)],
    },
    "hcam": {
        "chunk_size": SIZE,
        "num_chunks": SIZE,
        "top_k": [*SIZE, 17],
        **LAYERS,
        **HEADS,
        "detach": FLAG,
        "borders": [None, *CHOICE],
        "gamma": [*NUMBERS, *without(FLOATS, 1.5), *HUGE],
    },
    "sat": {
        "num_places": SIZE,
        "capacity": SIZE,
        "layout": [None, *CHOICE],
        "read": [None, *CHOICE, "hierarchical"],
        "allocator": [None, *CHOICE],
        **LAYERS,
        **HEADS,
        "top_k": SIZE,
        "num_tasks": SIZE,
    },
    "lstm": {**LAYERS, "horizon": [*SIZE, 1]},
    "gru": {**LAYERS, "horizon": [*SIZE, 1]},
    "rnn": {**LAYERS},
    "gtrxl": {**LAYERS, **HEADS, "memory_length": SIZE, "gated": FLAG, "selective": FLAG},
    "shm": {"memory_size": SIZE, "num_rows": SIZE},
    "mingru": {**LAYERS, "horizon": [*SIZE, 1]},
    "s5": {**LAYERS, "state_size": SIZE},
    "mamba": {**LAYERS, "state_size": SIZE, "conv_size": SIZE, "expand": SIZE},
    "linear": {**LAYERS, **TABLES},
    "gla": {**LAYERS, **TABLES, "decay": [None, *CHOICE]},
    "mlstm": {**LAYERS, **TABLES},
    "cmru": {**LAYERS},
    "based": {**LAYERS, **TABLES, "feature_size": SIZE, "window_size": [*SIZE, 1]},
    "mom": {**LAYERS, **TABLES, "num_memories": SIZE, "top_k": [*SIZE, 5]},
    "deltaproduct": {**LAYERS, **TABLES, "num_householder": SIZE},
    "trxl": {**LAYERS, **HEADS, "memory_length": SIZE, "selective": FLAG},
    "elmur": {**LAYERS, "num_slots": SIZE, **HEADS, "blend": [*NUMBERS, *FLOATS, *HUGE]},
    "dnc": {**LAYERS, "num_slots": SIZE, "slot_size": SIZE, "num_reads": SIZE},
    "titans": {**LAYERS, **TABLES, "hidden_size": SIZE},
    "miras": {
        **LAYERS,
        **TABLES,
        "hidden_size": SIZE,
        "variant": [None, *CHOICE],
        "bias": CHOICE,
        "retention": CHOICE,
        "p": [*NUMBERS, *without(FLOATS, 1.5), *HUGE, 0.5],
        "q": [*NUMBERS, *FLOATS, *HUGE, 1],
    },
    "aler": {
        **LAYERS,
        "num_slots": SIZE,
        "slot_size": SIZE,
        "temperature": [*NUMBERS, *without(FLOATS, 1.5), *HUGE, 0],
    },
    "larimar": {**LAYERS, "num_slots": SIZE, "slot_size": SIZE},
    "memoria": {
        **LAYERS,
        "num_heads": SIZE,
        "engram_size": SIZE,
        "short_term": SIZE,
        "long_term": SIZE,
        "remind_short": SIZE,
        "remind_long": SIZE,
        "search_depth": COUNT,
        "lifespan": SIZE,
        "extension": [*NUMBERS, *without(FLOATS, 1.5), *HUGE],
    },
    "none": {},
}
for rows in MEMORIES.values():
    rows |= {"input_size": SIZE, "output_size": SIZE}


def test_every_argument_of_every_memory_has_a_row():
    assert set(MEMORIES) == set(memory.names())
    for name, rows in MEMORIES.items():
        assert set(rows) == set(inspect.signature(memory.registry.memory_class(name)).parameters), name


@pytest.mark.parametrize(("name", "argument"), [(name, key) for name, rows in MEMORIES.items() for key in rows])
def test_memories_refuse(name, argument, tmp_path):
    for value in MEMORIES[name][argument]:
        arguments = {"input_size": 3, argument: value}
        assert_refused(lambda a=arguments: memory.make(name, **a), argument, value, tmp_path)


@pytest.mark.parametrize("name", [None, *TEXTS, *NO_VALUES, 3, float("nan")], ids=label)
def test_what_is_no_memorys_name(name, tmp_path):
    assert_refused(lambda: memory.make(name, 3), "memory", name, tmp_path)


def test_a_memory_that_does_not_fit_into_the_machine(tmp_path, monkeypatch):
    """As torch says it; a real one may be granted the memory and fill the machine."""
    cls = memory.registry.memory_class("lstm")

    def fail(self, *args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0.\nDefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(cls, "__init__", fail)
    monkeypatch.setattr(cls, "__signature__", inspect.Signature([]), raising=False)
    assert_refused(lambda: memory.make("lstm", 3), "'lstm' with input_size=3 does not fit", None, tmp_path)


# Environments --------------------------------------------------------------------------------------------------------

WORLDS: dict[str, dict[str, list]] = {
    "EndlessTMaze": {
        "corridors": SIZE,
        "length": SIZE,
        "regime": [None, *CHOICE],
        "normalise_by": [None, *CHOICE],
        "position": [None, *CHOICE],
    },
    "MiniGridMemory": {"size": [*SIZE, 8, 5], "random_length": FLAG, "view_size": [*SIZE, 1, 4, 9]},
    "MiniGridMemoryRewrite": {
        "replacements": COUNT,
        "length": SIZE,
        "random_length": FLAG,
        "view_size": [*SIZE, 1, 4, 9],
    },
    "ActiveTMaze": {"length": SIZE},
    "RuneTMaze": {
        "length": [*SIZE, 8],
        "runes": SIZE,
        "kinds": [None, *TEXTS, object, 1, 1.5, [], ["x"], [1], [None], ("repeat",), ["invert"] * 17, {"a": 1}, b"1"],
        "corridors": SIZE,
    },
    "RuneMultiCorridor": {
        "length": [*SIZE, 8],
        "runes": SIZE,
        "kinds": [None, *TEXTS, object, 1, 1.5, [], ["x"], [1], [None], ("repeat",), ["rotate"] * 17, {"a": 1}, b"1"],
        "corridors": SIZE,
    },
    "HideAndSeek": {"rooms": SIZE, "boxes": SIZE, "objects": [*SIZE, 16], "moves": COUNT},
    "RoomBalletShortStay": {"views": SIZE, "dances": [*SIZE, 1], "side": [*SIZE, 1]},
    "RoomBalletMultiTask": {"dances": [*SIZE, 1], "task": [None, *CHOICE]},
    "ColorCubes": {
        "grid": [*SIZE, 1],
        "cubes": [*SIZE, 24],
        "phases": SIZE,
        "teleport": FRACTION,
        "hide_colours": FLAG,
    },
    "KeyValueRewrite": {"keys": SIZE, "values": [*SIZE, 1], "updates": SIZE, "queries": COUNT},
    **{f"{name}NoVel": {"velocities": FLAG} for name in ("CartPole", "Pendulum", "MountainCarContinuous")},
    "POPGymCartPole": {"seen": [None, *CHOICE], "limit": SIZE, "noise": NOISE},
    "POPGymPendulum": {"limit": [*SIZE, 19], "noise": NOISE},
    "Bandit": {"num_arms": [*SIZE, 1], "pulls": [*SIZE, 601]},
    "MultiarmedBandit": {"num_bandits": [*SIZE, 1], "episode_length": [*SIZE, 601], "flat": FLAG},
    "Ballet": {"dancers": [*SIZE, 1, 9], "delay": COUNT, "pixels": FLAG},
    "RepeatPrevious": {"num_decks": SIZE, "k": [*SIZE, 52], "flat": FLAG},
    "RepeatFirst": {"num_decks": SIZE, "flat": FLAG},
    "Autoencode": {"num_decks": SIZE, "flat": FLAG},
    "CountRecall": {"num_decks": SIZE, "deck_type": [None, *CHOICE], "flat": FLAG},
    "HigherLower": {"num_decks": SIZE, "flat": FLAG},
    "Battleship": {"board_size": [*SIZE, 5, 21], "flat": FLAG},
    "MineSweeper": {"board_size": [*SIZE, 2, 9], "num_mines": [*SIZE, 14], "flat": FLAG},
    "LabyrinthEscape": {"maze_size": [*SIZE, 4, 7, 42], "episode_length": [*SIZE, 1], "flat": FLAG},
    "LabyrinthExplore": {"maze_size": [*SIZE, 4, 7, 42], "episode_length": [*SIZE, 1], "flat": FLAG},
    "Concentration": {"num_decks": SIZE, "deck_type": [None, *CHOICE], "flat": FLAG},
}
for rows in WORLDS.values():
    rows["render_mode"] = RENDER


def test_every_argument_of_every_environment_has_a_row():
    assert set(WORLDS) == set(families())
    for name, rows in WORLDS.items():
        assert set(rows) == set(inspect.signature(families()[name]()).parameters), name


@pytest.mark.parametrize(("name", "argument"), [(name, key) for name, rows in WORLDS.items() for key in rows])
def test_environments_refuse_on_every_face(name, argument, tmp_path):
    id = next(id for id in envs.ids() if envs.entry(id).target.endswith(f":{name}"))
    for value in WORLDS[name][argument]:
        given = {argument: value}
        shown = argument.removesuffix("s")  # a member of `kinds` is called "each of kinds"
        assert_refused(lambda g=given: envs.family(id)(**g), shown, value, tmp_path)
        assert_refused(lambda g=given: envs.make_vec(id, 2, **g), shown, value, tmp_path)
    if argument != "render_mode":  # gymnasium warns of a wrong one itself, then passes it on
        assert_refused(lambda: gym.make(id, **given), shown, value, tmp_path)
        assert_refused(lambda: gym.make_vec(id, 2, **given), shown, value, tmp_path)


@pytest.mark.parametrize("id", [None, *TEXTS, *NO_VALUES, 3, "Palimpsest/", ":", "os:x", "x:", ":x"], ids=label)
def test_what_is_no_environments_id(id, tmp_path):
    assert_refused(lambda: envs.make_vec(id, 2), "environment|import", id, tmp_path)


@pytest.mark.parametrize(("argument", "values"), [("num_envs", SIZE), ("seed", without([*COUNT, 2**63], None, 2**31))])
def test_environments_are_counted_and_seeded_by_integers(argument, values, tmp_path):
    for value in values:
        assert_refused(lambda v=value: envs.make_vec(envs.ids()[0], **{argument: v}), argument, value, tmp_path)


# The agent -----------------------------------------------------------------------------------------------------------

POSITIVE = [*NUMBERS, *without(FLOATS, 1.5), -1, -(2**63)]
"""What a finite number of 0 or more is not."""


def raises(progress):
    raise KeyError("a\nb")


SCHEDULE = [*POSITIVE, raises, lambda progress: None, lambda progress: -1.0, lambda progress: float("nan"), lambda: 1.0]
OPTIONAL_SCHEDULE = without(SCHEDULE, None)
NAMED = without([*NUMBERS, *FLOATS, {1: 2}, {None: 1}], None, {"a": 1})
PATHS = ["", " ", "a\0b", 3, 1.5, True, [1], {"a": 1}, b"1", object]

AGENT: dict[str, list] = {
    "policy": [*NUMBERS, *FLOATS, "MlpPolicy", "MlpLstmPolicy", ActorCriticPolicy, int, MemoryPPO],
    "env": [*NUMBERS, *FLOATS, 0, "CartPol-v1", Counter, [Counter()], gym.make_vec("CartPole-v1", 2)],
    "learning_rate": [*SCHEDULE, 11],
    "n_steps": SIZE,
    "batch_size": without(SIZE, None, *HUGE),
    "n_epochs": [*SIZE, 10_001],
    "gamma": FRACTION,
    "gae_lambda": FRACTION,
    "clip_range": [*SCHEDULE, 10**7],
    "clip_range_vf": OPTIONAL_SCHEDULE,
    "normalize_advantage": FLAG,
    "normalize_observations": FLAG,
    "normalize_returns": FLAG,
    "min_advantage_std": [*POSITIVE, 10**7],
    "ent_coef": [*SCHEDULE, 10**7],
    "vf_coef": [*POSITIVE, 10**7, 10**400],
    "max_grad_norm": [*without(POSITIVE, float("inf")), 10**400],
    "use_sde": [*FLAG, True],
    "sde_sample_freq": without([*COUNT, -2], -1, *HUGE),
    "target_kl": [*without(POSITIVE, None), 10**7],
    "sequence_length": without(SIZE, None),
    "refresh_states": FLAG,
    "memory_carry_over": FRACTION,
    "memory_aux_coef": [*POSITIVE, 10**7],
    "strategy_epsilon": [*NUMBERS, *FLOATS, (1.0,), (1.0, 1.5), (-0.1, 0.0), (0, 0, 0), ("a", "b"), (None, None)],
    "stats_window_size": SIZE,
    "tensorboard_log": PATHS,
    "policy_kwargs": [*NAMED, {"a": 1}, {"memry": "gru"}, {"observation_space": 1}, {"use_sde": True}, {"self": 1}],
    "verbose": [*without(COUNT, True), 3],
    "seed": without([*COUNT, 2**32], None, 2**31),
    "device": [*NUMBERS, *FLOATS, 0, "tpu", "cuda:99", "cuda:x", "meta"],
}
NAMED_BY = {"use_sde": "generalized State-Dependent Exploration|use_sde"}

KWARGS: dict[str, list] = {
    "memory": [*CHOICE, None, "lstn"],
    "memory_kwargs": [*NAMED, {"a": 1}, {"input_size": 3}, {"output_size": 0}, {"output_size": 10**40}],
    "share_memory": FLAG,
    "encoder_arch": [*NUMBERS, *FLOATS, 64, [0], [-1], [1.5], ["64"], [True], [None], [[64]], [10**40], [2**31]],
    "net_arch": [*without(NUMBERS, None), *FLOATS, 64, [0], [None], {"pi": 64}, {"pi": [0]}, {"actor": [64]}, [10**40]],
    "activation_fn": [*NUMBERS, *FLOATS, "tanh", np.tanh, int],
    "ortho_init": FLAG,
    "log_std_init": [*NUMBERS, *without(FLOATS, -0.5, 1.5), 10**40, -(10**40)],
    "full_std": FLAG,
    "use_expln": FLAG,
    "squash_output": FLAG,
    "features_extractor_class": [*without(NUMBERS, None), *FLOATS, "FlattenExtractor", int],
    "features_extractor_kwargs": [*NAMED, {"a": 1}],
    "share_features_extractor": [*FLAG, False],
    "normalize_images": FLAG,
    "optimizer_class": [*NUMBERS, *FLOATS, "Adam", int],
    "optimizer_kwargs": [*NAMED, {"a": 1}],
}
for rows in (AGENT, KWARGS):
    for key, values in rows.items():
        # [1] is a list of widths and {"a": 1} a dict by name; they have their own bad members.
        rows[key] = without(values, [1]) if key in ("encoder_arch", "net_arch") else values
SET_BY_THE_AGENT = {"observation_space", "action_space", "lr_schedule", "use_sde", "reconstruct"}
SET_BY_THE_AGENT |= {"normalize_observations", "normalize_returns", "mark_starts"}


def test_every_argument_of_the_agent_and_its_policies_has_a_row():
    assert set(AGENT) == set(inspect.signature(MemoryPPO).parameters) - {"_init_setup_model"}
    own = inspect.signature(MemoryActorCriticPolicy).parameters
    parameters = {*own, *inspect.signature(ActorCriticPolicy).parameters} - {"kwargs"}
    assert set(KWARGS) == parameters - SET_BY_THE_AGENT


def agent(**given: Any) -> MemoryPPO:
    small = {"memory": "gru", "memory_kwargs": {"output_size": 4}}
    defaults = dict(policy="MlpMemoryPolicy", env=DummyVecEnv([Counter]), n_steps=4, policy_kwargs=small, device="cpu")
    return MemoryPPO(**{**defaults, **given})


@pytest.mark.parametrize("argument", AGENT)
def test_the_agent_refuses(argument, tmp_path):
    for value in AGENT[argument]:
        name = {"env": "env|module", "policy_kwargs": "policy_kwargs"}.get(argument, NAMED_BY.get(argument, argument))
        assert_refused(lambda v=value: agent(**{argument: v}), name, value, tmp_path)


@pytest.mark.parametrize("argument", KWARGS)
def test_policies_refuse(argument, tmp_path):
    for value in KWARGS[argument]:
        given = {
            "memory": "gru",
            "features_extractor_class": FlattenExtractor,
            "optimizer_class": Adam,
            argument: value,
        }
        name = "argument|output_size" if argument.endswith("_kwargs") and isinstance(value, dict) else argument
        assert_refused(lambda g=given: agent(policy_kwargs=g), f"{argument}|{name}", value, tmp_path)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Discrete(2), spaces.Text(3), "action space must be"),
        (spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (1,)), "action space must have finite bounds"),
        (spaces.Discrete(2), spaces.Discrete(2, start=1), "counted from 0"),
        (spaces.Discrete(2), spaces.MultiDiscrete([2, 3], start=[0, 1]), "counted from 0"),
        (spaces.Text(3), spaces.Discrete(2), "observation"),
        (spaces.Tuple([spaces.Discrete(2)]), spaces.Discrete(2), "observation"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), spaces.Discrete(2), "observation"),
        (spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2), "observation"),
    ],
    ids=str,
)
def test_spaces_that_no_policy_reads(observation, action, message, tmp_path):
    assert_refused(lambda: agent(env=Spaces(observation, action)), message, None, tmp_path)


def test_actions_that_are_not_counted_from_0_are_taken_as_the_refusal_says():
    env = Spaces(spaces.Discrete(2), spaces.Discrete(2, start=1))
    shifted = gym.wrappers.TransformAction(env, lambda action: action + env.action_space.start, spaces.Discrete(2))
    taken = []
    env.step = lambda action, step=env.step: taken.append(int(action)) or step(action)
    agent(env=shifted, n_steps=8).learn(8)
    assert len(taken) == 8
    assert set(taken) <= {1, 2}


def test_arguments_of_default_classes_are_checked():
    with pytest.raises(ValueError, match="Adam has no argument 'momentum'"):
        agent(policy_kwargs={"optimizer_kwargs": {"momentum": 0.9}})
    with pytest.raises(ValueError, match="FlattenExtractor has no argument 'width'"):
        agent(policy_kwargs={"features_extractor_kwargs": {"width": 3}})


def test_a_name_for_whatever_comes_by_place_is_no_argument():
    class Own(MlpMemoryPolicy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    with pytest.raises(ValueError, match="Own has no argument 'args'"):
        agent(policy=Own, policy_kwargs={"args": 3})


def test_an_environment_made_from_an_id_is_closed_when_refused(monkeypatch):
    closed = []
    env = Spaces(spaces.Text(3), spaces.Discrete(2))
    monkeypatch.setattr(env, "close", lambda: closed.append(1))
    monkeypatch.setattr("stable_baselines3.common.base_class.maybe_make_env", lambda given, verbose: env)
    with pytest.raises(ValueError, match="observation space"):
        agent(env="CartPole-v1")
    assert closed == [1]
    with pytest.raises(ValueError, match="observation space"):
        agent(env=env)
    assert closed == [1]


def test_bounds_themselves_are_taken():
    model = agent(
        gamma=1, gae_lambda=0, ent_coef=0, target_kl=None, clip_range_vf=0.0, seed=2**32 - 1, n_steps=1, batch_size=1
    )
    assert (model.gamma, model.gae_lambda, model.seed, model.n_steps, model.batch_size) == (1, 0, 2**32 - 1, 1, 1)
    model = agent(
        learning_rate=0.0, memory_carry_over=1.0, strategy_epsilon=[0, 0], verbose=np.int64(0), gamma=np.float32(0.5)
    )
    assert (model.memory_carry_over, model.gamma, model.policy.optimizer.param_groups[0]["lr"]) == (1.0, 0.5, 0.0)
    bare = agent(policy_kwargs={"memory": "none", "encoder_arch": [], "net_arch": [], "log_std_init": -2}).policy
    assert len(bare.encoder) == len(bare.mlp_extractor.policy_net) == 0
    small = agent(policy_kwargs={"memory": "none", "encoder_arch": (3,), "net_arch": {"pi": [2], "vf": []}}).policy
    assert [small.encoder[0].out_features, small.action_net.in_features, small.value_net.in_features] == [3, 2, 128]
