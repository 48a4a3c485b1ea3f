"""Under autocast the maps of a memory compute in bfloat16, its state and what is added to it stay float32."""

import pytest
import torch
from small import FEATURES, cases, make_small, small_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.testing import assert_close
from worlds import Counter

from palimpsest.agents import MemoryPPO
from palimpsest.agents.learn.loss import evaluated
from palimpsest.memory.kernels import diagonal_scan, lstm_scan, torch_only

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
)
each_kind = pytest.mark.parametrize("kind", ["cpu", CUDA])
T, B = 20, 3


def half(kind):
    return torch.autocast(kind, torch.bfloat16)


def run(module, inputs):
    """What a scan gives out, its last state, and all gradients as one vector."""
    module.zero_grad()
    y, last = module.scan(*inputs)
    # many memories end in a layer norm: the length of y is always the same
    (y.float() * torch.linspace(-1, 2, y.numel(), device=y.device).view(y.shape)).sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    assert all(each.dtype == torch.float32 for each in gradients)
    return y.detach().float(), last, torch.cat([each.flatten() for each in gradients])


@each_kind
@pytest.mark.parametrize("case", cases())
def test_a_memory_computes_nearly_the_same_and_its_state_keeps_its_types(case, kind):
    module = make_small(case, torch.float32).to(kind)
    x, start, place = torch.randn(T, B, FEATURES), torch.rand(T, B) < 0.15, torch.randint(module.num_places, (T, B))
    x, start, place, strategy = (each.to(kind) for each in (x, start, place, torch.randint(6, (T, B))))
    state = module.initial_state(B)
    with torch_only():
        y, last, gradient = run(module, (x, start, state, place, strategy))
        with half(kind):
            # a policy's encoder gives bfloat16
            its, its_last, its_gradient = run(module, (x.bfloat16(), start, state, place, strategy))
            with torch.no_grad():
                stepped, after = module.step(x[0].bfloat16(), state, place[0], strategy[0])
                again, _ = module.step(x[1], after, place[1], strategy[1])
    for found in (its_last, after):
        assert [(s.dtype, s.shape) for s in found] == [(s.dtype, s.shape) for s in state]
    assert again.isfinite().all()
    assert (stepped.float() - its[0]).abs().mean() < 0.1 * its[0].abs().mean()
    assert (its - y).abs().mean() < 0.1 * y.abs().mean()
    for mine, theirs in zip(last, its_last):
        if mine.is_floating_point():
            assert (mine - theirs).abs().mean() <= 0.1 * mine.abs().mean()
    assert torch.cosine_similarity(gradient, its_gradient, dim=0) > 0.9


@each_kind
def test_a_sum_over_many_steps_is_exact(kind):
    """In bfloat16 it stays at 256, to which 1 cannot be added."""
    ones = torch.ones(1000, 2, 3, dtype=torch.bfloat16, device=kind)
    start, state = torch.zeros(1000, 2, dtype=torch.bool, device=kind), torch.zeros(2, 3, device=kind)
    with torch_only(), half(kind):
        h, last = diagonal_scan(ones, ones, start, state)
    assert h.dtype == torch.float32
    assert (last == 1000).all()


@each_kind
def test_a_recurrence_is_that_of_float32(kind):
    F, H = 3, 4
    weights = tuple(torch.randn(size, device=kind) for size in ((4 * H, F), (4 * H, H), (4 * H,), (4 * H,)))
    given = torch.randn(T, B, F, device=kind), torch.rand(T, B, device=kind) < 0.15, *torch.randn(2, B, H, device=kind)
    with torch_only():
        expected = lstm_scan(*given, weights)
        with half(kind):
            found = lstm_scan(*given, weights)
    assert_close(found, expected, rtol=0, atol=0)


@each_kind
@pytest.mark.parametrize("name", ["rewrite", "lstm", "hcam"])
def test_an_update_is_nearly_the_same_and_keeps_float32(name, kind):
    """What is added up and compared is float32: log-probabilities, values, gradients. Acting does not change."""
    env = DummyVecEnv([Counter] * 4)
    found = []
    for autocast in (False, True):
        arguments = dict(policy_kwargs=small_policy(name), seed=0, device=kind, autocast=autocast)
        model = MemoryPPO("MlpMemoryPolicy", env, 1e-3, 16, 64, 1, **arguments)
        with torch_only():
            model.learn(64)
            (batch,) = model.rollout_buffer.get(None, model.rng)
            evaluation = evaluated(model.policy, batch)
        assert evaluation.log_prob.dtype == evaluation.values.dtype == evaluation.entropy.dtype == torch.float32
        assert all(parameter.dtype == torch.float32 for parameter in model.policy.parameters())
        found.append((model.rollout_buffer, evaluation))
    (exact, full), (rounded, half_) = found
    assert (exact.actions == rounded.actions).all()
    assert_close(half_.log_prob, full.log_prob, rtol=0, atol=0.1)
    assert (half_.log_prob != full.log_prob).any()


def test_a_device_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: False)
    with pytest.raises(ValueError, match="autocast needs bfloat16, which device 'cpu' does not compute in"):
        MemoryPPO("MlpMemoryPolicy", DummyVecEnv([Counter]), device="cpu", autocast=True)
