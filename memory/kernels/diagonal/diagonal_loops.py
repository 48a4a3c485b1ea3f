"""The recurrence of `memory.kernels.diagonal.diagonal` in numba, forward and backward, for some of the rows.

Factors and their gradients are [T, B, N], or [1, 1, N] where all steps of all rows share them. Where numbers are
`paired`, the first half of N holds the real parts and the second half the imaginary parts. Each loop over channels
writes one array, so that it vectorises.
"""

from __future__ import annotations

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS


@njit(**OPTIONS)
def forward(first, last, a, b, start, state, h, paired):
    """Fill h [T, B, N] for the rows first to last from b [T, B, N], start [T, B] and state [B, N]."""
    T, _, N = b.shape
    P = N // 2
    for t in range(T):
        for row in range(first, last):
            factor = a[min(t, a.shape[0] - 1), min(row, a.shape[1] - 1)]
            before, added, out = h[t - 1, row] if t > 0 else state[row], b[t, row], h[t, row]
            if start[t, row]:
                for n in range(N):
                    out[n] = added[n]
            elif paired:
                for n in range(P):
                    out[n] = factor[n] * before[n] - factor[P + n] * before[P + n] + added[n]
                for n in range(P):
                    out[P + n] = factor[n] * before[P + n] + factor[P + n] * before[n] + added[P + n]
            else:
                for n in range(N):
                    out[n] = factor[n] * before[n] + added[n]


@njit(**OPTIONS)
def backward(first, last, a, start, state, h, dh, carried, da, db, varies, paired):
    """Fill db [T, B, N] and da for the rows first to last; add to da where the factors do not vary.

    dh [T, B, N] is the gradient of h. carried [B, N] holds that of the last h; it is replaced by that of state.
    """
    T, _, N = h.shape
    P = N // 2
    for t in range(T - 1, -1, -1):
        for row in range(first, last):
            factor = a[min(t, a.shape[0] - 1), min(row, a.shape[1] - 1)]
            d_factor = da[min(t, da.shape[0] - 1), min(row, da.shape[1] - 1)]
            before, outside = h[t - 1, row] if t > 0 else state[row], dh[t, row]
            whole, carry = db[t, row], carried[row]
            for n in range(N):
                whole[n] = outside[n] + carry[n]
            if start[t, row]:
                carry[:] = 0
                if varies:
                    d_factor[:] = 0
                continue
            if paired:
                if varies:
                    d_factor[:] = 0
                for n in range(P):
                    d_factor[n] += whole[n] * before[n] + whole[P + n] * before[P + n]
                for n in range(P):
                    d_factor[P + n] += whole[P + n] * before[n] - whole[n] * before[P + n]
                for n in range(P):
                    carry[n] = factor[n] * whole[n] + factor[P + n] * whole[P + n]
                for n in range(P):
                    carry[P + n] = factor[n] * whole[P + n] - factor[P + n] * whole[n]
                continue
            if varies:
                for n in range(N):
                    d_factor[n] = whole[n] * before[n]
            else:
                for n in range(N):
                    d_factor[n] += whole[n] * before[n]
            for n in range(N):
                carry[n] = factor[n] * whole[n]
