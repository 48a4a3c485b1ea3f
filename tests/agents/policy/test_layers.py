"""Tanh as a policy's layers have it is torch's."""

import pytest
import torch
from torch import nn

from palimpsest.agents.policy.layers import Tanh


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_tanh_is_torchs(dtype, atol):
    x = torch.cat([torch.linspace(-100, 100, 4001, dtype=dtype), torch.tensor([torch.inf, -torch.inf], dtype=dtype)])
    x = x[:4002].view(2, 3, -1).transpose(0, 2)
    got, want = (x.clone().requires_grad_() for _ in range(2))
    torch.testing.assert_close(Tanh()(got), torch.tanh(want), rtol=0, atol=atol)
    Tanh()(got).square().sum().backward()
    torch.tanh(want).square().sum().backward()
    torch.testing.assert_close(got.grad, want.grad, rtol=0, atol=3 * atol)
    with torch.no_grad():
        assert torch.equal(Tanh()(x), Tanh()(got))
        assert Tanh()(torch.tensor([torch.nan], dtype=dtype)).isnan().all()
        assert Tanh()(x[:0]).shape == x[:0].shape
    assert isinstance(Tanh(), nn.Tanh)
