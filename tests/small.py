"""Small memories and agents, which yet close chunks, fill windows and drop slots within 20 steps."""

import torch

from palimpsest import agents, memory

FEATURES = 5
TABLES = dict(num_heads=2, key_size=3, value_size=4)
"""Tables for which tests of kernels have machine code already."""

SMALL: dict[str, dict] = {
    "rewrite": dict(output_size=6, num_layers=2, num_heads=2, key_size=5, value_size=4, front_size=7),
    "ffm": dict(output_size=6, memory_size=5, context_size=3, max_period=16),
    "hcam": dict(output_size=6, chunk_size=3, num_chunks=2, top_k=1, num_layers=2, num_heads=2),
    "sat": dict(output_size=6, num_places=2, capacity=6, num_layers=2, num_heads=2),
    "lstm": dict(output_size=6, num_layers=2),
    "gru": dict(output_size=6, num_layers=2),
    "rnn": dict(output_size=6, num_layers=2),
    "gtrxl": dict(output_size=6, num_layers=2, num_heads=2, memory_length=5),
    "shm": dict(output_size=6, memory_size=4, num_rows=8),
    "mingru": dict(output_size=6, num_layers=2),
    "s5": dict(output_size=6, num_layers=2, state_size=3),
    "mamba": dict(output_size=6, num_layers=2, state_size=3, conv_size=3),
    "linear": dict(output_size=6, num_layers=2, **TABLES),
    "gla": dict(output_size=6, num_layers=2, **TABLES),
    "mlstm": dict(output_size=6, num_layers=2, **TABLES),
    "cmru": dict(output_size=6, num_layers=2),
    "based": dict(output_size=6, num_layers=2, num_heads=2, feature_size=1, key_size=3, value_size=4, window_size=4),
    "mom": dict(output_size=6, num_layers=2, num_memories=3, top_k=2, **TABLES),
    "deltaproduct": dict(output_size=6, num_layers=2, num_householder=3, **TABLES),
    "trxl": dict(output_size=6, num_layers=2, num_heads=2, memory_length=5),
    "elmur": dict(output_size=6, num_layers=2, num_slots=4, num_heads=2, blend=0.3),
    "dnc": dict(output_size=6, num_layers=2, num_slots=4, slot_size=3, num_reads=2),
    "titans": dict(output_size=6, num_layers=2, hidden_size=3, **TABLES),
    "miras": dict(output_size=6, num_layers=2, hidden_size=3, **TABLES),
    "aler": dict(output_size=6, num_layers=2, num_slots=3, slot_size=4, temperature=0.7),
    "larimar": dict(output_size=6, num_layers=2, num_slots=4, slot_size=3),
    "memoria": dict(
        output_size=6,
        num_layers=2,
        num_heads=2,
        engram_size=3,
        short_term=3,
        long_term=4,
        remind_short=2,
        remind_long=2,
        search_depth=1,
        lifespan=9,
        extension=1.5,
    ),
    "none": dict(output_size=6),
}

VARIANTS: dict[str, tuple[str, dict]] = {
    "hcam-two-chunks": ("hcam", dict(num_chunks=3, top_k=2, detach=False)),
    "sat-adaptive": ("sat", dict(allocator="adaptive")),
    "hcam-surprise": ("hcam", dict(borders="surprise", gamma=0.3, num_chunks=3, top_k=2)),
    "gtrxl-selective": ("gtrxl", dict(selective=True)),
    "miras-moneta": ("miras", dict(variant="moneta")),
    "miras-memora": ("miras", dict(variant="memora")),
    "gla-fixed": ("gla", dict(decay="fixed")),
    "sat-lru": ("sat", dict(allocator="lru")),
    "sat-place": ("sat", dict(layout="place", read="hierarchical")),
}
"""Other forms of a registered memory that the laws hold for too: case -> (name, what differs from `SMALL`)."""

GRADIENT_REACH: dict[str, int] = {"hcam": 3}
"""Inputs, the current one included, that gradients reach where that is fewer than the memory's K: a chunk of
HCAM is detached when it is stored."""


def cases() -> list[str]:
    """What the laws are tested on: every registered memory, then the variants."""
    return [*memory.names(), *VARIANTS]


def make_small(case: str, dtype: torch.dtype = torch.float64) -> "memory.Memory":
    """The memory of `case` with small sizes and no parameter at a special value.

    Noise is added because a gate or a bias that starts at zero would hide a wrong term.
    """
    name, different = VARIANTS.get(case, (case, {}))
    made = memory.make(name, FEATURES, **SMALL.get(name, {}) | different).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return made


def small_arguments(name: str) -> dict:
    """Those of the memory of this name where no place is given."""
    return {key: value for key, value in SMALL[name].items() if key != "num_places"}


def small_policy(name: str, **kwargs) -> dict:
    """`policy_kwargs` of a small agent."""
    arguments = small_arguments(name)
    return {"memory": name, "memory_kwargs": arguments, "encoder_arch": [5], "net_arch": [4], **kwargs}


def small_agent(env, tmp_path=None, name: str = "gru", **kwargs) -> "agents.MemoryPPO":
    """An agent whose rollouts are 8 steps; it logs to `tmp_path`."""
    return agents.MemoryPPO(
        "MlpMemoryPolicy",
        env,
        n_steps=kwargs.pop("n_steps", 8),
        batch_size=8,
        n_epochs=kwargs.pop("n_epochs", 2),
        policy_kwargs=small_policy(name),
        seed=0,
        device="cpu",
        tensorboard_log=None if tmp_path is None else str(tmp_path),
        **kwargs,
    )
