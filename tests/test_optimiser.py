"""Adam and clipping by a norm do what torch's do, in fewer operations."""

import copy

import pytest
import torch
from small import small_policy
from torch import nn

import envs
from agents import MemoryPPO
from agents.optimiser import Adam, clip_grad_norm

SETTINGS = {
    "usual": dict(fused=True),
    "all numbers": dict(fused=True, betas=(0.5, 0.7), eps=1e-3, weight_decay=0.1, maximize=True),
    "amsgrad": dict(fused=True, amsgrad=True),
    "not fused": dict(fused=False),
    "foreach": dict(foreach=True),
    "a tensor's rate": dict(fused=True, lr=torch.tensor(0.05)),
}


def layers(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 2), nn.Linear(2, 1)).to(dtype)


def train(optimizer: torch.optim.Optimizer, model: nn.Sequential, steps: int = 4) -> list[torch.Tensor]:
    """Parameters after some steps; the last layer has no gradient in the first."""
    for step in range(steps):
        x = torch.full((5, 3), 1.0 + step, dtype=model[0].weight.dtype)
        optimizer.zero_grad()
        (model(x) if step else model[:2](x)).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_adam_is_torchs_bit_by_bit(settings, dtype):
    found, wanted = ({"lr": 0.05} | settings, {"lr": 0.05} | copy.deepcopy(settings))
    mine, its = layers(dtype), layers(dtype)
    ours, theirs = Adam(mine.parameters(), **found), torch.optim.Adam(its.parameters(), **wanted)
    assert all(map(torch.equal, train(ours, mine), train(theirs, its)))
    other = torch.optim.Adam(its.parameters(), **wanted)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert all(map(torch.equal, train(ours, mine), train(other, its)))


def test_every_group_has_its_own_numbers():
    models = layers(), layers()
    made = [
        kind([{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1:].parameters()}], lr=0.01, fused=True)
        for kind, model in zip((Adam, torch.optim.Adam), models)
    ]
    assert all(map(torch.equal, *(train(each, model) for each, model in zip(made, models))))


@pytest.mark.parametrize("fused", [True, False])
def test_hooks_and_closures_are_called_once(fused):
    model = layers()
    # a step of torch's own puts hooks around its method, which ours falls back on
    train(torch.optim.Adam(model.parameters()), model)
    optimizer, seen = Adam(model.parameters(), fused=fused), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(optimizer, model, steps=3)
    assert seen == ["before", "after"] * 3
    assert optimizer.step(lambda: seen.append("loss") or 7) == 7
    assert seen[6:] == ["before", "loss", "after"]


def test_gradients_are_forgotten_or_zero():
    model = layers()
    optimizer = Adam(model.parameters(), fused=True)
    train(optimizer, model)
    optimizer.zero_grad(set_to_none=False)
    assert all((parameter.grad == 0).all() for parameter in model.parameters())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "dtypes", [(torch.float32,) * 2, (torch.float64,) * 2, (torch.float32, torch.float64)], ids=str
)
@pytest.mark.parametrize("most", [0.5, 1e3])
def test_clipping_is_torchs(most, dtypes):
    models = [nn.ModuleList(layers(dtype) for dtype in dtypes) for _ in range(2)]
    for model in models:
        for part in model:
            part[:2](torch.ones(5, 3, dtype=part[0].weight.dtype)).sum().backward()
    norms = clip_grad_norm(list(models[0].parameters()), most), nn.utils.clip_grad_norm_(models[1].parameters(), most)
    torch.testing.assert_close(*norms, rtol=1e-6, atol=0)
    assert norms[0] > 1
    for mine, its in zip(*(model.parameters() for model in models)):
        assert (mine.grad is None) == (its.grad is None)
        if its.grad is not None:
            torch.testing.assert_close(mine.grad, its.grad, rtol=1e-6, atol=0)


def test_a_norm_of_nothing_is_zero_and_one_of_nan_is_nan():
    model = layers()
    assert clip_grad_norm(list(model.parameters()), 0.5) == 0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[0].bias.grad[3] = torch.nan
    assert clip_grad_norm(list(model.parameters()), 0.5).isnan()
    assert all(parameter.grad.isnan().all() for parameter in model.parameters())


def test_a_policy_has_it():
    env = envs.make_vec("Palimpsest/EndlessTMaze-v0", 2, seed=0)
    model = MemoryPPO("MlpMemoryPolicy", env, n_steps=16, policy_kwargs=small_policy("gru"), device="cpu")
    assert type(model.policy.optimizer) is Adam
    assert model.policy.optimizer.defaults["fused"]
