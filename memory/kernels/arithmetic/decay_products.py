"""Products of decays between any two steps of a chunk, for the chunked forms of recurrences, in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def decay_products(decay: Tensor) -> Tensor:
    """Map decay [..., C] to D [..., C, C]: D[t, s] is the product of decay[s + 1] to decay[t], zero for s > t.

    No division: decays may be zero. Differentiable by autograd, twice too.
    """
    return _DecayProducts.apply(decay)


class _DecayProducts(torch.autograd.Function):
    """torch's own gradient of a product divides by its factors, or is slow where one is zero.

    Here d decay_j = sum over t >= j > s of dD[t, s] D[t, j] D[j - 1, s], a matrix product.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor) -> Tensor:
        C = decay.shape[-1]
        below = torch.ones(C, C, dtype=torch.bool, device=decay.device).tril(-1)
        products = torch.where(below, decay.unsqueeze(-1), 1).cumprod(-2).tril()
        ctx.save_for_backward(products)
        return products

    @staticmethod
    def backward(ctx: Any, d_products: Tensor) -> Tensor:
        (products,) = ctx.saved_tensors
        after = (products.mT @ d_products.tril())[..., 1:, :]
        return functional.pad((after * products[..., :-1, :]).sum(-1), (1, 0))
