"""Every argument of every memory, and what it must refuse.

The rows are written down here and compared with the signatures, so that an argument without a row fails a test.
"""

from __future__ import annotations

import inspect

import pytest
from bad_values import (
    CHOICE,
    COUNT,
    FLAG,
    FLOATS,
    HUGE,
    NO_VALUES,
    NUMBERS,
    SIZE,
    TEXTS,
    assert_refused,
    label,
    without,
)

from palimpsest import memory

pytestmark = pytest.mark.usefixtures("empty_directory")


LAYERS = {"num_layers": SIZE}
HEADS = {"num_heads": [*SIZE, 7]}
TABLES = {"num_heads": SIZE, "key_size": SIZE, "value_size": SIZE}
MEMORIES: dict[str, dict[str, list]] = {
    "rewrite": {
        **LAYERS,
        **TABLES,
        "clock": FLAG,
        "front_size": SIZE,
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
