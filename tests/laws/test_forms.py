"""Agents learn the same with numba's kernels and without: whole updates, rollout to optimiser, for every memory."""

import pytest
import torch
from small import small_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.testing import assert_close
from worlds import Counter

from palimpsest import memory
from palimpsest.agents import MemoryPPO
from palimpsest.agents.policy.layers import Tanh
from palimpsest.memory.kernels import torch_only
from palimpsest.memory.kernels.arithmetic.dispatch import has_kernels


def trained(name):
    """Parameters, the last rollout's values and the last state after three updates by plain gradient descent."""
    model = MemoryPPO(
        "MlpMemoryPolicy",
        DummyVecEnv([Counter] * 3),
        n_steps=12,
        batch_size=12,
        n_epochs=2,
        learning_rate=0.05,
        policy_kwargs=small_policy(name, optimizer_class=torch.optim.SGD, optimizer_kwargs={}),
        memory_carry_over=0.5,
        seed=0,
        device="cpu",
    )
    model.learn(3 * 36)
    return {name: p.detach() for name, p in model.policy.named_parameters()}, torch.as_tensor(
        model.rollout_buffer.values
    ).clone()


@pytest.mark.parametrize("name", memory.names())
def test_training_is_the_same_with_and_without_kernels(name):
    fast, values = trained(name)
    with torch_only():
        slow, slow_values = trained(name)
    assert_close(fast, slow, atol=2e-5, rtol=1e-4)
    assert_close(values, slow_values, atol=2e-5, rtol=1e-4)


def test_kernels_stand_aside_and_come_back():
    x = torch.zeros(2)
    assert has_kernels(x)
    assert not has_kernels(x, x.double())
    assert not has_kernels(x.half())
    with torch_only():
        assert not has_kernels(x)
        with torch_only():
            assert not has_kernels(x)
        assert not has_kernels(x)
    assert has_kernels(x)
    with pytest.raises(ZeroDivisionError), torch_only():
        raise ZeroDivisionError
    assert has_kernels(x)


def test_a_scan_without_kernels_differentiates_twice():
    """What a hand-written gradient cannot do, torch's operations can."""
    module = memory.make("rewrite", 3, **{"output_size": 4, "num_heads": 1, "key_size": 4, "value_size": 2}).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def total(x):
        return module.scan(x, torch.zeros(5, 2, dtype=torch.bool), module.initial_state(2))[0].sum()

    with torch_only():
        assert torch.autograd.gradgradcheck(total, (x,))


@pytest.mark.parametrize("name", ["rewrite", "ffm", "hcam", "lstm", "gru", "rnn", "shm", "mamba", "gla"])
def test_a_compiled_gradient_refuses_to_be_differentiated(name):
    """Even of a sum, whose own gradient is a constant; and only where somebody does."""
    module = memory.make(name, 3)
    x = torch.randn(5, 2, 3, requires_grad=True)
    y, _ = module.scan(x, torch.zeros(5, 2, dtype=torch.bool), module.initial_state(2))
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="torch_only"):
        dx.square().sum().backward()


@pytest.mark.parametrize("name", ["rewrite", "ffm", "hcam", "lstm", "shm", "mamba", "gla", "mingru"])
def test_a_compiled_gradient_refuses_a_batch_of_gradients(name):
    module = memory.make(name, 3)
    x, start = torch.randn(5, 2, 3, requires_grad=True), torch.zeros(5, 2, dtype=torch.bool)

    def batch_of_gradients():
        y, _ = module.scan(x, start, module.initial_state(2))
        ways = torch.eye(y.numel())[::200].view(-1, *y.shape)
        found = torch.autograd.grad(y, x, ways, is_grads_batched=True, retain_graph=True)[0]
        return found, torch.stack([torch.autograd.grad(y, x, way, retain_graph=True)[0] for way in ways])

    with pytest.raises(RuntimeError, match=r"one gradient at a time, not a batch .*torch_only"):
        batch_of_gradients()
    with torch_only():
        assert_close(*batch_of_gradients(), atol=1e-5, rtol=1e-4)
    y, _ = module.scan(x, start, module.initial_state(2))
    with pytest.raises(RuntimeError, match=r"one gradient at a time, not a batch .*torch_only"):
        torch.func.vmap(lambda way: torch.autograd.grad(y, x, way))(torch.ones(2, *y.shape))


def test_tanh_refuses_to_be_differentiated_twice():
    x = torch.randn(300, 3, requires_grad=True)
    grads = torch.autograd.grad(Tanh()(x).sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="torch_only"):
        grads[0].sum().backward()
