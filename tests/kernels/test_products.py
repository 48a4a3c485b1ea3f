"""Matrix products inside kernels, and linear maps made of them, against numpy's and torch's."""

import pytest
import torch
from conftest import tolerance
from numba import njit
from torch.testing import assert_close

from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.linear import map_packed
from palimpsest.memory.kernels.arithmetic.products import (
    multiply,
    multiply_onto,
    multiply_transposed,
    pack,
    transpose,
    whole_vectors,
)

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

# rows: none, one, fewer than a tile's, a tile, more, more than a block; columns: within a vector, panels and a rest
SHAPES = [
    (0, 3, 4),
    (1, 1, 1),
    (5, 7, 3),
    (6, 0, 5),
    (13, 20, 64),
    (7, 33, 70),
    (29, 6, 16),
    (300, 5, 150),
    (64, 64, 264),
]


@each_dtype
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("apart", [False, True])
def test_multiply_onto_a_line_equals_the_definition(dtype, m, k, n, apart):
    """Also where the line's numbers do not lie side by side; columns beside those of out stay as they are."""
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
    line = torch.randn(n, 2, dtype=dtype)[:, 0] if apart else torch.randn(n, dtype=dtype)
    out = torch.full((m, n + 2), torch.nan, dtype=dtype)
    out[:, n:] = 7
    multiply_onto(line.numpy(), a.numpy(), pack(b.numpy()), out[:, :n].numpy())
    assert_close(out[:, :n], line + a @ b, **tolerance(dtype))
    assert (out[:, n:] == 7).all()


@each_dtype
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("turned", [False, True])
def test_multiply_equals_the_definition(dtype, m, k, n, turned):
    a = torch.randn(k, m, dtype=dtype).t() if turned else torch.randn(m, k, dtype=dtype)
    b = torch.randn(n, k, dtype=dtype).t() if turned else torch.randn(k, n, dtype=dtype)
    out = torch.randn(m, n + 2, dtype=dtype)
    kept, before = out[:, n:].clone(), out[:, :n].clone()
    packed = pack(b.numpy())
    multiply(a.numpy(), packed, out[:, :n].numpy(), True)
    assert_close(out[:, :n], before + a @ b, **tolerance(dtype))
    out[:, :n] = torch.nan
    multiply(a.numpy(), packed, out[:, :n].numpy(), False)
    assert_close(out[:, :n], a @ b, **tolerance(dtype))
    assert torch.equal(out[:, n:], kept)


@each_dtype
def test_a_row_alone_equals_the_row_in_a_batch(dtype):
    a, packed = torch.randn(301, 40, dtype=dtype), pack(torch.randn(40, 77, dtype=dtype).numpy())
    together, alone = torch.empty(301, 77, dtype=dtype), torch.empty(1, 77, dtype=dtype)
    multiply(a.numpy(), packed, together.numpy(), False)
    for row in (0, 5, 6, 255, 256, 299, 300):
        multiply(a[row : row + 1].numpy(), packed, alone.numpy(), False)
        assert torch.equal(alone[0], together[row])


@each_dtype
def test_a_product_may_fill_its_last_vector(dtype):
    """Columns that are packed are multiplied whether the product has as many or whole vectors of them."""
    for n in range(1, 140):
        a, b = torch.randn(7, 3, dtype=dtype), torch.randn(3, n, dtype=dtype)
        packed, whole = pack(b.numpy()), torch.empty(7, whole_vectors(n, dtype.itemsize), dtype=dtype)
        for out in (whole, torch.empty(7, n, dtype=dtype)):
            multiply(a.numpy(), packed, out.numpy(), False)
            assert_close(out[:, :n], a @ b, **tolerance(dtype))
        assert (whole[:, n:] == 0).all()


def test_nan_stays_in_its_row():
    a, packed = torch.randn(8, 9), pack(torch.randn(9, 20).numpy())
    a[3, 4] = torch.nan
    out = torch.empty(8, 20)
    multiply(a.numpy(), packed, out.numpy(), False)
    assert out[3].isnan().all()
    assert out[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()


@each_dtype
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_multiply_transposed_equals_the_definition(dtype, m, k, n):
    a, b, out = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype), torch.randn(m, n, dtype=dtype)
    before = out.clone()
    multiply_transposed(a.numpy(), b.numpy(), out.numpy(), True)
    assert_close(out, before + a @ b.t(), **tolerance(dtype))
    out.fill_(torch.nan)
    multiply_transposed(a.numpy(), b.numpy(), out.numpy(), False)
    assert_close(out, a @ b.t(), **tolerance(dtype))


@each_dtype
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("m", "n"), [(0, 3), (1, 1), (16, 16), (20, 35), (64, 128)])
def test_transpose(dtype, turned, m, n):
    """Whole squares of vectors, what is left beside them, and rows that are not contiguous; nothing else is written."""
    a = torch.randn(n, m, dtype=dtype).t() if turned else torch.randn(m, n, dtype=dtype)
    out = torch.full((n + 2, m + 2), torch.nan, dtype=dtype)
    transpose(a.numpy(), out[1:-1, 1:-1].numpy())
    assert torch.equal(out[1:-1, 1:-1], a.t())
    assert out.isnan().sum() == out.numel() - a.numel()


@each_dtype
@pytest.mark.parametrize("arch", [(13,), (20, 7), (4, 33, 1)])
def test_a_few_rows_through_linear_maps(dtype, arch):
    """Tanh between the maps and none after the last; a row alone gives what it gives among others, bit by bit."""
    x, N = torch.randn(9, 5, dtype=dtype), 9
    layers = [torch.nn.Linear(F, D, dtype=dtype) for F, D in zip((5, *arch), arch)]
    weights, biases = (tuple(getattr(each, name).numpy(force=True) for each in layers) for name in ("weight", "bias"))
    expected = x
    for number, layer in enumerate(layers):
        expected = layer(expected.tanh() if number else expected)
    out, alone = torch.empty(N, arch[-1], dtype=dtype), torch.empty(1, arch[-1], dtype=dtype)
    map_packed(pack(x.numpy().T), weights, biases, out.numpy())
    assert_close(out, expected, **tolerance(dtype))
    for row in range(N):
        map_packed(pack(x[row : row + 1].numpy().T), weights, biases, alone.numpy())
        assert torch.equal(alone[0], out[row])


@njit
def doubled_at(address, like):
    array = array_at(address, (2, 3), like)
    array *= 2


@each_dtype
def test_an_address_is_the_tensor_that_lies_there(dtype):
    tensor = torch.arange(12, dtype=dtype).view(4, 3)
    doubled_at(tensor[1:].data_ptr(), tensor.numpy()[:0])
    assert tensor.tolist() == [[0, 1, 2], [6, 8, 10], [12, 14, 16], [9, 10, 11]]
