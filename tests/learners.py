"""What tests of networks that learn at test time share: gradients by complex steps."""

import numpy as np
from stacks import normal, silu


def answer(A, B, k):
    return B.T @ silu(A.T @ k)


def surprise(A, B, loss):
    """The gradient of loss(A, B), by complex steps, which need no difference and round nothing off."""
    weights = [A.astype(complex), B.astype(complex)]
    gradients = [np.zeros_like(A), np.zeros_like(B)]
    for each, gradient in zip(weights, gradients):
        for at in np.ndindex(*each.shape):
            each[at] += 1e-30j
            gradient[at] = loss(*weights).imag / 1e-30
            each[at] = each[at].real
    return gradients


def shortened(gradients):
    """Each gradient, divided by sqrt(1 + the squared length of all of them)."""
    return [each / np.sqrt(1 + sum((other**2).sum() for other in gradients)) for each in gradients]


def tokens(p, x, heads):
    """Queries and keys [H, K], values [H, V]."""
    q, k, v = (silu(p.linear(name, x)).reshape(heads, -1) for name in ("query", "key", "value"))
    q, k = (each / np.sqrt((each**2).sum(1, keepdims=True) + 1e-6) for each in (q, k))
    return q, k, v


def leaving(p, x, found):
    return p.linear("leave", normal(np.stack(found), 1e-2).ravel() * silu(p.linear("gate", x)))
