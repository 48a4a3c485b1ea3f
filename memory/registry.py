"""The registry of memories. `make`, the command line, the tests, the benchmarks and the docs read it.

Listing names does not import torch: the module of a memory is imported when the memory is first made.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from palimpsest.imports import imported
from palimpsest.refusals import check_keys, closest, refuse

if TYPE_CHECKING:
    from palimpsest.memory.base import Memory


@dataclass(frozen=True)
class Entry:
    """The registry's entry for a memory."""

    target: str
    """Its class, as "module:Class"."""
    meaning: str
    """One sentence."""
    source: str
    """The paper, as an arXiv number or author and year."""
    erases: bool
    """Whether an input can erase what an earlier one wrote."""
    cost: str = ""
    """Multiply-adds per step to leading order, in the sizes that the class names; D is the width. T never occurs."""


_ENTRIES: dict[str, Entry] = {}


def register(name: str, target: str, meaning: str, source: str = "", erases: bool = False, cost: str = "") -> None:
    """Add a memory under `name`.

    Args:
        name: its name in `make` and `--memory`.
        target: "module:Class"; the class is a `memory.Memory` whose first argument is `input_size`.
        meaning: one sentence for lists.
        source: the paper.
        erases: whether an input can erase on demand what an earlier one wrote.
        cost: multiply-adds per step to leading order.

    Raises:
        ValueError: the name is taken, or the target is not of the form "module:Class".
    """
    if name in _ENTRIES:
        raise ValueError(f"memory {name!r} is already {_ENTRIES[name].target}; choose another name")
    if target.count(":") != 1:
        raise ValueError(f'target must read "module:Class"; got {target!r}')
    _ENTRIES[name] = Entry(target, meaning, source, erases, cost)


def names() -> list[str]:
    """The registered names, in the order of registration."""
    return list(_ENTRIES)


def entry(name: str) -> Entry:
    """The registry's entry for `name`; ValueError with the closest known name if there is none."""
    if not isinstance(name, str):
        refuse("a memory's name", f"a string, one of {', '.join(_ENTRIES)}", name)
    if name not in _ENTRIES:
        if ":" in name:
            raise ValueError(
                f"memory {name!r} is of a module that is not imported; call palimpsest.memory.register_from({name!r})"
            )
        raise ValueError(f"unknown memory {name!r}{closest(name, _ENTRIES)}; known: {', '.join(_ENTRIES)}")
    return _ENTRIES[name]


def register_from(name: str) -> None:
    """Import the module of "module:name", and register under this whole text what it holds.

    That is the module's class `name`, if it is a `Memory`, or else the memory that is registered as `name` once the
    module is imported. A name without a colon is left as it is. Nothing else imports a module that a name or a file
    names.

    Raises:
        ValueError: the module cannot be imported, or holds no such memory.
    """
    if not isinstance(name, str) or ":" not in name or name in _ENTRIES:
        return
    module, own = imported(name, "memory")
    from palimpsest.memory.base import Memory

    theirs = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Memory) and value is not Memory
    }
    if own in theirs:
        meaning = (theirs[own].__doc__ or own).strip().splitlines()[0]
        register(name, name, meaning)
    elif own in _ENTRIES:
        _ENTRIES[name] = _ENTRIES[own]
    else:
        raise ValueError(
            f"module {module.__name__!r} has no memory {own!r}{closest(own, [*theirs, *_ENTRIES])}; name a subclass of "
            f"palimpsest.memory.Memory in it, or let it call palimpsest.memory.register({own!r}, ...)"
        )


def memory_class(name: str) -> type[Memory]:
    """The class registered under `name`. Its module is imported now."""
    module, _, attribute = entry(name).target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def make(name: str, input_size: int, **kwargs: Any) -> Memory:
    """Build the memory registered under `name`.

    Args:
        name: one of `names()`.
        input_size: F, features per input.
        **kwargs: the class's other arguments.

    Raises:
        ValueError: the name or an argument is unknown (the message names the closest known one), or a value does not
            fit.
    """
    cls = memory_class(name)
    check_keys(f"memory {name!r}", kwargs, cls, skip={"input_size"})
    try:
        return cls(input_size, **kwargs)
    except (MemoryError, RuntimeError) as error:
        if "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        sizes = ", ".join(f"{key}={value!r}" for key, value in {"input_size": input_size, **kwargs}.items())
        raise ValueError(
            f"memory {name!r} with {sizes} does not fit into this machine's memory; make it smaller"
        ) from None


register(
    "rewrite",
    "palimpsest.memory.rewrite:RewriteMemory",
    "Gated delta tables that forget and overwrite by separate, logged gates, behind a gated recurrent unit.",
    "ours, on arXiv 2412.06464",
    erases=True,
    cost="G (F + G) + L (D² + H K V)",
)
register(
    "ffm",
    "palimpsest.memory.ffm:FFM",
    "Fast and Forgetful Memory: complex traces with learned decay and frequency.",
    "arXiv 2310.04128",
    cost="D m c",
)
register(
    "hcam",
    "palimpsest.memory.hcam:HCAM",
    "Hierarchical Chunk Attention Memory: find the best chunks of the past, then attend inside them.",
    "arXiv 2105.14039",
    cost="L (D² + N D + H k C D)",
)
register(
    "sat",
    "palimpsest.memory.sat:SpatiallyAwareTransformer",
    "Spatially-Aware Transformer: slots with time and place, and a strategy that chooses which entry to drop.",
    "arXiv 2402.15160",
    cost="L (D² + H S D)",
)
register(
    "lstm",
    "palimpsest.memory.recurrent:LSTM",
    "Long short-term memory.",
    "Hochreiter and Schmidhuber 1997",
    erases=True,
    cost="L D²",
)
register("gru", "palimpsest.memory.recurrent:GRU", "Gated recurrent unit.", "arXiv 1406.1078", erases=True, cost="L D²")
register(
    "rnn",
    "palimpsest.memory.recurrent:RNN",
    "Elman's recurrent network with tanh.",
    "Elman 1990",
    erases=True,
    cost="L D²",
)
register(
    "gtrxl",
    "palimpsest.memory.gtrxl:GTrXL",
    "Gated Transformer-XL: attention over a sliding window of layer inputs.",
    "arXiv 1910.06764",
    cost="L M D²",
)
register(
    "shm",
    "palimpsest.memory.shm:SHM",
    "Stable Hadamard Memory: a matrix calibrated element by element at every step.",
    "arXiv 2410.10132",
    erases=True,
    cost="H D + H²",
)
register(
    "mingru",
    "palimpsest.memory.mingru:MinGRU",
    "Minimal GRU: gate and candidate see the input alone.",
    "arXiv 2410.01201",
    erases=True,
    cost="L D²",
)
register(
    "s5",
    "palimpsest.memory.s5:S5",
    "S5: a diagonal state-space model, complex traces of all features with learned rates and step sizes.",
    "arXiv 2208.04933",
    cost="L (D² + D P)",
)
register(
    "mamba",
    "palimpsest.memory.mamba:Mamba",
    "Mamba: a state-space model whose steps, writes and reads depend on the input, behind a short convolution.",
    "arXiv 2312.00752",
    erases=True,
    cost="L (D E + N E)",
)
register(
    "linear",
    "palimpsest.memory.linear:LinearAttention",
    "Linear attention: a mean of all values so far, weighed by positive features of queries and keys.",
    "arXiv 2006.16236",
    cost="L (D² + H K V)",
)
register(
    "gla",
    "palimpsest.memory.gla:GLA",
    "Gated linear attention: tables whose rows decay at rates that the input chooses.",
    "arXiv 2312.06635",
    erases=True,
    cost="L (D² + H K V)",
)
register(
    "mlstm",
    "palimpsest.memory.mlstm:MLSTM",
    "The matrix LSTM of xLSTM: tables with exponential input gates and a normaliser.",
    "arXiv 2405.04517",
    erases=True,
    cost="L (D² + H K V)",
)
register(
    "cmru",
    "palimpsest.memory.cmru:CMRU",
    "Cumulative memory recurrent unit: bistable units that keep their value exactly until an input passes a threshold.",
    "arXiv 2605.11855",
    erases=True,
    cost="L D²",
)
register(
    "based",
    "palimpsest.memory.based:Based",
    "Based: linear attention with Taylor features for all of the past, and exact attention to a small window.",
    "arXiv 2402.18668",
    cost="L (D² + H E² V + M D)",
)
register(
    "mom",
    "palimpsest.memory.mom:MoM",
    "Mixture of memories: a router lets each input write and read a few of several tables, and a shared one.",
    "arXiv 2502.13685",
    erases=True,
    cost="L (D² + M D H (K + V) + M H K V)",
)
register(
    "deltaproduct",
    "palimpsest.memory.deltaproduct:DeltaProduct",
    "DeltaProduct: tables that several reflections per input turn, erase and overwrite.",
    "arXiv 2502.10297",
    erases=True,
    cost="L n (D² + H K V)",
)
register(
    "trxl",
    "palimpsest.memory.trxl:TransformerXL",
    "Transformer-XL: attention over a sliding window of layer inputs, without gates.",
    "arXiv 1901.02860",
    cost="L M D²",
)
register(
    "elmur",
    "palimpsest.memory.elmur:ELMUR",
    "ELMUR: slots beside each layer, of which the one written longest ago is blended with what is new.",
    "arXiv 2510.07151",
    erases=True,
    cost="L (D² + M D²)",
)
register(
    "dnc",
    "palimpsest.memory.dnc:DNC",
    "Differentiable neural computer: slots found by content, by what is free and by the order of writing.",
    "Graves et al. 2016",
    erases=True,
    cost="L (D² + R W D + R N² + R N W)",
)
register(
    "titans",
    "palimpsest.memory.titans:Titans",
    "Titans: small networks whose weights learn what is read, by gradient, momentum and forgetting.",
    "arXiv 2501.00663",
    erases=True,
    cost="L (D² + H E (K + V))",
)
register(
    "miras",
    "palimpsest.memory.miras:Miras",
    "Miras: small networks that learn what is read, with a choice of loss and of forgetting: Moneta, Yaad, Memora.",
    "arXiv 2504.13173",
    erases=True,
    cost="L (D² + H E (K + V))",
)
register(
    "aler",
    "palimpsest.memory.aler:ALER",
    "ALER: an LSTM and slots, which it writes and reads at addresses drawn by Gumbel-Softmax.",
    "arXiv 2610.00592",
    erases=True,
    cost="L (D² + N W)",
)
register(
    "larimar",
    "palimpsest.memory.larimar:Larimar",
    "Larimar: a table written in one shot by least squares, which forgets what stands under an address.",
    "arXiv 2403.11901",
    erases=True,
    cost="L (D (N + W) + N² + N W)",
)
register(
    "memoria",
    "palimpsest.memory.memoria:Memoria",
    "Memoria: engrams of short and long term, found by likeness and by links, which live longer where they are read.",
    "arXiv 2310.03052",
    cost="L (D H E + N E + N²)",
)
register(
    "none", "palimpsest.memory.memoryless:Memoryless", "No memory: a feed-forward layer, the control.", "", cost="D²"
)
