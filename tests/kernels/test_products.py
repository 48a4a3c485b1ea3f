"""Matrix products inside kernels, and linear maps made of them, against numpy's and torch's."""

import pytest
import torch
from conftest import tolerance
from torch.nn import functional
from torch.testing import assert_close

from palimpsest.memory.kernels.arithmetic.linear import FEWEST_ROWS, Linear, linear, tanh_linear
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
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(FEWEST_ROWS,), (20, 30), (3,), (0,)])
@pytest.mark.parametrize("squashed", [False, True], ids=["linear", "tanh"])
def test_linear_equals_torch(dtype, bias, shape, squashed):
    """Values and gradients, for sequences as for the few rows that torch maps itself, and for views."""
    x = torch.randn(*shape, 9, dtype=dtype).transpose(0, -2).requires_grad_()
    weight = torch.randn(9, 13, dtype=dtype).t().requires_grad_()
    leaves = [x, weight] + ([torch.randn(13, dtype=dtype, requires_grad=True)] if bias else [])
    outside = torch.randn(*x.shape[:-1], 13, dtype=dtype)
    found, expected = (
        (y.detach(), *torch.autograd.grad(y, leaves, outside))
        for y in (
            (tanh_linear if squashed else linear)(x, *leaves[1:]),
            functional.linear(x, *leaves[1:]).tanh() if squashed else functional.linear(x, *leaves[1:]),
        )
    )
    with torch.no_grad():
        assert torch.equal((tanh_linear if squashed else linear)(x, *leaves[1:]), found[0])
    assert_close(found, expected, **tolerance(dtype))


@pytest.mark.parametrize("each", [linear, tanh_linear])
def test_no_features_leave_the_bias(each):
    y = each(torch.empty(2, 0), torch.empty(3, 0), torch.zeros(3))
    assert torch.equal(y, torch.zeros(2, 3))


def test_linear_layer_is_torch_s():
    ours, theirs = Linear(5, 7), torch.nn.Linear(5, 7)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(300, 5)
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("rows", [3, FEWEST_ROWS + 1])
@pytest.mark.parametrize("each", [linear, tanh_linear])
def test_a_bias_of_another_size_is_torchs_to_refuse(each, rows):
    x, weight = torch.randn(rows, 4), torch.randn(20, 4)
    for size in (5, 40):
        with pytest.raises(RuntimeError):
            each(x, weight, torch.zeros(size))
    with pytest.raises(RuntimeError, match="dtype"):
        each(x, weight, torch.zeros(20, dtype=torch.float64))


def test_linear_uses_every_thread_it_may():
    x, weight = torch.randn(3000, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            y = linear(x, weight)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, weight))))
    finally:
        torch.set_num_threads(threads)
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-3)
