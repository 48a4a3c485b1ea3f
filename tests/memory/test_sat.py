"""The Spatially-Aware Transformer against plain Python: which entries are kept, and what reading them gives."""

import math

import numpy as np
import pytest
import torch
from conftest import tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from palimpsest.memory import Memory
from palimpsest.memory.parts.allocation import Slots, allocate, reads
from palimpsest.memory.parts.place_attention import time_code
from palimpsest.memory.sat import STRATEGIES, SpatiallyAwareTransformer, StrategyValues

FEATURES = 5
EXACT = tolerance(torch.float64)


def keep(entries, capacity, places, strategy):
    """The reference: `entries` are (step, place) in order of arrival, the last one incoming. What is dropped."""
    if len(entries) <= capacity:
        return None
    held, visits = entries[:-1], places[:-1]
    if strategy == "fifo":
        return held[0]
    if strategy == "lifo":
        return held[-1]
    sign = 1 if strategy == "lvfo" else -1
    chosen = min({p for _, p in held}, key=lambda p: (sign * visits.count(p), p))
    return next(entry for entry in held if entry[1] == chosen)


def expected_held(place, start, strategy, capacity, num_places, by_place):
    """For one row: the steps of the sequence whose entries are readable at each step; `strategy` [T] names."""
    held, visited, now, sets = [], [], strategy[0], []
    for t, p in enumerate(place):
        if start[t]:
            held, visited = [], []
        if not visited:
            now = strategy[t]
        held.append((t, p))
        visited.append(p)
        own = [entry for entry in held if entry[1] == p] if by_place else held
        dropped = keep(own, capacity // num_places if by_place else capacity, visited, now)
        held = [entry for entry in held if entry != dropped]
        sets.append({t for t, _ in held})
    return sets


def found_held(place, start, strategy, capacity, num_places, by_place, chunk):
    """The same from the kernels, for all rows, with an empty state: [T][B] sets, and the slots at the end."""
    T, B = place.shape
    S = capacity // num_places * num_places if by_place else capacity
    slots = Slots(
        np.full((B, S), -1),
        *(np.zeros(size, int) for size in ((B, S), (B, num_places), B, B, (B, S), (B, S))),
    )
    slot, _ = allocate(slots, place, start, strategy, by_place)
    plan = reads(np.zeros((B, S), bool), slot, start, chunk)
    step_of = {B * S + (t // chunk * B + b) * chunk + t % chunk: t for t in range(T) for b in range(B)}
    sets = [[set() for _ in range(B)] for _ in range(T)]
    for t in range(T):
        for b in range(B):
            n, i = divmod(t, chunk)
            for key in np.flatnonzero(plan.readable[n, b, i]):
                row = plan.held[n, b, key] if key < S else B * S + (n * B + b) * chunk + key - S
                sets[t][b].add(step_of[row])
    last = [{step_of[row] for row, time in zip(plan.last[b], slots.time[b]) if time >= 0} for b in range(B)]
    return sets, last, slots


@st.composite
def walks(draw):
    """Places, starts, strategies, capacity, number of places, layout and chunk of a short batch."""
    T, B, P = draw(st.integers(1, 30)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    by_place = draw(st.booleans())
    capacity = draw(st.integers(P if by_place else 1, 9))
    stay = draw(st.sampled_from([0.0, 0.7]))  # long stays make visits unequal
    place = rng.integers(P, size=(T, B))
    for t in range(1, T):
        place[t] = np.where(rng.random(B) < stay, place[t - 1], place[t])
    start = rng.random((T, B)) < draw(st.sampled_from([0.0, 0.1, 1.0]))
    strategy = rng.integers(2 if by_place else 4, size=(T, B))
    return place, start, strategy, capacity, P, by_place, draw(st.sampled_from([1, 4, 32]))


@settings(max_examples=200, deadline=None)
@given(walks())
def test_strategies_equal_the_plain_reference(walk):
    place, start, strategy, capacity, P, by_place, _ = walk
    found, last, slots = found_held(*walk)
    for b in range(place.shape[1]):
        names = [STRATEGIES[s] for s in strategy[:, b]]
        expected = expected_held(place[:, b].tolist(), start[:, b], names, capacity, P, by_place)
        assert [sets[b] for sets in found] == expected
        assert last[b] == expected[-1]
        begun = max([0, *np.flatnonzero(start[:, b])])
        assert sorted(slots.time[b][slots.time[b] >= 0]) == sorted(t - begun for t in expected[-1])
        assert slots.visits[b].tolist() == np.bincount(place[begun:, b], minlength=P).tolist()


@pytest.mark.parametrize(
    ("strategy", "dropped"),
    [("fifo", 0), ("lifo", 4), ("mvfo", 1), ("lvfo", 0)],
)
def test_a_worked_example(strategy, dropped):
    """Places 0 1 1 1 2, then 0 again with five slots: place 1 is the most visited; 0 and 2 tie as the least."""
    place = np.array([[0, 1, 1, 1, 2, 0]]).T
    start = np.zeros((6, 1), bool)
    chosen = np.full((6, 1), STRATEGIES.index(strategy))
    _, last, _ = found_held(place, start, chosen, 5, 3, False, 4)
    assert last[0] == set(range(6)) - {dropped}


def make(**kwargs):
    """A small memory in float64 whose scores differ enough for attention to choose."""
    arguments = dict(output_size=8, num_places=3, capacity=7, num_layers=2, num_heads=2) | kwargs
    module = SpatiallyAwareTransformer(FEATURES, **arguments).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def sequence(module, T, B, starts=0.05):
    x = torch.randn(T, B, FEATURES, dtype=torch.float64)
    return x, torch.rand(T, B) < starts, torch.randint(module.num_places, (T, B)), torch.randint(4, (T, B))


def plain_read(module, query, entries, top_k):
    """One step: `query` e [D], entries as (m [D], age, place), the own one included; every number formed alone."""
    rates = 1e4 ** (-torch.arange(8, dtype=torch.float64) / 8)
    M = [torch.cat([m, torch.stack([(age * rates).sin(), (age * rates).cos()], -1).flatten()]) for m, age, _ in entries]
    places = sorted({p for _, _, p in entries}) if top_k else [0]
    h = query
    for layer in module.layers:
        n = layer.norm(h)
        groups = [[M[i] for i, entry in enumerate(entries) if not top_k or entry[2] == p] for p in places]
        shares = torch.ones(1, dtype=torch.float64)
        if top_k:
            question = layer.place_query(n)
            scores = torch.stack([question @ layer.place_key(sum(g) / len(g)) for g in groups]) / math.sqrt(len(n))
            best = sorted(range(len(groups)), key=lambda i: -scores[i])[:top_k]
            groups, shares = [groups[i] for i in best], scores[best].softmax(0)
        read = 0
        for group, share in zip(groups, shares):
            q, size = layer.query(n), len(n) // layer.num_heads
            heads = []
            for k in range(layer.num_heads):
                part = slice(k * size, (k + 1) * size)
                scores = torch.stack([q[part] @ layer.key(entry)[part] for entry in group]) / math.sqrt(size)
                weights = scores.softmax(0)
                heads.append(sum(w * layer.value(entry)[part] for w, entry in zip(weights, group)))
            read = read + share * torch.cat(heads)
        h = h + layer.out(read)
        h = h + layer.mlp(layer.norm_mlp(h))
    return h


@pytest.mark.parametrize(
    ("kwargs", "top_k"),
    [
        *((dict(allocator=name), 0) for name in STRATEGIES[:4]),
        (dict(layout="place", allocator="lifo"), 0),
        (dict(layout="place", read="hierarchical", top_k=1), 1),
        (dict(layout="place", read="hierarchical", top_k=2, allocator="lifo"), 2),
        (dict(layout="place", read="hierarchical", top_k=9), 3),
    ],
    ids=str,
)
def test_reads_equal_plain_attention(kwargs, top_k):
    """Across several chunks, with episodes that begin inside them; top_k above the number of places means all."""
    module = make(**kwargs)
    T, B = 75, 2
    x, start, place, _ = sequence(module, T, B)
    start[0] = True
    with torch.no_grad():
        y, _ = module.scan(x, start, module.initial_state(B), place)
        e = module.encode(x) + module.place_embedding[place]
        m = module.norm(e)
        for b in range(B):
            names = [module.allocator] * T
            held = expected_held(
                place[:, b].tolist(), start[:, b], names, 7, 3, by_place=kwargs.get("layout") == "place"
            )
            for t in range(T):
                entries = [(m[s, b], t - s, place[s, b].item()) for s in sorted(held[t])]
                assert_close(y[t, b], plain_read(module, e[t, b], entries, top_k), **EXACT)


@pytest.mark.parametrize("allocator", ["lru", "lfu"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_what_is_attended_stays(form, allocator):
    """Step by step, with the scores of every input for every entry; over the borders of chunks."""
    module = make(allocator=allocator)
    T, B = 75, 2
    x, start, place, _ = sequence(module, T, B)
    start[0] = True
    run = module.scan if form == "scan" else lambda *arguments: Memory.scan(module, *arguments)
    with torch.no_grad():
        y, last = run(x, start, module.initial_state(B), place)
        e = module.encode(x) + module.place_embedding[place]
        m = module.norm(e)
        layer = module.layers[0]
        for b in range(B):
            uses = {}
            for t in range(T):
                uses = {} if start[t, b] else uses
                if len(uses) == 7:
                    by = 0 if allocator == "lru" else 1
                    del uses[min(uses, key=lambda s: (uses[s][by], s))]
                query = layer.query(layer.norm(e[t, b])).view(2, -1)
                held = {s: torch.cat([m[s, b], time_code(torch.tensor(t - s), x.dtype)]) for s in uses}
                scores = {s: (query * layer.key(entry).view(2, -1)).sum().item() for s, entry in held.items()}
                if scores:
                    best = max(scores, key=scores.get)
                    uses[best] = (t, uses[best][1] + 1)
                uses[t] = (t, 0)
                entries = [(m[s, b], t - s, place[s, b].item()) for s in sorted(uses)]
                assert_close(y[t, b], plain_read(module, e[t, b], entries, 0), **EXACT)
            assert sorted(last.attentions[b].tolist()) == sorted(count for _, count in uses.values())


def test_the_window_looks_the_same_at_any_time():
    """Ages are what is read: with fifo y depends on the last `capacity` inputs alone, whatever the step."""
    module = make()
    x, start, place, _ = sequence(module, 3000, 1, starts=0.0)
    with torch.no_grad():
        long, _ = module.scan(x, start, module.initial_state(1), place)
        short, _ = module.scan(x[-7:], start[-7:], module.initial_state(1), place[-7:])
    assert_close(long[-1], short[-1], **EXACT)


def test_no_place_is_place_zero():
    module = make(num_places=1)
    x, start, place, _ = sequence(module, 20, 2)
    y, _ = module.scan(x, start, module.initial_state(2), place)
    assert torch.equal(module.scan(x, start, module.initial_state(2))[0], y)
    slow, _ = Memory.scan(module, x, start, module.initial_state(2))
    assert_close(slow, y, **EXACT)


@pytest.mark.parametrize("kwargs", [{}, dict(layout="place", read="hierarchical")], ids=str)
def test_nan_of_a_finished_episode_reaches_no_gradient(kwargs):
    """The episode ends inside the sequence and inside a chunk; what it read is NaN, what follows is clean."""
    module = make(**kwargs)
    x, start, place, _ = sequence(module, 50, 2, starts=0.0)
    with torch.no_grad():
        _, state = module.scan(x, start, module.initial_state(2), place)
    state = state._replace(slots=torch.full_like(state.slots, math.nan).requires_grad_())
    start[20] = True

    def gradients(first, state):
        inputs = x[first:].clone().requires_grad_()
        y, _ = module.scan(inputs, start[first:], state, place[first:])
        y = y[20 - first :]
        loss = (y * torch.linspace(1, 2, y.numel()).view_as(y)).sum()
        return y.detach(), torch.autograd.grad(loss, [inputs, *module.parameters()])

    y, found = gradients(0, state)
    expected_y, expected = gradients(20, module.initial_state(2))
    assert_close(y, expected_y, **EXACT)
    assert not found[0][:20].any()
    assert_close(found[0][20:], expected[0], **EXACT)
    assert_close(found[1:], expected[1:], **EXACT)


def test_nan_input_of_a_finished_episode_reaches_no_later_input():
    module = make()
    x, start, place, _ = sequence(module, 30, 1, starts=0.0)
    start[20] = True
    x[10] = math.nan
    x.requires_grad_()
    y, _ = module.scan(x, start, module.initial_state(1), place)
    (gradient,) = torch.autograd.grad(y[20:].sum(), x)
    assert gradient[20:].isfinite().all()
    assert gradient[20:].any()


def test_whoever_reads_nan_gets_nan():
    module = make(capacity=3)
    x, start, place, _ = sequence(module, 12, 1, starts=0.0)
    x[4] = math.nan
    for y, _ in (
        module.scan(x, start, module.initial_state(1), place),
        Memory.scan(module, x, start, module.initial_state(1), place),
    ):
        assert y.isnan().all(-1).squeeze(1).nonzero().flatten().tolist() == [4, 5, 6]
        assert y.isnan().any(-1).sum() == 3


def test_diagnostics_show_occupancy_and_strategies():
    module = make(allocator="adaptive", capacity=4)
    assert module.diagnostics() == {}
    x, start, _, _ = sequence(module, 3, 2, starts=0.0)
    place = torch.tensor([[0, 2], [0, 2], [1, 2]])
    module.scan(x, start, module.initial_state(2), place, torch.tensor([[3, 1]] * 3))
    shown = module.diagnostics()
    assert shown["occupancy"].tolist() == [2 / 8, 1 / 8, 3 / 8]
    assert shown["strategy"].tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("kwargs", "K", "K_eff"),
    [
        (dict(), 7, 7),
        (dict(num_places=1, allocator="mvfo"), 7, 7),
        (dict(num_places=1, allocator="lifo"), 7, math.inf),
        (dict(allocator="mvfo"), 7, math.inf),
        (dict(num_places=1, allocator="lru"), 7, math.inf),
        (dict(allocator="adaptive"), 7, math.inf),
        (dict(layout="place"), 2, math.inf),
        (dict(layout="place", num_places=1), 7, 7),
    ],
    ids=str,
)
def test_context(kwargs, K, K_eff):
    assert make(**kwargs).context() == (K, K_eff)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(layout="place", capacity=2), "capacity >= num_places; got capacity=2, num_places=3"),
        (dict(layout="place", allocator="mvfo"), "'fifo' and 'lifo'; got 'mvfo'"),
        (dict(layout="place", allocator="adaptive"), "'fifo' and 'lifo'; got 'adaptive'"),
        (dict(read="hierarchical"), "needs layout='place'; got layout='flat'"),
        (dict(num_heads=3), "num_heads must be a divisor of output_size=8, such as 1, 2, 4, 8; got 3"),
        (dict(allocator="mru"), "'lvfo', 'lru', 'lfu', 'adaptive'; got 'mru'"),
        (dict(layout="grid"), "'flat', 'place'; got 'grid'"),
        (dict(read="deep"), "'flat', 'hierarchical'; got 'deep'"),
        (dict(num_places=0), "num_places must be .* got 0"),
        (dict(capacity=0), "capacity must be .* got 0"),
        (dict(top_k=0), "top_k must be .* got 0"),
        (dict(allocator="adaptive", num_tasks=0), "num_tasks must be .* got 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_bad_places_and_strategies_are_refused():
    module = make(allocator="adaptive")
    x, start, place, strategy = sequence(module, 6, 2, starts=0.0)
    state = module.initial_state(2)

    def refused(message, place, strategy):
        with pytest.raises(ValueError, match=message):
            module.scan(x, start, state, place, strategy)
        if place is None or place.ndim == 2:
            with pytest.raises(ValueError, match=message):
                Memory.scan(module, x, start, state, place, strategy)

    bad = place.clone()
    bad[3, 1] = 3
    refused("place must be 0 to num_places - 1 = 2; got 3 at input [03] of row 1", bad, strategy)
    refused("place must be 0 to .* got -1", place - 1, strategy)
    refused("place is missing: num_places=3", None, strategy)
    refused(r"place must be \[6, 2\] int64; got \[2\] int64", place[0], strategy)
    refused(r"place must be \[(6, )?2\] int64; got \[(6, )?2\] float32", place.float(), strategy)
    refused("strategy is missing: .*0 fifo, 1 lifo, 2 mvfo, 3 lvfo, 4 lru, 5 lfu", place, None)
    refused(
        "strategy must be one of 0 fifo, 1 lifo, 2 mvfo, 3 lvfo, 4 lru, 5 lfu; got 7 at input 0",
        place,
        strategy * 0 + 7,
    )
    refused("strategy must have the shape of place", place, strategy.float())
    values = module.strategy_values
    with pytest.raises(ValueError, match="task must be 0 to num_tasks - 1 = 0"):
        values.choose([1], 0.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="strategy must be 0 to 5"):
        values.update([0], [6], [1.0])
    with pytest.raises(ValueError, match=r"must be \[N\] each; got \[1\], \[2\], \[1\]"):
        values.update([0], [1, 2], [1.0])
    with pytest.raises(ValueError, match="learning_rate must be a number above 0; got 0"):
        StrategyValues(learning_rate=0)
