"""Titans against its equations, with gradients found by complex steps, and what it learns at test time."""

import pytest
import torch
from learners import answer, leaving, shortened, surprise, tokens
from small import SMALL, make_small
from stacks import assert_follows, sigmoid

from palimpsest import memory
from palimpsest.memory.parts import learners as learning
from palimpsest.memory.titans import TitansLayer

H = SMALL["titans"]["num_heads"]


def layer(p, x, state):
    q, k, v = tokens(p, x, H)
    alpha, eta, theta = sigmoid(p.linear("rates", x)).reshape(3, H)
    found = []
    for h in range(H):
        weights = [p[name][h] + state[i][h] for i, name in enumerate("AB")]
        gradients = surprise(*weights, lambda A, B, h=h: ((answer(A, B, k[h]) - v[h]) ** 2).sum() / 2)
        for i, gradient in enumerate(shortened(gradients)):
            state[2 + i][h] = eta[h] * state[2 + i][h] - theta[h] * gradient
            state[i][h] = (1 - alpha[h]) * state[i][h] + state[2 + i][h]
        found.append(answer(*(p[name][h] + state[i][h] for i, name in enumerate("AB")), q[h]))
    return leaving(p, x, found), state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("titans", dtype), layer, form)


def test_it_learns_what_it_reads_and_forgets_it():
    """Three pairs, again and again: the error falls without any training. Without a rate, weights go back."""
    each = TitansLayer(6, 2, 6, 8, 4).double()
    pairs, start = torch.randn(3, 1, 6).double(), torch.zeros(90, 1, dtype=torch.bool)
    alpha, _, theta = each.rates.bias.detach().chunk(3)
    with torch.no_grad():
        each.rates.weight.zero_()
        alpha.fill_(-20)
        theta.fill_(-1)
        _, learned = each.scan(pairs.repeat(30, 1, 1), start, each.initial_state(1))
        errors = each.watched["surprise"].sum((1, 2))
        assert errors[-3:].sum() < 0.05 * errors[:3].sum()
        alpha.fill_(0)
        theta.fill_(-50)
        _, after = each.scan(pairs.repeat(30, 1, 1), start, learned)
    assert all(part.abs().max() > 0.1 for part in learned[:2])
    assert all(part.abs().max() < 1e-6 for part in after)


def test_what_is_shown():
    module = make_small("titans")
    module.scan(torch.randn(9, 2, 5).double(), torch.zeros(9, 2, dtype=torch.bool), module.initial_state(2))
    shown = module.diagnostics()
    assert all(shown[name].shape == (9, 2, 2 * H) for name in ("surprise", "keep", "rate"))
    assert (shown["surprise"] > 0).all()
    assert ((shown["keep"] > 0) & (shown["keep"] < 1)).all()


def test_large_rates_and_values_do_not_overflow():
    """Full steps, much momentum and nothing forgotten, in float32: weights grow no faster than steps add up."""
    each = TitansLayer(6, 2, 6, 8, 4)
    alpha, eta, theta = each.rates.bias.detach().chunk(3)
    with torch.no_grad():
        each.value.weight.mul_(30)
        each.rates.weight.zero_()
        for bias, logit in ((alpha, -20), (eta, 2), (theta, 20)):
            bias.fill_(logit)
        y, last = each.scan(torch.randn(400, 3, 6), torch.zeros(400, 3, dtype=torch.bool), each.initial_state(3))
    assert all(part.isfinite().all() for part in (y, *last))
    assert all(part.flatten(2).norm(dim=2).max() < 1 / (1 - 0.881) for part in last[2:])


def test_a_gradient_that_would_overflow_is_bounded_and_others_are_not(monkeypatch):
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    for weight, most in ((1e50, learning.LONGEST), (0.5, 1.0)):
        state = (x * 1.0,)
        learning.bound_gradients(state)
        (gradient,) = torch.autograd.grad((state[0] * weight).sum(), x)
        lengths = gradient.flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, most))

    def gradients():
        given = sequence[0].clone().requires_grad_()
        y, _ = module.scan(given, *sequence[1:])
        return y, torch.autograd.grad(y[learning.BOUNDED_EVERY].sum(), given)[0]

    module = memory.make("titans", 5, output_size=8, num_heads=1).double()
    T = 2 * learning.BOUNDED_EVERY
    x = torch.randn(T, 2, module.input_size, dtype=torch.float64)
    sequence = x, torch.zeros(T, 2, dtype=torch.bool), module.initial_state(2)
    y, usual = gradients()
    monkeypatch.setattr(learning, "LONGEST", 1e-30)
    same, bounded = gradients()
    torch.testing.assert_close(same, y, rtol=0, atol=0)
    last = learning.BOUNDED_EVERY - 1
    torch.testing.assert_close(bounded[last + 1 :], usual[last + 1 :], rtol=0, atol=0)
    assert bounded[last].abs().max() < 1e-20 < usual[last].abs().max()
