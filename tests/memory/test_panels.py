"""What memories show of themselves: panels of a step, and what weighs in a read."""

import pytest
import torch
from small import FEATURES, SMALL, cases, make_small

from palimpsest import memory
from palimpsest.memory import gla, linear, mlstm
from palimpsest.memory.kernels.arithmetic.dispatch import torch_only
from palimpsest.memory.kernels.delta import layer as delta_layer

STEPS = 14


def walk(made, steps=STEPS):
    """A memory's panels at every step of an episode, and the states before and after."""
    state = made.initial_state(1)
    with torch.no_grad(), torch_only():
        for t in range(steps):
            start = torch.tensor([[t == 0]])
            place = torch.tensor([[t % made.num_places]]) if made.num_places > 1 else None
            strategy = torch.zeros(1, 1, dtype=torch.int64)
            _, after = made.scan(torch.randn(1, 1, FEATURES, dtype=made.dtype), start, state, place, strategy)
            yield made.panels(state, after), state, after
            state = after


@pytest.mark.parametrize("case", cases())
def test_panels_keep_their_shapes_and_their_ranges(case):
    first = None
    for panels, _, _ in walk(make_small(case)):
        shapes = [(panel.title, panel.values.shape, panel.span, panel.names) for panel in panels]
        first = first or shapes
        assert shapes == first
        for panel in panels:
            assert panel.values.ndim in (1, 2)
            assert panel.values.numel()
            assert not panel.values.requires_grad
            assert len(panel.names) in (0, len(panel.values))
            if panel.span is not None:
                low, high = panel.span
                assert panel.values.min() >= low - 1e-9, panel.title
                assert panel.values.max() <= high + 1e-9, panel.title
    assert first or case == "none"


def test_cells_show_their_units():
    *_, (panels, _, after) = walk(make_small("lstm"))
    assert [panel.title for panel in panels] == ["state h", "state c"]
    torch.testing.assert_close(panels[1].values, after.c[0].flatten())


def test_tables_of_other_memories_show_their_lengths():
    *_, (panels, _, after) = walk(make_small("gla"))
    shown = {panel.title: panel.values for panel in panels}
    torch.testing.assert_close(shown["state S, lengths"], after.S[0].square().sum((2, 3)).sqrt().flatten())
    assert shown["keep"].shape == (2 * 2 * 3,)


def test_rewrite_shows_gates_and_tables():
    made = make_small("rewrite")
    *_, (panels, _, after) = walk(made)
    keep, rewrite, tables = (panel.values for panel in panels)
    torch.testing.assert_close(keep, made.diagnostics()["keep"][-1, 0])
    torch.testing.assert_close(rewrite, made.diagnostics()["rewrite"][-1, 0])
    assert panels[0].names[2] == "layer 2, head 1"
    # two layers of two heads, tables of 5 x 4, and lines between them
    assert tables.shape == (2 * 5 + 1, 2 * 4 + 1)
    torch.testing.assert_close(tables[6:, 5:], after.table[0, 1, 1])
    assert tables[5].isnan().all()


def test_hcam_shows_the_chunks_it_reads():
    for t, (panels, _, _) in enumerate(walk(make_small("hcam"))):
        read = panels[0].values.view(2, 2)
        # chunks of 3 inputs; one chunk is read, of all weight
        torch.testing.assert_close(read.sum(1), torch.full((2,), float(t >= 3), dtype=read.dtype))
        assert t >= 6 or (read[:, 1] == 0).all(), "an older chunk than the newest is not there yet"


def test_sat_shows_what_it_drops():
    for t, (panels, _, _) in enumerate(walk(make_small("sat"))):
        occupancy, dropped, age = (panel.values for panel in panels)
        # fifo over 6 slots, and places in turns
        assert occupancy.sum() * 6 == pytest.approx(min(t + 1, 6))
        assert dropped.tolist() == ([0, 0] if t < 6 else [6 * (t % 2 == 0), 6 * (t % 2 == 1)])
        assert sorted(age[~age.isnan()].tolist()) == list(range(min(t + 1, 6)))


def test_a_new_episode_drops_nothing():
    made = make_small("sat")
    *_, (_, _, full) = walk(made)
    with torch.no_grad():
        _, after = made.scan(
            torch.zeros(1, 1, FEATURES, dtype=made.dtype), torch.tensor([[True]]), full, full.place[:1, :1]
        )
    assert made.panels(full, after)[1].values.tolist() == [0, 0]


def test_ffm_sorts_by_half_life():
    made = make_small("ffm")
    *_, (panels, _, after) = walk(made)
    order = made.alpha.abs().argsort(descending=True)
    lengths = after.S[0].square().sum((1, 2)).sqrt()[order]
    torch.testing.assert_close(panels[0].values, lengths.detach())
    assert [float(name.split()[1]) for name in panels[0].names] == sorted(float(n.split()[1]) for n in panels[0].names)


def test_slots_are_read_with_weights_that_sum_to_one():
    for t, (panels, _, _) in enumerate(walk(make_small("elmur"))):
        read = panels[0].values.view(2, 4)
        torch.testing.assert_close(read.sum(1), torch.ones(2, dtype=read.dtype))
        assert (read[:, : max(0, 3 - t)] == 0).all(), "slots stand oldest first, and the oldest are still empty"


LINEAR = ["rewrite", "linear", "gla", "mlstm"]


def test_only_linear_memories_tell_what_weighs_in_a_read():
    x, start = torch.randn(3, 2, FEATURES, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.bool)
    start[0] = True
    found = {}
    for name in memory.names():
        if name != "sat":
            made = make_small(name)
            with torch.no_grad(), torch_only():
                found[name] = made.read_weights(x, start, made.initial_state(2))
    assert [name for name, weights in found.items() if weights is not None] == LINEAR
    assert all(found[name].shape == (2, 4, 3, 3) for name in LINEAR)


class Reads:
    """What a memory's layers write and read in a scan, with the value of step `without` taken out; None for none."""

    def __init__(self, monkeypatch):
        self.without, self.values, self.found = None, [], []
        for module, cls in ((linear, "LinearLayer"), (gla, "GLALayer"), (mlstm, "MLSTMLayer")):
            layer = getattr(module, cls)
            monkeypatch.setattr(layer, "tokens", self.write(layer.tokens))
        monkeypatch.setattr(linear.LinearLayer, "mean", self.read(linear.LinearLayer.mean, lambda layer, r, w: r / w))
        monkeypatch.setattr(gla.GLALayer, "leaving", self.read(gla.GLALayer.leaving, lambda layer, r, x: r))
        normed = self.read(mlstm.MLSTMLayer.leaving, lambda layer, r, n, m, q, x: r / layer.divisor(n, m, q))
        monkeypatch.setattr(mlstm.MLSTMLayer, "leaving", normed)
        monkeypatch.setattr(delta_layer, "gated_delta_scan", self.delta(delta_layer.gated_delta_scan))

    def erased(self, v):
        self.values.append(v)
        return v if self.without is None else v.index_fill(0, torch.tensor([self.without]), 0)

    def write(self, tokens):
        def run(layer, x):
            q, k, v, *more = tokens(layer, x)
            return q, k, self.erased(v), *more

        return run

    def read(self, leave, what):
        def run(layer, *arguments):
            self.found.append(what(layer, *arguments))
            return leave(layer, *arguments)

        return run

    def delta(self, scan):
        def run(q, k, v, *arguments, **more):
            read, last = scan(q, k, self.erased(v), *arguments, **more)
            self.found.append(read)
            return read, last

        return run

    def of(self, made, x, start, without=None):
        self.without, self.values, self.found = without, [], []
        with torch.no_grad(), torch_only():
            made.scan(x, start, made.initial_state(x.shape[1]))
        return self.values, self.found


@pytest.mark.parametrize("name", LINEAR)
def test_a_read_is_the_weighted_sum_of_what_was_written(name, monkeypatch):
    made = make_small(name)
    x, start = torch.randn(STEPS, 2, FEATURES, dtype=torch.float64), torch.zeros(STEPS, 2, dtype=torch.bool)
    start[0] = start[9, 1] = True
    with torch.no_grad(), torch_only():
        weights = made.read_weights(x, start, made.initial_state(2))
    assert (weights.triu(1) == 0).all()
    assert (weights[1, :, 9:, :9] == 0).all(), "another episode's writes are gone"
    values, found = Reads(monkeypatch).of(made, x, start)
    v, r = torch.cat(values, 2), torch.cat(found, 2)
    torch.testing.assert_close(torch.einsum("bnts,sbnv->tbnv", weights, v), r)


@pytest.mark.parametrize("name", LINEAR)
def test_a_weight_is_what_deleting_the_write_takes_out_of_the_read(name, monkeypatch):
    made = memory.make(name, FEATURES, **{**SMALL[name], "num_layers": 1}).double()
    x, start = torch.randn(STEPS, 2, FEATURES, dtype=torch.float64), torch.zeros(STEPS, 2, dtype=torch.bool)
    start[0] = True
    with torch.no_grad(), torch_only():
        weights = made.read_weights(x, start, made.initial_state(2))
    reads = Reads(monkeypatch)
    (v,), (whole,) = reads.of(made, x, start)
    for s in (0, 5, STEPS - 2):
        _, (without,) = reads.of(made, x, start, without=s)
        taken = weights[..., s].permute(2, 0, 1).unsqueeze(-1) * v[s]
        torch.testing.assert_close(whole - without, taken)
        assert (taken[s + 1] != 0).any()


def test_weights_continue_where_an_episode_does():
    """With a state that is not fresh, clocks and normalisers are those of the whole episode."""
    for name in LINEAR:
        made = make_small(name)
        x, start = torch.randn(STEPS, 1, FEATURES, dtype=torch.float64), torch.zeros(STEPS, 1, dtype=torch.bool)
        start[0] = True
        with torch.no_grad(), torch_only():
            whole = made.read_weights(x, start, made.initial_state(1))
            _, state = made.scan(x[:5], start[:5], made.initial_state(1))
            later = made.read_weights(x[5:], start[5:], state)
        torch.testing.assert_close(later[:, :2], whole[:, :2, 5:, 5:], msg=name)
