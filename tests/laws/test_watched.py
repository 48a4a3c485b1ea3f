"""What torch records or transforms is every operation: right for other inputs too, or refused, never other numbers.

`torch.jit.trace`, `torch.export`, `torch.compile` and `torch.func` see torch's operations and no kernel. Where the
operations depend on numbers, as on which chunk is full, those that cannot follow them refuse.
"""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.utils._pytree as pytree
from conftest import tolerance
from gymnasium import spaces
from small import cases, make_small, small_policy
from test_memory_laws import sequence, used_state
from torch import nn
from torch.testing import assert_close

from palimpsest.agents.policy.policies import MlpMemoryPolicy
from palimpsest.memory.kernels import torch_only
from palimpsest.memory.kernels.arithmetic.dispatch import has_kernels

pytestmark = pytest.mark.programs

B, T = 3, 9
UNTRACEABLE = ["hcam-surprise", "sat-adaptive", "sat-lru"]
UNTRACEABLE_SCANS = {
    *UNTRACEABLE,
    "hcam",
    "hcam-two-chunks",
    "sat",
    "sat-place",
    "lstm",
    "gru",
    "rnn",
    "aler",
    "rewrite",
}


class Called(nn.Module):
    """A memory that takes and gives tensors only: the state's parts one by one, last."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.memory = make_small(case)
        self.state_type = type(self.memory.initial_state(1))

    def forward(self, x, start, place, strategy, *state):
        y, after = self.memory(x, self.state_type(*state), start if x.ndim == 3 else None, place, strategy)
        return y, *after


def inputs(module: Called, used: bool, scan: bool):
    """Of an episode's beginning, nothing of which starts anew, or of another moment."""
    x, start, place, strategy = sequence(module.memory, T, B)
    if not used:
        start = torch.zeros_like(start)
    state = used_state(module.memory, B, steps=8) if used else module.memory.initial_state(B)
    given = (x, start, place, strategy) if scan else (x[0], start[0], place[0], strategy[0])
    return *given, *(part.detach() for part in state)


def quiet(call, *args, **kwargs):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)


def follows(recorded, module: Called, scan: bool) -> None:
    """Values for other inputs are those of the memory itself, which computes as before."""
    other = inputs(module, True, scan)
    assert_close(quiet(recorded, *other), quiet(module, *other), rtol=1e-6, atol=1e-7)
    with torch_only():
        expected = quiet(module, *other)
    assert_close(quiet(module, *other), expected, **tolerance(torch.float64))


@pytest.mark.parametrize("scan", [False, True], ids=["step", "scan"])
@pytest.mark.parametrize("case", cases())
def test_a_trace_follows_other_inputs_or_is_refused(case, scan):
    module = Called(case)
    given = inputs(module, False, scan)
    if case in (UNTRACEABLE_SCANS if scan else UNTRACEABLE):
        with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record this memory.*torch.compile"):
            quiet(torch.jit.trace, module, given, check_trace=False)
        return
    follows(quiet(torch.jit.trace, module, given, check_trace=False), module, scan)


@pytest.mark.parametrize("case", [case for case in cases() if case not in UNTRACEABLE])
def test_an_exported_step_follows_other_inputs(case):
    module = Called(case)
    follows(quiet(torch.export.export, module, inputs(module, False, False)).module(), module, False)


@pytest.mark.parametrize(("case", "scan"), [("hcam", True), ("sat", True), *((case, False) for case in UNTRACEABLE)])
def test_what_depends_on_numbers_is_not_exported(case, scan):
    module = Called(case)
    with pytest.raises(Exception, match=r"data-dependent|numpy\(\) is not supported"):
        quiet(torch.export.export, module, inputs(module, False, scan))


@pytest.mark.parametrize("case", ["rewrite", "ffm", "hcam", "sat", "lstm"])
def test_a_compiled_step_follows_other_inputs(case):
    """Where it cannot be followed, the compiler runs the Python."""
    torch.compiler.reset()
    module = Called(case)
    compiled = torch.compile(module, backend="eager")
    quiet(compiled, *inputs(module, False, False))
    follows(compiled, module, False)


TWO_BATCHES = [
    "ffm",
    "gru",
    "rnn",
    "gtrxl",
    "shm",
    "s5",
    "mamba",
    "mlstm",
    "based",
    "mom",
    "elmur",
    "dnc",
    "titans",
    "miras",
    "larimar",
    "memoria",
    "none",
]


@pytest.mark.parametrize("case", TWO_BATCHES)
def test_a_step_over_two_batches_at_once(case):
    module = Called(case)
    first, second = (inputs(module, used, False) for used in (False, True))
    found = quiet(torch.func.vmap(module), *(torch.stack(pair) for pair in zip(first, second)))
    for number, given in enumerate((first, second)):
        assert_close([part[number] for part in found], list(quiet(module, *given)), **tolerance(torch.float64))


class Actor(nn.Module):
    """What an exported agent is: observation, flags and state to logits and the next state."""

    def __init__(self, policy: MlpMemoryPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.spec = pytree.tree_flatten(policy.initial_state(B))[1]

    def forward(self, obs, start, *state):
        before = pytree.tree_unflatten(list(state), self.spec)
        distribution, after = self.policy.get_distribution(obs, before, start)
        return distribution.distribution.logits, *pytree.tree_leaves(after)


RECORDED = [
    *itertools.product(["rewrite", "ffm", "lstm", "gtrxl"], [True, False], ["trace", "export"]),
    ("rewrite", False, "strict export"),
    ("lstm", True, "strict export"),
]


@pytest.mark.parametrize(("name", "share_memory", "record"), RECORDED)
def test_a_recorded_policy_acts_as_the_policy_does(name, share_memory, record):
    """Rows begin anew where they did not in the example."""
    torch.manual_seed(0)
    space, arguments = spaces.Box(-1, 1, (4,)), small_policy(name, share_memory=share_memory)
    actor = Actor(MlpMemoryPolicy(space, spaces.Discrete(2), lambda _: 1e-3, **arguments))
    policy, state, nothing = actor.policy, actor.policy.initial_state(B), torch.zeros(B, dtype=torch.bool)
    example = (torch.zeros(B, 4), nothing, *pytree.tree_leaves(state))
    if record == "trace":
        recorded = quiet(torch.jit.trace, actor, example, check_trace=False)
    else:
        recorded = quiet(torch.export.export, actor, example, strict=record == "strict export").module()
    for starts in (nothing, torch.arange(B) == 1, ~nothing):
        obs = torch.randn(B, 4)
        state = quiet(policy.next_state, torch.randn(B, 4), state)
        given = (obs, starts, *pytree.tree_leaves(state))
        expected = quiet(actor, *given)
        assert_close(quiet(recorded, *given), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "share_memory"), [("none", False), ("lstm", True)])
def test_a_compiled_policy_acts_and_learns_as_the_policy_does(name, share_memory):
    """Values of steps, as one graph, and gradients of a sequence; where the compiler cannot follow, Python runs."""
    torch.compiler.reset()
    torch.manual_seed(0)
    arguments = small_policy(name, share_memory=share_memory)
    policy = MlpMemoryPolicy(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), lambda _: 1e-3, **arguments)
    obs, start, actions = torch.randn(4, B, 4), torch.rand(4, B) < 0.3, torch.randint(2, (4, B))
    compiled, state = torch.compile(policy, backend="eager", fullgraph=True), policy.initial_state(B)
    for t in range(2):
        expected = quiet(policy, obs[t], state, start[t], deterministic=True)
        found = quiet(compiled, obs[t], state, start[t], deterministic=True)
        assert_close(pytree.tree_leaves(found), pytree.tree_leaves(expected), rtol=1e-4, atol=1e-5)
        state = expected[-1]

    def gradients(evaluate):
        values, log_prob, entropy, _ = evaluate(obs, actions, policy.initial_state(B), start)
        loss = values.square().mean() + log_prob.mean() + entropy.mean()
        return torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gradients(torch.compile(policy.evaluate_actions, backend="eager"))
    assert_close(found, gradients(policy.evaluate_actions), rtol=1e-4, atol=1e-6)


class MaskedActor(Actor):
    """The same among the actions that are allowed: to the likeliest."""

    def forward(self, obs, start, masks, *state):
        before = pytree.tree_unflatten(list(state), self.spec)
        distribution, after = self.policy.get_distribution(obs, before, start, action_masks=masks)
        return distribution.mode(), *pytree.tree_leaves(after)


@pytest.mark.parametrize("record", ["trace", "export"])
@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2)])
def test_a_recorded_policy_keeps_to_the_masks(space, record):
    torch.manual_seed(0)
    actor = MaskedActor(MlpMemoryPolicy(spaces.Box(-1, 1, (4,)), space, lambda _: 1e-3, **small_policy("gru")))
    state, start = pytree.tree_leaves(actor.policy.initial_state(B)), torch.zeros(B, dtype=torch.bool)
    example = (torch.zeros(B, 4), start, torch.ones(B, 4, dtype=torch.bool), *state)
    if record == "trace":
        recorded = quiet(torch.jit.trace, actor, example, check_trace=False)
    else:
        recorded = quiet(torch.export.export, actor, example).module()
    for only in ([0, 2], [1, 3], [0, 3]):
        masks = torch.zeros(B, 4, dtype=torch.bool)
        masks[:, only] = True
        given = (torch.randn(B, 4), start, masks, *state)
        assert_close(quiet(recorded, *given), quiet(actor, *given), rtol=1e-4, atol=1e-5)


def test_kernels_stand_aside_where_operations_are_watched():
    x, seen = torch.zeros(2), []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    def look(x):
        seen.append(has_kernels(x))
        return x

    assert has_kernels(x)
    quiet(torch.jit.trace, look, (x,), check_trace=False)
    torch.func.vmap(look)(x)
    torch.func.grad(lambda x: look(x).sum())(x)
    with Mode():
        look(x)
    with torch.autograd.forward_ad.dual_level():
        look(x)
    with torch.autocast("cpu"):
        look(x)
    look(x.as_subclass(type("Own", (torch.Tensor,), {})))
    assert len(seen) == 7
    assert not any(seen)
    assert has_kernels(x)
