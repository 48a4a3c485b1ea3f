"""Stable Hadamard Memory: its equations, its kernels, and where its rows come from."""

import math

import numpy as np
import pytest
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory import Memory
from palimpsest.memory.kernels.outer.hadamard import hadamard_scan
from palimpsest.memory.kernels.outer.naive import hadamard_naive
from palimpsest.memory.kernels.outer.torch_hadamard import torch_hadamard_scan
from palimpsest.memory.parts.steps import episode_steps
from palimpsest.memory.shm import SHM, row_of

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def splitmix64(salt, t):
    """The published generator in Python's unbounded integers, its upper bit dropped."""
    word = 2**64
    z = (salt + (t + 1) * 0x9E3779B97F4A7C15) % word
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % word
    z = (z ^ z >> 27) * 0x94D049BB133111EB % word
    return (z ^ z >> 31) % 2**63


def reference(module, x, start, M, t):
    """The equations for one row, in float64 numpy: x [T, F], start [T], M [H, H], t a number."""
    p = {name: value.detach().double().numpy() for name, value in module.state_dict().items() if name != "salt"}
    H = module.memory_size
    W_k, W_q, W_v, W_c, w_eta = np.split(p["maps.weight"], [H, 2 * H, 3 * H, 4 * H])
    ys = []
    for x_t, start_t in zip(x, start):
        if start_t:
            M, t = np.zeros((H, H)), 0
        h = (x_t - x_t.mean()) / np.sqrt(x_t.var() + 1e-5) * p["norm.weight"] + p["norm.bias"]
        k, q = (np.maximum(W @ h, 0) for W in (W_k, W_q))
        k, q = k / (1e-5 + np.abs(k).sum()), q / (1e-5 + np.abs(q).sum())
        eta = 1 / (1 + np.exp(-(w_eta @ h)))
        theta = p["table"][splitmix64(int(module.salt), t) % module.num_rows]
        C = 1 + np.tanh(np.outer(theta, W_c @ h))
        M = M * C + eta * np.outer(W_v @ h, k)
        ys.append(p["output.weight"] @ (M @ q) + p["output.bias"])
        t += 1
    return np.array(ys), M, t


@each_dtype
@pytest.mark.parametrize("form", [SHM.scan, Memory.scan], ids=["scan", "steps"])
def test_equations(dtype, form):
    module = SHM(6, 5, memory_size=9, num_rows=7).to(dtype)
    module.redraw(np.random.default_rng(3))
    with torch.no_grad():
        module.table.mul_(5)
    x, start = torch.randn(40, 3, 6, dtype=dtype), torch.rand(40, 3) < 0.1
    state = module.initial_state(3)
    state = state._replace(M=torch.randn_like(state.M), t=torch.tensor([0, 4, 10**9]))
    y, last = form(module, x, start, state)
    for b in range(3):
        row = (x[:, b].double().numpy(), start[:, b].numpy(), state.M[b].double().numpy(), int(state.t[b]))
        expected, M, t = reference(module, *row)
        assert_close(y[:, b].double().detach(), torch.from_numpy(expected), **tolerance(dtype))
        assert_close(last.M[b].double().detach(), torch.from_numpy(M), **tolerance(dtype))
        assert last.t[b] == t


def kernel_arguments(T, B, H, dtype, starts=0.1, scale=1.0):
    tokens = [(scale * torch.randn(T, B, H, dtype=dtype)).requires_grad_() for _ in range(5)]
    return tokens, torch.rand(T, B) < starts, torch.randn(B, H, H, dtype=dtype, requires_grad=True)


def gradients(scan, tokens, start, state):
    read, last = scan(*tokens, start, state)
    weigh = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, dtype=o.dtype, generator=weigh)).sum() for o in (read, last))
    return read.detach(), last.detach(), torch.autograd.grad(loss, [*tokens, state], allow_unused=True)


def test_the_naive_form_by_hand():
    """tanh(atanh(1/2)) = 1/2, so the calibration is [1.5 .5; 1 1]; then a start."""
    half, one = math.atanh(0.5), torch.ones(1, dtype=torch.float64)

    def steps(*rows):
        return torch.tensor(rows, dtype=torch.float64).unsqueeze(1)

    theta, calibrate = steps([half, 0], [1, 1]), steps([1, -1], [1, 1])
    value, key, query = steps([1, 2], [1, 2]), steps([1, -1], [3, 4]), steps([2, 1], [1, 0])
    state = one * torch.tensor([[[1, 2], [3, 4]]])
    read, last = hadamard_naive(theta, calibrate, value, key, query, torch.tensor([[False], [True]]), state)
    # M = [1.5 1; 3 4] + (1, 2) (1, -1)^T = [2.5 0; 5 2], then (1, 2) (3, 4)^T = [3 4; 6 8]
    assert_close(read[:, 0], torch.tensor([[5, 12], [3, 6]], dtype=torch.float64))
    assert_close(last[0], torch.tensor([[3, 4], [6, 8]], dtype=torch.float64))


@each_dtype
@pytest.mark.parametrize("T", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("H", [1, 5, 16, 33])
@pytest.mark.parametrize("form", [hadamard_scan, torch_hadamard_scan])
def test_forms_equal_the_naive_one(form, dtype, T, H):
    """Around the borders of segments and of the vectors that the compiler makes; C from 0 to 2."""
    arguments = kernel_arguments(T, 3, H, dtype)
    fast, slow = gradients(form, *arguments), gradients(hadamard_naive, *arguments)
    if dtype == torch.float64:
        assert_close(fast, slow, **tolerance(dtype))
    else:
        # M doubles where C nears 2, so errors are measured on the scale of the tensor
        for found, wanted in zip((*fast[:2], *fast[2]), (*slow[:2], *slow[2])):
            assert_close(found, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def test_kernel_gradients_are_the_derivatives():
    tokens, start, state = kernel_arguments(19, 2, 3, torch.float64, scale=0.5)
    start[0] = torch.tensor([True, False])
    start[16:18] = torch.tensor([[True, False], [False, True]])
    assert torch.autograd.gradcheck(lambda *a: hadamard_scan(*a[:5], start, a[5]), (*tokens, state), atol=1e-6)


def test_calibration_may_vanish():
    """With theta v_c = -50 C is zero: what was there is gone, and nothing is divided by it."""
    theta, calibrate = torch.full((20, 1, 3), 5.0), torch.full((20, 1, 3), -10.0)
    value, key, query = (torch.rand(20, 1, 3, requires_grad=True) for _ in range(3))
    start, state = torch.zeros(20, 1, dtype=torch.bool), torch.randn(1, 3, 3, requires_grad=True)
    read, last = hadamard_scan(theta, calibrate, value, key, query, start, state)
    only_last = value[-1, 0, :, None] * key[-1, 0]
    assert_close(last[0], only_last, rtol=1e-5, atol=1e-6)
    assert_close(read[-1, 0], only_last @ query[-1, 0], rtol=1e-5, atol=1e-6)
    assert all(g.isfinite().all() for g in torch.autograd.grad(read.sum(), [value, key, query, state]))


def test_tanh_of_the_float32_kernel():
    """M = 1 and nothing written: what is left is 1 + tanh. NaN stays NaN."""
    z = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, -1e-30, 0.0, 1e-30, 1e30])])
    z, zero = z.view(-1, 1, 1), torch.zeros(len(z), 1, 1)
    every = torch.ones(1, len(z), 1)
    flat = [a.view(1, len(z), 1) for a in (z, zero, zero, zero)]
    _, last = hadamard_scan(every, *flat, torch.zeros(1, len(z), dtype=torch.bool), torch.ones(len(z), 1, 1))
    assert (last.double() - 1 - z.double().tanh()).abs().max() < 8e-7
    assert last.min() >= 0
    flat[0] = torch.full_like(flat[0], math.nan)
    _, last = hadamard_scan(every, *flat, torch.zeros(1, len(z), dtype=torch.bool), torch.ones(len(z), 1, 1))
    assert last.isnan().all()


@pytest.mark.parametrize("scan", [hadamard_scan, torch_hadamard_scan])
def test_empty_kernel(scan):
    tokens, start, state = kernel_arguments(0, 2, 3, torch.float32)
    read, last = scan(*tokens, start, state)
    assert read.shape == (0, 2, 3)
    assert torch.equal(last, state)
    assert torch.autograd.grad(last.sum(), state)[0].eq(1).all()


def test_kernel_refuses_what_does_not_fit():
    tokens, start, state = kernel_arguments(4, 2, 3, torch.float32)
    with pytest.raises(ValueError, match=r"must all be \[T, B, H\].*\[4, 2, 2\]"):
        hadamard_scan(*tokens[:4], tokens[4][..., :2], start, state)
    with pytest.raises(ValueError, match=r"start must be \[T, B\] = \[4, 2\] bool; got \[4, 2\] int64"):
        hadamard_scan(*tokens, start.long(), state)
    with pytest.raises(ValueError, match=r"state must be \[B, H, H\] = \[2, 3, 3\]; got \[2, 9\]"):
        hadamard_scan(*tokens, start, state.view(2, 9))
    with pytest.raises(ValueError, match=r"one dtype.*float64"):
        hadamard_scan(*tokens, start, state.double())


@pytest.mark.parametrize("num_rows", [2, 16, 128])
def test_mean_of_the_calibration_is_1(num_rows):
    """Over the rows of the initial table, for any input: the paper's condition for neither growth nor decay."""
    module = SHM(5, memory_size=8, num_rows=num_rows)
    v_c = 3 * torch.randn(50, 8)
    C = 1 + torch.einsum("ri,nj->rnij", module.table.detach(), v_c).tanh()
    assert C.std(0).max() > 0.3
    assert_close(C.mean(0), torch.ones(50, 8, 8), rtol=0, atol=1e-5)


def test_matrix_stays_finite_over_a_long_episode():
    module = SHM(4, memory_size=16)
    state = module.initial_state(2)
    with torch.no_grad():
        for _ in range(10):
            y, state = module.scan(torch.randn(2000, 2, 4), torch.zeros(2000, 2, dtype=torch.bool), state)
            assert y.isfinite().all()
    assert (state.t == 20_000).all()


def test_rows_are_splitmix64():
    t = torch.tensor([0, 1, 2, 1000, 2**40])
    for salt in (0, 1, 123456789, 2**63 - 2):
        assert row_of(torch.tensor(salt), t, 1009).tolist() == [splitmix64(salt, int(s)) % 1009 for s in t]
    # the generator's published first output for seed 0
    assert splitmix64(0, 0) == 0xE220A8397B1DCDAF % 2**63


@pytest.mark.parametrize("num_rows", [128, 7])
def test_rows_are_uniform_and_depend_on_the_salt(num_rows):
    t = torch.arange(num_rows * 500)
    rows = [row_of(torch.tensor(salt), t, num_rows) for salt in (0, 1, 2**62 + 5)]
    for row in rows:
        counts = torch.bincount(row, minlength=num_rows).double()
        chi_square = ((counts - 500) ** 2 / 500).sum().item()
        # mean n - 1, standard deviation sqrt(2 n)
        assert abs(chi_square - (num_rows - 1)) < 5 * math.sqrt(2 * num_rows)
        follows = (row[1:] == (row[:-1] + 1) % num_rows).double().mean().item()
        assert abs(follows - 1 / num_rows) < 5 * math.sqrt(1 / num_rows / len(t))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        agree = (rows[a] == rows[b]).double().mean().item()
        assert abs(agree - 1 / num_rows) < 5 * math.sqrt(1 / num_rows / len(t))


def test_redraw_changes_the_salt_and_follows_the_generator():
    module, twin = SHM(4, memory_size=8), SHM(4, memory_size=8)
    twin.load_state_dict(module.state_dict())
    x, start = torch.randn(30, 2, 4), torch.zeros(30, 2, dtype=torch.bool)
    state = module.initial_state(2)

    def y(m):
        return m.scan(x, start, state)[0]

    first = y(module)
    assert torch.equal(y(twin), first)
    module.redraw(np.random.default_rng(5))
    assert not torch.equal(y(module), first)
    assert not torch.equal(y(module), y(twin))
    twin.redraw(np.random.default_rng(5))
    assert torch.equal(y(twin), y(module))
    before = int(module.salt)
    twin.redraw(np.random.default_rng(6))
    assert int(twin.salt) != before
    twin.load_state_dict(module.state_dict())
    assert int(twin.salt) == before
    assert module.salt.dtype == torch.int64
    assert module.double().salt.dtype == torch.int64


def test_step_and_scan_take_the_same_rows():
    """Each row of the table marks its step: where its gradient is not zero, it was read."""
    module = SHM(4, memory_size=6, num_rows=50)
    module.redraw(np.random.default_rng(0))
    x, start = torch.randn(12, 1, 4), torch.zeros(12, 1, dtype=torch.bool)
    start[5] = True
    state = module.initial_state(1)._replace(M=torch.ones(1, 6, 6), t=torch.tensor([3]))
    expected = sorted({splitmix64(int(module.salt), t) % 50 for t in (3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6)})
    for scan in (module.scan, lambda *a: Memory.scan(module, *a)):
        (gradient,) = torch.autograd.grad(
            scan(x, start, state)[1].M.sum() + scan(x, start, state)[0].sum(), module.table
        )
        assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) <= set(expected)
        assert gradient.abs().sum(1).count_nonzero() >= len(expected) - 2


def test_acting_without_gradients_equals_the_step_with():
    """`step` leaves torch for the kernel where no gradient is wanted."""
    module = SHM(4, memory_size=12)
    x, state = torch.randn(3, 4), module.initial_state(3)
    state = state._replace(M=torch.randn_like(state.M))
    y, after = module.step(x, state)
    with torch.no_grad():
        acted, acted_after = module.step(x, state)
    assert_close(acted, y.detach(), **tolerance(torch.float32))
    assert_close(acted_after.M, after.M.detach(), **tolerance(torch.float32))
    assert torch.equal(acted_after.t, after.t)


def test_an_input_reaches_a_late_output():
    """The laws shift every feature alike, which the input's layer norm takes off: here one feature moves."""
    module = SHM(4, memory_size=16).double()
    x, start = torch.randn(40, 2, 4, dtype=torch.float64), torch.zeros(40, 2, dtype=torch.bool)
    x.requires_grad_()
    state = module.initial_state(2)
    y, _ = module.scan(x, start, state)
    (gradient,) = torch.autograd.grad(y[-1].square().sum(), x)
    assert (gradient[0].abs().amax(-1) > 1e-9).all()
    moved = x.detach().clone()
    moved[0, :, 1] += 1
    assert ((module.scan(moved, start, state)[0][-1] - y[-1]).abs().amax(-1) > 1e-9).all()


def test_episode_steps():
    # start   . . 1 . 1     row 0 had 3 steps behind it, row 1 begins an episode
    start = torch.tensor([[0, 0, 1, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool).t()
    now, last = episode_steps(start, torch.tensor([3, 9]))
    assert now.t().tolist() == [[3, 4, 0, 1, 0], [0, 1, 2, 3, 4]]
    assert last.tolist() == [1, 5]
    _, unchanged = episode_steps(start[:0], torch.tensor([3, 9]))
    assert unchanged.tolist() == [3, 9]


def test_diagnostics():
    module = SHM(4, memory_size=6)
    module.scan(torch.randn(5, 3, 4), torch.zeros(5, 3, dtype=torch.bool), module.initial_state(3))
    shown = module.diagnostics()
    assert shown["write_strength"].shape == (5, 3, 1)
    assert ((shown["write_strength"] > 0) & (shown["write_strength"] < 1)).all()
    assert 0 < shown["calibration_mean"] < 2
    assert shown["memory_rms"] > 0


@pytest.mark.parametrize("argument", ["memory_size", "num_rows"])
def test_sizes_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be an integer, 1 to 1,048,576; got 0"):
        SHM(4, **{argument: 0})
