"""GTrXL against plain attention in numpy, and the limits of its window."""

import math

import numpy as np
import pytest
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory import Memory
from palimpsest.memory.gtrxl import Gate, GTrXL, centred, standardise
from palimpsest.memory.trxl import TransformerXL

FORMS = pytest.mark.parametrize("form", [GTrXL.scan, Memory.scan], ids=["scan", "steps"])


def small(cls=GTrXL, **arguments):
    """A module in float64 with no parameter at a special value."""
    module = cls(3, **dict(output_size=6, num_layers=2, num_heads=2, memory_length=5) | arguments).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def never(T, B):
    return torch.zeros(T, B, dtype=torch.bool)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def gate(p, name, x, y):
    """The published gate, or a sum where there is none."""
    if f"{name}.W.weight" not in p:
        return x + y
    W_r, W_z, W_g = np.split(p[f"{name}.W.weight"], 3)
    U_r, U_z = np.split(p[f"{name}.U.weight"], 2)
    r = sigmoid(W_r @ y + U_r @ x)
    z = sigmoid(W_z @ y + U_z @ x - p[f"{name}.b_g"])
    h = np.tanh(W_g @ y + p[f"{name}.U_g.weight"] @ (r * x))
    return (1 - z) * x + z * h


def norm(p, name, x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def sinusoid(d, size):
    angle = d * 10000.0 ** -(np.arange(0, size, 2) / size)
    # the module keeps its table in float32
    return np.concatenate([np.sin(angle), np.cos(angle)])[:size].astype(np.float32).astype(float)


def reference(module, x, window=None):
    """One row of one episode, x [T, F], token by token and head by head; `window` None is plain causal attention.

    Returns y [T, D] and the attention of the layers, a list of [head, query, key].
    """
    p = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    D, H = module.output_size, module.layers[0].num_heads
    stream = [p["embedding.weight"] @ x_t + p["embedding.bias"] for x_t in x]
    attention = []
    for number in range(module.num_layers):
        q = {n.removeprefix(f"layers.{number}."): v for n, v in p.items() if n.startswith(f"layers.{number}.")}
        W_k, W_v = np.split(q["key_value.weight"], 2)
        normed = [norm(q, "attention_norm", e) for e in stream]
        weights, masked = np.zeros((H, len(x), len(x))), np.zeros(len(x))
        after = []
        for t in range(len(x)):
            seen = range(0 if window is None else max(0, t - window), t + 1)
            read, masks = [], masked[seen].copy()
            for head in range(H):
                rows = slice(head * D // H, (head + 1) * D // H)
                query = q["query.weight"][rows] @ normed[t]
                scores = []
                for j in seen:
                    content = (query + q["content_bias"][head]) @ (W_k[rows] @ normed[j])
                    place = q["position.weight"][rows] @ sinusoid(t - j, D)
                    scores.append((content + (query + q["position_bias"][head]) @ place) / math.sqrt(D // H))
                scores = np.array(scores)
                if head == 0 and module.selective:
                    masked[seen[:-1]] += np.maximum(scores[:-1], 0)
                a = np.exp(scores - masks) / np.exp(scores - masks).sum()
                weights[head, t, seen] = a
                read.append(sum(w * (W_v[rows] @ normed[j]) for w, j in zip(a, seen)))
            merged = q["merge.weight"] @ np.concatenate(read)
            y = gate(q, "attention_gate", stream[t], np.maximum(merged, 0))
            hidden = np.maximum(q["mlp.0.weight"] @ norm(q, "mlp_norm", y) + q["mlp.0.bias"], 0)
            out = q["mlp.2.weight"] @ hidden + q["mlp.2.bias"]
            after.append(gate(q, "mlp_gate", y, np.maximum(out, 0)))
        stream = after
        attention.append(weights)
    return np.stack(stream), attention


@FORMS
@pytest.mark.parametrize("memory_length", [16, 40])
def test_equals_one_long_attention_window(form, memory_length):
    """Cut into scans that hand on their state, a window as long as the episode is plain causal attention."""
    module = small(memory_length=memory_length)
    T = memory_length + 1
    x = torch.randn(T, 2, 3, dtype=torch.float64)
    state, ys = module.initial_state(2), []
    for part in x.split([7, 1, T - 8]):
        y, state = form(module, part, never(len(part), 2), state)
        ys.append(y.detach())
    for b in range(2):
        expected, _ = reference(module, x[:, b].numpy())
        assert_close(torch.cat(ys)[:, b], torch.from_numpy(expected), **tolerance(torch.float64))


@FORMS
@pytest.mark.parametrize(("cls", "selective"), [(GTrXL, False), (TransformerXL, False), (GTrXL, True)])
@pytest.mark.parametrize("memory_length", [1, 5, 20])
def test_equals_a_sliding_window(form, cls, selective, memory_length):
    """Longer than the window and than a block of queries; each episode by itself."""
    module = small(cls, memory_length=memory_length, selective=selective)
    x = torch.randn(70, 1, 3, dtype=torch.float64)
    start = never(70, 1)
    start[[19, 40]] = True
    y, _ = form(module, x, start, module.initial_state(1))
    for episode in (slice(0, 19), slice(19, 40), slice(40, 70)):
        expected, _ = reference(module, x[episode, 0].numpy(), memory_length)
        assert_close(y[episode, 0].detach(), torch.from_numpy(expected), **tolerance(torch.float64))


def test_gate_equations():
    module = Gate(4).double()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    p = {f"gate.{name}": value.detach().numpy() for name, value in module.state_dict().items()}
    assert (p["gate.b_g"] == 2).all()
    expected = np.stack([gate(p, "gate", a, b) for a, b in zip(x.numpy(), y.numpy())])
    assert_close(module(x, y)[0].detach(), torch.from_numpy(expected), **tolerance(torch.float64))


def test_a_new_network_is_nearly_its_embedding():
    """What b_g = 2 is for: gates open by about sigmoid(-2) = 0.12."""
    module = GTrXL(8, output_size=64)
    x = torch.randn(50, 4, 8)
    y, _ = module.scan(x, never(50, 4), module.initial_state(4))
    embedded = module.embedding(x)
    assert torch.nn.functional.cosine_similarity(y, embedded, dim=-1).mean() > 0.8
    assert 0.08 < module.diagnostics()["gate_openness"].mean() < 0.25


def influence(module, distance):
    """Largest derivative of an output with respect to the input `distance` steps before it."""
    x = torch.randn(distance + 1, 2, 3, dtype=torch.float64, requires_grad=True)
    y, _ = module.scan(x, never(len(x), 2), module.initial_state(2))
    return torch.autograd.grad(y[-1].sum(), x)[0][0].abs().max().item()


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("memory_length", [3, 20])
def test_reach_is_one_window_per_layer(layers, memory_length):
    module = small(num_layers=layers, memory_length=memory_length)
    reach = layers * memory_length
    assert module.context() == (memory_length + 1, reach + 1)
    assert influence(module, reach) > 1e-15
    assert influence(module, reach + 1) == 0
    assert influence(module, memory_length) > 1e-6


@FORMS
def test_gradients_reach_every_input_of_the_window(form):
    """In one scan, and over the border between two where the state has a graph."""
    module = small(num_layers=1, memory_length=20)
    for cuts in ([60], [25, 35], [50, 9, 1]):
        x = torch.randn(60, 1, 3, dtype=torch.float64, requires_grad=True)
        state = module.initial_state(1)
        for part in x.split(cuts):
            y, state = form(module, part, never(len(part), 1), state)
        (gradient,) = torch.autograd.grad(y[-1].sum(), x)
        reached = gradient[:, 0].abs().amax(1) > 1e-12
        assert reached.nonzero().flatten().tolist() == list(range(39, 60))


def test_a_state_without_graph_bounds_the_gradient():
    module = small(memory_length=8)
    x = torch.randn(20, 2, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        _, state = module.scan(x[:10], never(10, 2), module.initial_state(2))
    y, last = module.scan(x[10:], never(10, 2), state)
    (gradient,) = torch.autograd.grad(y.sum() + last.inputs.square().sum(), x)
    assert not gradient[:10].any()
    assert (gradient[10:].abs().amax(2) > 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("memory_length", [4, 17])
def test_only_those_who_see_it_hear_of_nan(bad, memory_length):
    """In one layer NaN reaches those whose window holds it, and stops at the end of its episode, as step by step."""
    module = small(num_layers=1, memory_length=memory_length)
    x, start = torch.randn(60, 2, 3, dtype=torch.float64), never(60, 2)
    start[26, 0] = True
    clean, clean_last = module.scan(x, start, module.initial_state(2))
    x[20, 0] = bad
    x[58, 1] = bad
    y, last = module.scan(x, start, module.initial_state(2))
    slow, slow_last = Memory.scan(module, x, start, module.initial_state(2))
    broken = y.isnan().any(2)
    assert broken[:, 0].nonzero().flatten().tolist() == list(range(20, min(26, 20 + memory_length + 1)))
    assert broken[:, 1].nonzero().flatten().tolist() == [58, 59]
    assert torch.equal(slow.isnan().any(2), broken)
    assert_close(y[~broken], clean[~broken], **tolerance(torch.float64))
    assert_close(tuple(last), tuple(slow_last), equal_nan=True, **tolerance(torch.float64))
    assert_close(last.inputs[0], clean_last.inputs[0], **tolerance(torch.float64))


def test_memory_of_a_scan_is_linear_in_time():
    """Bytes that the backward pass keeps, for a window that stays."""
    module = small(memory_length=16)

    def kept(T):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module.scan(torch.randn(T, 2, 3, dtype=torch.float64), never(T, 2), module.initial_state(2))
        return total

    assert kept(1024) < 2.1 * kept(512)
    assert kept(1024) > 1.5 * kept(512)


def test_state_counts_the_inputs_of_the_episode():
    module = small(memory_length=4)
    start = never(9, 3)
    start[7, 1] = start[0, 2] = True
    _, state = module.scan(torch.randn(9, 3, 3, dtype=torch.float64), start, module.initial_state(3))
    assert state.filled.tolist() == [4, 2, 4]
    assert not state.inputs[1, :, :2].any()
    assert (state.inputs[1, :, 2:].abs().amax(2) > 0).all()
    _, early = module.scan(torch.randn(3, 3, 3, dtype=torch.float64), never(3, 3), module.initial_state(3))
    assert early.filled.tolist() == [3, 3, 3]
    assert early.inputs.shape == (3, 2, 4, 6)


@pytest.mark.parametrize("T", [6, 23, 40])
def test_diagnostics_show_the_attention(T):
    module = small(memory_length=5)
    x = torch.randn(T, 2, 3, dtype=torch.float64)
    module.scan(x, never(T, 2), module.initial_state(2))
    expected = torch.zeros(6, dtype=torch.float64)
    for b in range(2):
        for weights in reference(module, x[:, b].numpy(), 5)[1]:
            for d in range(6):
                expected[d] += np.trace(weights, -d, 1, 2).sum() / (T * 2 * 2 * 2)
    shown = module.diagnostics()
    assert_close(shown["attention"], expected, **tolerance(torch.float64))
    assert_close(shown["attention"].sum().item(), 1.0)
    assert shown["gate_openness"].shape == (T, 2, 4)
    assert ((shown["gate_openness"] > 0) & (shown["gate_openness"] < 1)).all()


def test_odd_widths():
    module = small(output_size=5, num_heads=1)
    y, _ = module.scan(torch.randn(8, 2, 3, dtype=torch.float64), never(8, 2), module.initial_state(2))
    assert y.shape == (8, 2, 5)


def test_wrong_arguments_are_refused():
    with pytest.raises(
        ValueError, match="num_heads must be a divisor of output_size=128, such as 1, 2, 4, 8, 16, 32, 64; got 3"
    ):
        GTrXL(4, num_heads=3)
    for argument in ("num_layers", "num_heads", "memory_length"):
        with pytest.raises(ValueError, match=f"{argument} must be an integer, 1 to 1,048,576; got 0"):
            GTrXL(4, **{argument: 0})


@FORMS
def test_a_mask_is_handed_on_from_scan_to_scan(form):
    """Any cut of an episode, through blocks that are full and blocks that are not, gives what one pass gives."""
    module = small(memory_length=4, selective=True)
    x = torch.randn(60, 2, 3, dtype=torch.float64)
    whole, last = GTrXL.scan(module, x, never(60, 2), module.initial_state(2))
    state, ys = module.initial_state(2), []
    for part in x.split([2, 17, 33, 8]):
        y, state = form(module, part, never(len(part), 2), state)
        ys.append(y)
    assert_close(torch.cat(ys), whole, **tolerance(torch.float64))
    assert_close(tuple(state), tuple(last), **tolerance(torch.float64))
    assert (last.masked > 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_norm_finds_in_what_is_standardised_what_it_finds_in_the_input(dtype):
    """At every scale, though what is left of the scale is rounding where it is large."""
    norm = torch.nn.LayerNorm(6, dtype=dtype)
    for scale in (0, 1e-4, 1e-2, 1, 100, 1e6):
        x = scale * (torch.randn(20, 6, dtype=dtype) + 1)
        assert_close(norm(centred(standardise(x))), norm(x), **tolerance(dtype))
    x = 0.1 * torch.randn(20, 6, dtype=dtype)
    assert_close(centred(standardise(x)), x - x.mean(1, keepdim=True), rtol=1e-2, atol=1e-6)
