"""What tests of memories that are stacks share: the stack in float64 numpy, one row and one input at a time."""

import numpy as np
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory.base import Memory


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def normal(x, epsilon=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


class Parameters(dict):
    """The parameters of a layer by name, and their linear maps."""

    def linear(self, name, x):
        y = self[f"{name}.weight"] @ x
        return y + self[f"{name}.bias"] if f"{name}.bias" in self else y


def in_numpy(values):
    return Parameters({name: value.detach().double().numpy() for name, value in values.items()})


def equations(module, layer, x, start, state):
    """Outputs [T, B, D] and the last state; `layer(parameters, x [D], state)` is one step of one layer."""
    whole = in_numpy(module.state_dict())
    parts = [in_numpy(each.state_dict()) for each in module.layers]
    fresh = [part[0].double().numpy() for part in module.initial_state(1)]
    state = [part.double().numpy().copy() for part in state]
    y = np.zeros((*x.shape[:2], module.output_size))
    for t, b in np.ndindex(*x.shape[:2]):
        stream = whole.linear("enter", x[t, b].double().numpy())
        for number, parameters in enumerate(parts):
            before = [(new if start[t, b] else old[b])[number].copy() for old, new in zip(state, fresh)]
            added, after = layer(parameters, normal(stream), before)
            stream = stream + added
            for old, new in zip(state, after, strict=True):
                old[b, number] = new
        y[t, b] = normal(stream)
    return y, state


def assert_follows(module, layer, form, T=30, B=3):
    """The scan or the steps of `module`, from a used state and over starts, give what the equations give."""
    dtype = module.dtype
    x, start = torch.randn(T + 5, B, module.input_size, dtype=dtype), torch.rand(T + 5, B) < 0.1
    run = type(module).scan if form == "scan" else Memory.scan
    with torch.no_grad():
        _, state = Memory.scan(module, x[:5], start[:5], module.initial_state(B))
        y, last = run(module, x[5:], start[5:], state)
    expected, expected_last = equations(module, layer, x[5:], start[5:], state)
    assert_close(y, torch.from_numpy(expected).to(dtype), **tolerance(dtype))
    for found, wanted in zip(last, expected_last, strict=True):
        assert_close(found, torch.from_numpy(wanted).to(found.dtype), **tolerance(dtype))
