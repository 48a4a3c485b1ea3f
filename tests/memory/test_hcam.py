"""HCAM against a plain loop over lists of chunks, and what its paper promises of storage and reading."""

import math

import numpy as np
import pytest
import torch
from conftest import tolerance
from small import FEATURES, make_small
from torch.nn import functional
from torch.testing import assert_close

from palimpsest.memory import Memory
from palimpsest.memory.hcam import HCAM
from palimpsest.memory.parts.chunk_plan import plan_chunks
from palimpsest.memory.parts.surprise import Surprises, borders

EXACT = tolerance(torch.float64)


def hcam(**arguments):
    sizes = dict(output_size=6, chunk_size=3, num_chunks=4, top_k=2, num_layers=2, num_heads=2) | arguments
    module = HCAM(FEATURES, **sizes).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def nowhere(T, B=1):
    return torch.zeros(T, B, dtype=torch.bool)


def scan(module, x, start=None):
    """Scan x [T, B, F] from the initial state: y and the last state."""
    start = nowhere(*x.shape[:2]) if start is None else start
    return module.scan(x, start, module.initial_state(x.shape[1]))


def heads_attend(query, content, key_map, value_map, heads):
    """Multi-head attention of one query [D] over content [M, D], head by head."""
    reads = []
    for wq, wk, wv in zip(query.chunk(heads), key_map.chunk(heads), value_map.chunk(heads)):
        scores = torch.stack([wq @ (wk @ c) for c in content]) / math.sqrt(len(wq))
        weights = scores.exp() / scores.exp().sum()
        reads.append(sum(w * (wv @ c) for w, c in zip(weights, content)))
    return torch.cat(reads)


def surprising(x, C, gamma):
    """The inputs of x [T, F] that surprise."""
    past, found = [], []
    for t in range(1, len(x)):
        s = ((x[t] - x[t - 1]) ** 2).mean()
        if len(past) > 1:
            weights = (1 - 1 / C) ** np.arange(len(past))[::-1]
            mean = np.average(past, weights=weights)
            deviation = np.sqrt(np.average((np.array(past) - mean) ** 2, weights=weights))
            found += [t] if s > 1.01 * mean + gamma * deviation else []
        past.append(s)
    return found


def plain_hcam(module, x):
    """One episode x [T, F] by the module's equations: chunks are lists, nothing is batched."""
    running = [[] for _ in module.layers]
    finished = [[] for _ in module.layers]
    code, D, ys = module.sinusoid, module.output_size, []
    events = surprising(x.detach().numpy(), module.chunk_size, module.gamma) if module.borders == "surprise" else []

    def close(run, chunks):
        chunks.append([c.detach() for c in run] if module.detach else list(run))
        run.clear()
        del chunks[: -module.num_chunks]

    for t, x_t in enumerate(x):
        x_t = module.embed(x_t)
        for run, chunks in zip(running, finished):
            if t in events and run:
                close(run, chunks)
        for layer, run, chunks in zip(module.layers, running, finished):
            h = layer.norm(x_t)
            run.append(h)
            local = heads_attend(
                layer.local_query.weight @ (h + code[len(run) - 1]),
                [c + code[i] for i, c in enumerate(run)],
                layer.local_key.weight,
                layer.local_value.weight,
                module.num_heads,
            )
            mem = torch.zeros(D, dtype=h.dtype)
            if chunks:
                query = layer.score_query.weight @ h
                scores = [query @ (layer.score_key.weight @ (sum(c) / len(c))) / math.sqrt(D) for c in chunks]
                best = sorted(range(len(chunks)), key=lambda m: (-scores[m].item(), -m))[: module.top_k]
                total = sum(scores[m].exp() for m in best)
                for m in best:
                    content = [c + code[i] for i, c in enumerate(chunks[m])]
                    read = heads_attend(
                        layer.query.weight @ h, content, layer.key.weight, layer.value.weight, module.num_heads
                    )
                    mem = mem + scores[m].exp() / total * read
            x_t = layer.output(x_t, local, mem)
            if len(run) == module.chunk_size:
                close(run, chunks)
        ys.append(x_t)
    return torch.stack(ys)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        dict(chunk_size=1),
        dict(top_k=4, num_layers=1),
        dict(chunk_size=4, top_k=1),
        dict(chunk_size=4, borders="surprise", gamma=0.3),
    ],
)
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_read_equals_a_plain_loop_over_chunks(form, sizes, detach):
    module = hcam(detach=detach, **sizes)
    x = torch.randn(23, 1, FEATURES, dtype=torch.float64, requires_grad=True)
    run = module.scan if form == "scan" else lambda *arguments: Memory.scan(module, *arguments)
    y, _ = run(x, nowhere(23), module.initial_state(1))
    expected = plain_hcam(module, x[:, 0])
    assert_close(y[:, 0], expected, **EXACT)
    weigh = torch.randn_like(expected)
    to = [x, *module.parameters()]
    found = torch.autograd.grad((y[:, 0] * weigh).sum(), to)
    assert_close(found, torch.autograd.grad((expected * weigh).sum(), to), **EXACT)


@pytest.mark.parametrize("form", ["scan", "steps"])
def test_one_chunk_is_ordinary_attention_over_it(form):
    module = hcam(num_chunks=1, top_k=1, num_layers=1)
    (layer,) = module.layers
    x = torch.randn(6, 1, FEATURES, dtype=torch.float64)
    run = module.scan if form == "scan" else lambda *arguments: Memory.scan(module, *arguments)
    y, _ = run(x, nowhere(6), module.initial_state(1))
    embedded = module.embed(x[:, 0])
    h = layer.norm(embedded)

    def attend(query, content, mask):
        """Rows [T, D] attend to content [M, D] by torch's own attention."""
        maps = (layer.local_key, layer.local_value) if mask is not None else (layer.key, layer.value)
        q, k, v = (t.view(len(t), 2, 3).transpose(0, 1) for t in (query, *(m(content) for m in maps)))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1).flatten(1)

    first, second = h[:3] + module.sinusoid, h[3:] + module.sinusoid
    causal = torch.ones(3, 3).tril() > 0
    local = attend(layer.local_query(second), second, causal)
    mem = attend(layer.query(h[3:]), first, None)
    assert_close(y[3:, 0], layer.output(embedded[3:], local, mem), **EXACT)


def test_oldest_chunk_leaves():
    """With two slots of 3 inputs, x[0] is readable until its chunk is overwritten after step 8."""
    module = hcam(num_chunks=2, top_k=2, num_layers=1)
    x = torch.randn(15, 1, FEATURES, dtype=torch.float64)
    moved = x.clone()
    moved[0] += 1
    change = (scan(module, moved)[0] - scan(module, x)[0]).abs().amax((1, 2))
    assert (change[:9] > 1e-9).all()
    assert (change[9:] == 0).all()


@pytest.mark.parametrize("form", ["scan", "steps"])
def test_slots_hold_the_newest_chunks(form):
    """After 3 * 5 + 1 inputs the third to fifth chunk stand in slots 2, 0, 1, and one input is running."""
    module = hcam(num_chunks=3, num_layers=1)
    x = torch.randn(16, 1, FEATURES, dtype=torch.float64)
    run = module.scan if form == "scan" else lambda *arguments: Memory.scan(module, *arguments)
    _, state = run(x, nowhere(16), module.initial_state(1))
    h = module.layers[0].norm(module.embed(x[:, 0]))
    assert state.steps.tolist() == [16]
    for slot, number in ((2, 2), (0, 3), (1, 4)):
        chunk = h[3 * number : 3 * number + 3]
        assert_close(state.chunks[0, 0, slot], chunk, **EXACT)
        assert_close(state.summaries[0, 0, slot], chunk.mean(0), **EXACT)
    assert_close(state.running[0, 0], torch.stack([h[15], h[0] * 0, h[0] * 0]), **EXACT)


@pytest.mark.parametrize("form", ["scan", "steps"])
def test_chunk_is_readable_from_the_next_step(form):
    """What mem adds is zero through the first chunk's last step and not after it."""
    module = hcam(num_layers=1)
    x = torch.randn(6, 1, FEATURES, dtype=torch.float64)
    run = module.scan if form == "scan" else lambda *arguments: Memory.scan(module, *arguments)
    y, _ = run(x, nowhere(6), module.initial_state(1))
    with torch.no_grad():
        module.layers[0].merge.weight[:, 6:] = 0
    without, _ = run(x, nowhere(6), module.initial_state(1))
    assert torch.equal(y[:3], without[:3])
    assert ((y[3:] - without[3:]).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("form", ["scan", "steps", "split"])
def test_gradients_stop_at_stored_chunks_with_detach(form, detach):
    """y[7] is in the third chunk: with detach it answers to x[6:8] alone, though it reads the chunks before."""
    module = hcam(detach=detach)
    x = torch.randn(8, 1, FEATURES, dtype=torch.float64, requires_grad=True)
    if form == "split":
        _, state = module.scan(x[:4], nowhere(4), module.initial_state(1))
        y, _ = module.scan(x[4:], nowhere(4), state)
    else:
        run = module.scan if form == "scan" else lambda *arguments: Memory.scan(module, *arguments)
        y, _ = run(x, nowhere(8), module.initial_state(1))
    (gradient,) = torch.autograd.grad(y[-1].square().sum(), x)
    reached = gradient.abs().amax((1, 2)) > 1e-12
    assert reached.tolist() == [not detach] * 6 + [True] * 2
    if detach:
        assert gradient[:6].count_nonzero() == 0


def test_k_eff_is_reached_and_not_exceeded():
    """With every chunk read, the last step of a chunk answers to the input K_eff - 1 before it, the next step not."""
    module = hcam(num_chunks=2, top_k=2)
    K, K_eff = module.context()
    assert (K, K_eff) == (3, 15)
    x = torch.randn(16, 1, FEATURES, dtype=torch.float64)
    moved = x.clone()
    moved[0] += 1
    change = (scan(module, moved)[0] - scan(module, x)[0]).abs().amax((1, 2))
    assert change[14] > 1e-12
    assert change[15] == 0


def test_equal_scores_choose_the_newest():
    """Without a score map all chunks tie: scan and steps read the top_k newest, in equal shares."""
    module = hcam(num_layers=1)
    with torch.no_grad():
        module.layers[0].score_query.weight.zero_()
    x = torch.randn(20, 2, FEATURES, dtype=torch.float64)
    y, _ = scan(module, x)
    image = module.diagnostics()["chunks_read_0"]
    expected = torch.zeros(20, 4, dtype=torch.float64)
    expected[3:6, 0] = 1
    expected[6:, :2] = 0.5
    assert_close(image, expected, **EXACT)
    assert_close(y, Memory.scan(module, x, nowhere(20, 2), module.initial_state(2))[0], **EXACT)


def test_diagnostics_measure_the_reads():
    module = hcam(num_layers=1)
    assert module.diagnostics() == {}
    with torch.no_grad():
        module.layers[0].score_query.weight.zero_()
    scan(module, torch.randn(9, 2, FEATURES, dtype=torch.float64))
    shown = module.diagnostics()
    # Of 9 steps 3 have nothing to read, 3 read one chunk and 3 read two in equal shares.
    assert shown["read_entropy"].item() == pytest.approx(math.log(2) / 2)
    assert shown["read_age"].item() == pytest.approx(0.25)
    scan(module, torch.randn(2, 2, FEATURES, dtype=torch.float64))
    assert module.diagnostics()["read_entropy"].item() == 0


def test_nan_input_ends_with_its_episode():
    module = hcam()
    x = torch.randn(14, 2, FEATURES, dtype=torch.float64)
    start = nowhere(14, 2)
    start[5, 0] = True
    clean, clean_state = scan(module, x, start)
    x[3, 0] = math.nan
    y, state = scan(module, x, start)
    assert y[3:5, 0].isnan().any()
    assert_close(y[5:, 0], clean[5:, 0], **EXACT)
    assert_close(y[:, 1], clean[:, 1], **EXACT)
    assert_close(tuple(state), tuple(clean_state), **EXACT)


def test_memory_is_linear_in_time():
    """What the backward pass keeps grows by the same number of bytes per step, however long the scan is."""
    module = make_small("hcam")

    def kept(T):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        x = torch.randn(T, 2, FEATURES, dtype=torch.float64)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            module.scan(x, nowhere(T, 2), module.initial_state(2))
        return total

    short, middle, long = kept(60), kept(240), kept(960)
    assert (long - middle) / 720 == pytest.approx((middle - short) / 180, rel=0.01)


def test_plan_of_a_worked_example():
    """The table in memory.parts.chunk_plan."""
    start = torch.tensor([0, 0, 0, 0, 0, 1, 0, 0, 0])[:, None] > 0
    plan = plan_chunks(start, torch.tensor([1]), torch.tensor([1]), C=3, N=2)
    assert plan.place[0, 2:].tolist() == [1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert plan.finished.tolist() == [1, 1, 2, 2, 2, 0, 0, 0, 1]
    assert plan.local_length[:, 0].tolist() == [2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert plan.filled[0, :, 0].tolist() == [False, True]
    assert plan.rest.tolist() == plan.total.tolist() == [1]
    assert not plan.kept.item()


def test_plan_with_borders_that_come_sooner():
    """A chunk of two is closed before the scan's first input; then borders after one and after two inputs."""
    border = torch.tensor([1, 1, 0, 1, 0, 0, 0])[:, None] > 0
    plan = plan_chunks(border & False, torch.tensor([2]), torch.tensor([1]), C=3, N=2, opens=border)
    assert plan.place[0].tolist() == [0, 1, 0, 0, 1, 0, 1, 2, 0]
    assert plan.finished.tolist() == [2, 2, 2, 2, 2, 2, 2]
    assert plan.oldest.tolist() == [0, 1, 1, 2, 2, 2, 3]
    assert plan.length.tolist() == [3, 2, 1, 2, 3]
    # one stored chunk of three tokens, then tokens 0 and 1 before the scan and its inputs from 2 on
    assert plan.content.view(5, 3).tolist() == [[0, 1, 2], [3, 4, 4], [5, 5, 5], [6, 7, 7], [8, 9, 10]]
    assert (plan.rest.item(), plan.total.item()) == (1, 5)


def test_what_changes_more_than_lately_begins_an_event():
    """Steps of one size surprise nobody, whatever their rounding errors; one of another size does, once."""
    x = torch.arange(12.0)[:, None, None] * 0.1 + torch.where(torch.arange(12) > 6, 5.0, 0.0)[:, None, None]
    none = torch.zeros(1, dtype=torch.int64)
    fresh = Surprises(none, torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))
    found, after = borders(x, nowhere(12), fresh, 8, 1.0)
    assert found[:, 0].nonzero()[:, 0].tolist() == [7]
    assert after.steps.tolist() == [12]
    assert after.last.item() == x[-1].item()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(top_k=5), r"top_k must be num_chunks=4 at most; got 5"),
        (dict(num_heads=4), r"num_heads must be a divisor of output_size=6, such as 1, 2, 3, 6; got 4"),
        (dict(chunk_size=0), r"chunk_size must be an integer, 1 to 1,048,576; got 0"),
        (dict(num_chunks=0), r"num_chunks must be .*got 0"),
        (dict(top_k=0), r"top_k must be .*got 0"),
        (dict(num_layers=0), r"num_layers must be .*got 0"),
        (dict(num_heads=0), r"num_heads must be .*got 0"),
        (dict(output_size=-6), r"output_size must be .*got -6"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        hcam(**arguments)
