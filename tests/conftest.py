"""What every test shares: one thread, fixed seeds, one place for tolerances."""

import random

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds():
    """A test draws the same numbers alone as in the whole suite."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries that still read the global generator
    torch.manual_seed(0)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """How closely two forms of one computation agree, as keywords of `torch.testing.assert_close`."""
    return {torch.float32: dict(rtol=1e-4, atol=2e-5), torch.float64: dict(rtol=1e-8, atol=1e-10)}[dtype]
