"""Classes that a file may name: a fixed table, so that reading a name imports nothing.

It holds torch's activations and optimisers and the feature extractors of stable-baselines3.
"""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN

_ACTIVATIONS = """
    CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid LogSoftmax Mish PReLU
    RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold
"""
_OPTIMISERS = "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop Rprop SGD SparseAdam"


def qualified_name(value: Any) -> str:
    """`module.qualname` of a class or function, or of the class of any other object."""
    named = value if has_name(value) else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def has_name(value: Any) -> bool:
    """Whether `value` is a class or function, which has a qualified name of its own."""
    return hasattr(value, "__qualname__") and hasattr(value, "__module__")


_CLASSES: list[type] = [
    *(getattr(torch.nn, name) for name in _ACTIVATIONS.split() if hasattr(torch.nn, name)),
    *(getattr(torch.optim, name) for name in _OPTIMISERS.split() if hasattr(torch.optim, name)),
    *(FlattenExtractor, NatureCNN, CombinedExtractor, RMSpropTFLike),
]

CLASSES: dict[str, type] = {qualified_name(cls): cls for cls in _CLASSES}
"""Class by qualified name; some are missing where torch is older."""
