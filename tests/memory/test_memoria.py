"""Memoria against its rules with engrams as objects, and what lives, links and chains are for."""

import math

import numpy as np
import pytest
import torch
from small import FEATURES, SMALL, make_small
from stacks import assert_follows

from palimpsest import memory
from palimpsest.memory.memoria import UNITS, MemoriaLayer

NAMES = ("num_heads", "short_term", "remind_short", "remind_long", "search_depth", "lifespan", "extension")
H, S, K_S, K_L, DEPTH, LIFE, C = (SMALL["memoria"][name] for name in NAMES)


class Engram:
    """An engram in a slot, with its links by slot."""

    def __init__(self, content, links, life, age):
        self.content, self.links, self.life, self.age = content, links, life, age


def reminded(engrams, e):
    """Slots of short term, then of long term."""

    def likest(slots, count):
        alike = {j: round(float(engrams[j].content @ e) / len(e) * UNITS) for j in slots}
        return sorted(slots, key=lambda j: (-alike[j], j))[:count]

    living = [j for j, each in enumerate(engrams) if each.life > 0]
    short = likest([j for j in living if engrams[j].age < S], K_S)
    ends, found = short, set()
    for _ in range(1 + DEPTH):
        steps = []
        for i in ends:
            free = [j for j in living if engrams[j].age >= S and j not in found and engrams[i].links[j] > 0]
            steps += [min(free, key=lambda j, i=i: (-engrams[i].links[j], j))] if free else []
        ends = steps
        found |= set(steps)
    return short, likest(sorted(found), K_L)


def layer(p, x, state):
    engrams = [Engram(*each) for each in zip(state[0], state[1], *(part.astype(int) for part in state[2:]))]
    e = p.linear("engram", x)
    e = (e - e.mean()) / np.sqrt(e.var() + 1e-2)
    q = p.linear("query", x).reshape(H, -1)
    short, long = reminded(engrams, e)
    slots, heads, share = short + long, np.zeros_like(q), {}
    if slots:
        contents = np.array([engrams[j].content for j in slots])
        a = np.exp(q @ contents.T / np.sqrt(len(e)))
        a = a / a.sum(1, keepdims=True)
        heads = a @ contents
        share = dict(zip(slots, a.mean(0)))
    for j, each in enumerate(engrams):
        each.life = max(0, each.life - UNITS + round(share.get(j, 0.0) * len(slots) * C * UNITS))
    places = [j for j, each in enumerate(engrams) if each.life == 0 or each.age + 1 >= S]
    mine = min(places, key=lambda j: (engrams[j].life, j))
    for each in engrams:
        each.age += 1
        each.links[mine] = 0
    engrams[mine] = Engram(e, np.zeros(len(engrams)), LIFE * UNITS, 0)
    fired = {*slots, mine}
    for i in fired:
        for j in fired:
            engrams[i].links[j] += 1
    parts = ("content", "links", "life", "age")
    return p.linear("leave", heads.ravel()), [np.array([getattr(each, part) for each in engrams]) for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("memoria", dtype), layer, form, T=60)


def plain(**different):
    """A layer whose engrams are its inputs but for the norm, and which reads nothing in particular."""
    sizes = dict(
        size=4, heads=1, width=4, short=3, long=4, remind_short=1, remind_long=2, depth=2, lifespan=5, extension=0
    )
    each = MemoriaLayer(**sizes | different).double()
    with torch.no_grad():
        each.engram.weight.copy_(torch.eye(4))
        each.engram.bias.zero_()
        each.query.weight.zero_()
        each.query.bias.zero_()
    return each


def after(each, rows):
    """The state after the inputs `rows`, which are rows of the identity."""
    x = torch.eye(4).double()[list(rows)].unsqueeze(1)
    _, state = each.scan(x, torch.zeros(len(rows), 1, dtype=torch.bool), each.initial_state(1))
    return state


def test_an_engram_that_is_never_reminded_lives_as_long_as_it_is_said():
    for steps in range(1, 8):
        _, _, life, age = after(plain(), [0, *[1] * (steps - 1)])
        living = [int(a) for a, left in zip(age[0], life[0]) if left > 0]
        assert (steps - 1 in living) == (steps <= 5)


def test_what_is_attended_lives_longer():
    """The same input again and again reminds of one engram, which gains 3 and loses 1 at each step."""
    _, _, life, age = after(plain(extension=3.0, short=8), [0] * 5)
    oldest = life[0][age[0] == 4]
    assert oldest.tolist() == [(5 + 4 * 2) * UNITS]


def test_links_lead_from_short_term_to_long_term():
    """0 and 1 fire together; when 1 comes again later, 0, long forgotten by the short term, is found by its link."""
    each = plain(lifespan=50, remind_short=3)
    _, links, _, age = state = after(each, [0, 1, 2, 3, 3, 3])
    zero, one = (int((age[0] == back).nonzero()) for back in (5, 4))
    assert links[0, zero, one] > 0
    chain = each.remind(torch.eye(4).double()[3:], torch.zeros(1, 1, 4).double(), *state)
    long = chain.slots[0, 3:][chain.valid[0, 3:]].tolist()
    assert {zero, one} & set(long)


def test_a_full_memory_drops_the_engram_with_the_shortest_life():
    each = plain(lifespan=500)
    _, _, life, age = after(each, [0, 1, 2, 3] * 5)
    assert (life > 0).all()
    # the last three are kept as short-term, and of the others the oldest have the shortest lives
    assert sorted(age[0].tolist()) == list(range(7))


def test_counts_are_shown():
    module = make_small("memoria")
    start = torch.zeros(12, 2, dtype=torch.bool)
    start[6] = True
    module.scan(torch.randn(12, 2, FEATURES).double(), start, module.initial_state(2))
    shown = module.diagnostics()
    assert all(shown[name].shape == (12, 2, 2) for name in ("reminded_short", "reminded_long", "alive"))
    assert (shown["reminded_short"][[0, 6]] == 0).all()
    assert (shown["reminded_short"][[1, 7]] == 1).all()
    assert (shown["alive"][[0, 6]] == 1).all()


def test_gradients_reach_what_is_reminded_and_nothing_else():
    module = memory.make("memoria", FEATURES, **SMALL["memoria"] | dict(num_layers=1, lifespan=3, extension=0)).double()
    x = torch.randn(8, 1, FEATURES).double().requires_grad_()
    y, _ = module.scan(x, torch.zeros(8, 1, dtype=torch.bool), module.initial_state(1))
    (gradient,) = torch.autograd.grad(y[-1].square().sum(), x)
    reached = gradient.abs().amax((1, 2)) > 0
    assert reached[-1]
    assert reached[4:-1].any()
    assert not reached[:4].any()
    assert math.isinf(module.context().K_eff)
