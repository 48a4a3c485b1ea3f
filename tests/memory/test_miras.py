"""Miras against its equations, with gradients found by complex steps, and what its choices are for."""

import itertools

import numpy as np
import pytest
import torch
from conftest import tolerance
from learners import answer, leaving, shortened, surprise, tokens
from small import FEATURES, SMALL, make_small
from stacks import assert_follows, sigmoid, softplus
from torch.testing import assert_close

from palimpsest import memory
from palimpsest.memory.miras import BIASES, RETENTIONS, VARIANTS, MirasLayer

H = SMALL["miras"]["num_heads"]


def lengths(e, delta, bias, p):
    """The loss of an error e, which may be complex."""
    if bias == "lp":
        return ((e**2 + 1e-4) ** (p / 2)).sum() / p
    length = np.sqrt((e**2).sum() + 1e-6)
    if bias == "huber" and length.real > delta:
        return delta * length
    return (e**2).sum() / 2


def gated(S, retention, q):
    if retention == "lq":
        size = np.sqrt(S**2 + 1e-4)
        return S * size ** (q - 2) / (size**q).mean() ** (1 - 2 / q)
    if retention == "kl":
        S = np.exp(S - S.max(0))
        return np.sqrt(len(S)) * (S / S.sum(0) - 1 / len(S))
    return S


def equations(bias, retention, p_=3.0, q_=4.0):
    def layer(p, x, state):
        q, k, v = tokens(p, x, H)
        alpha, eta, *delta = p.linear("rates", x).reshape(-1, H)
        found = []
        for h in range(H):
            limit = softplus(delta[0][h]) if delta else None
            weights = [gated(p[name][h] + state[i][h], retention, q_) for i, name in enumerate("AB")]

            def loss(A, B, h=h, limit=limit):
                return lengths(answer(A, B, k[h]) - v[h], limit, bias, p_)

            for i, gradient in enumerate(shortened(surprise(*weights, loss))):
                state[i][h] = (1 - sigmoid(alpha[h])) * state[i][h] - sigmoid(eta[h]) * gradient
            weights = [gated(p[name][h] + state[i][h], retention, q_) for i, name in enumerate("AB")]
            found.append(answer(*weights, q[h]))
        return leaving(p, x, found), state

    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_equations(variant, form, dtype):
    case = "miras" if variant == "yaad" else f"miras-{variant}"
    assert_follows(make_small(case, dtype), equations(*VARIANTS[variant]), form)


@pytest.mark.parametrize(("bias", "retention"), [*itertools.product(BIASES, RETENTIONS)])
def test_choices_replace_those_of_the_variant(bias, retention):
    arguments = SMALL["miras"] | dict(variant="moneta", bias=bias, retention=retention, p=1.5, q=3.0)
    module = memory.make("miras", FEATURES, **arguments).double()
    assert_follows(module, equations(bias, retention, 1.5, 3.0), "scan", T=6, B=1)


@pytest.mark.parametrize("rule", list(VARIANTS.values()), ids=list(VARIANTS))
def test_it_learns_what_it_reads_and_forgets_it(rule):
    """Three pairs, again and again: the error falls without any training. Without a rate, weights go back."""
    bias, retention = rule
    each = MirasLayer(6, 2, 6, 8, 4, bias, 3.0, retention, 4.0).double()
    pairs, start = torch.randn(3, 1, 6).double(), torch.zeros(150, 1, dtype=torch.bool)
    alpha, eta, *_ = each.rates.bias.detach().split(2)
    with torch.no_grad():
        each.rates.weight.zero_()
        alpha.fill_(-20)
        eta.fill_(1)
        _, learned = each.scan(pairs.repeat(50, 1, 1), start, each.initial_state(1))
        errors = each.watched["surprise"].sum((1, 2))
        assert errors[-3:].sum() < 0.1 * errors[:3].sum()
        alpha.fill_(0)
        eta.fill_(-50)
        _, after = each.scan(pairs.repeat(50, 1, 1), start, learned)
    assert all(part.abs().max() > 0.1 for part in learned)
    assert all(part.abs().max() < 1e-6 for part in after)


def test_a_huber_loss_hears_no_more_of_an_outlier_than_its_limit():
    each = MirasLayer(6, 2, 3, 3, 4, "huber", 3.0, "l2", 4.0).double()
    errors, limit = torch.tensor([[3.0, 0, 4, 0], [0.3, 0, 0.4, 0]]).double(), torch.tensor([2.0, 2.0]).double()
    expected = torch.tensor([[1.2, 0, 1.6, 0], [0.3, 0, 0.4, 0]]).double()
    assert_close(each.slope(errors, [limit]), expected, rtol=1e-5, atol=0)


def test_what_is_shown():
    module = make_small("miras-memora")
    module.scan(torch.randn(9, 2, 5).double(), torch.zeros(9, 2, dtype=torch.bool), module.initial_state(2))
    shown = module.diagnostics()
    assert all(shown[name].shape == (9, 2, 2 * H) for name in ("surprise", "keep", "rate"))
    layer = module.layers[0]
    weights = layer.weights(*(part[0] for part in layer.initial_state(1)))
    assert_close(
        [each.sum(-2) for each in weights],
        [torch.zeros(2, 3).double(), torch.zeros(2, 4).double()],
        **tolerance(torch.float64),
    )


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_large_rates_and_values_do_not_overflow(variant):
    each = MirasLayer(6, 2, 6, 8, 4, VARIANTS[variant][0], 3.0, VARIANTS[variant][1], 4.0)
    with torch.no_grad():
        each.value.weight.mul_(30)
        each.rates.weight.zero_()
        each.rates.bias[:2] = -20
        each.rates.bias[2:4] = 20
        y, last = each.scan(torch.randn(400, 3, 6), torch.zeros(400, 3, dtype=torch.bool), each.initial_state(3))
    assert all(part.isfinite().all() for part in (y, *last))
