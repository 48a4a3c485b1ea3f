"""Compiled code that all families share: random numbers and the loop over rows.

A family writes three functions of one row i, and a kernel that passes them to the loop:

    @compiled
    def begin(rules, state, i): ...             the first state of an episode; draws with `draw(state.rng, i, n)`
    @compiled
    def move(rules, state, i, action): ...      one step -> (reward, terminated, success); action is an int or [n]
    @compiled
    def observe(rules, state, i, obs, j): ...   writes every element of obs[j] and changes nothing else
    @compiled
    def kernel(rules, state, io, mode):
        return run_rows(begin, move, observe, rules, state, io, mode)

Machine code is kept between processes: see `palimpsest.machine_code`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from palimpsest.machine_code import njit

# No reference counting: small functions pass arrays around, and counting would cost ten times the work of a step.
# Therefore compiled code must not create arrays; scratch space is part of the state. Division follows numpy (no
# exceptions).
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
# Always inlined: a call passes every array of a state, seven words each. Calls made a step two to six times as slow.
compiled: Any = njit(cache=True, forceinline=True, **_OPTIONS)
"""Decorator for all compiled functions of a family."""

RESTART, OBSERVE, STEP, STEP_AND_RESTART = range(4)
"""Modes of a kernel. RESTART and OBSERVE change only rows whose `io.mask` is true. STEP_AND_RESTART starts the next
episode of a row in the step that ends the last one."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)


class IO(NamedTuple):
    """Input and output of a kernel for B rows. It is allocated once, and every call overwrites it.

    `row`, `success`, `length` and `final_obs` list the rows that ended, in ascending order. A kernel that steps returns
    the number of valid entries.
    """

    choices: Any
    """What `first_illegal` compares actions with."""
    mask: np.ndarray
    """[B] bool, the rows that RESTART and OBSERVE apply to."""
    action: np.ndarray
    """[B] int64 for a Discrete action space, [B, n] int64 for a MultiDiscrete one, [B, n] float32 for a Box."""
    obs: Any
    """[B, ...] in the dtype of the space. For a Dict space: a NamedTuple of such arrays."""
    reward: np.ndarray
    """[B] float64"""
    terminated: np.ndarray
    """[B] bool"""
    truncated: np.ndarray
    """[B] bool; never true where `terminated` is."""
    row: np.ndarray
    """[B] int64, the index of a row that ended."""
    success: np.ndarray
    """[B] bool, whether its episode was a success."""
    length: np.ndarray
    """[B] int64, the number of steps of its episode."""
    final_obs: Any
    """Like `obs`: the last observation of its episode. Only STEP_AND_RESTART writes it."""


@compiled
def first_illegal(action: np.ndarray, choices: Any) -> int:
    """The index of the first row whose action is illegal; -1 if there is none.

    Args:
        action: [B] or [B, n].
        choices: n for a Discrete space, nvec [n] int64 for a MultiDiscrete one. None for a Box, where only NaN and
            infinity are illegal.
    """
    # numba drops the branches that do not fit the types
    found = False
    if action.ndim == 1:
        for i in range(action.shape[0]):  # no early exit, so that the loop vectorises
            found |= (action[i] < 0) | (action[i] >= choices)
        if found:
            for i in range(action.shape[0]):
                if action[i] < 0 or action[i] >= choices:
                    return i
    elif choices is None:
        for i in range(action.shape[0]):
            for k in range(action.shape[1]):
                if not np.isfinite(action[i, k]):
                    return i
    else:
        for i in range(action.shape[0]):
            for k in range(action.shape[1]):
                if action[i, k] < 0 or action[i, k] >= choices[k]:
                    return i
    return -1


@njit(inline="always", **_OPTIONS)
def run_rows(begin: Any, move: Any, observe: Any, rules: Any, state: Any, io: IO, mode: int) -> int:
    """Run `mode` in every row. Rows are independent: their order does not matter.

    Args:
        begin: the family's compiled (rules, state, i) -> None.
        move: the family's compiled (rules, state, i, action) -> (reward, terminated, success).
        observe: the family's compiled (rules, state, i, obs, j) -> None.
        rules: NamedTuple of numbers. It has `limit`, the number of steps until truncation.
        state: NamedTuple of arrays [B, ...]. It has `rng` [B] uint64 and `steps` [B] int64, the number of finished
            steps. `move` sees `steps` before its own step is added, `observe` after.
        io: holds the actions and receives the results.
        mode: RESTART, OBSERVE, STEP or STEP_AND_RESTART.

    Returns:
        The number of rows that ended, or -1 - i if row i's action is illegal. In that case nothing has changed.
    """
    ends = 0
    if mode <= OBSERVE:
        for i in range(io.mask.shape[0]):
            if io.mask[i]:
                if mode == RESTART:
                    state.steps[i] = 0
                    begin(rules, state, i)
                observe(rules, state, i, io.obs, i)
    else:
        illegal = first_illegal(io.action, io.choices)
        if illegal >= 0:
            ends = -1 - illegal
        else:
            for i in range(io.action.shape[0]):
                reward, terminated, success = move(rules, state, i, io.action[i])
                steps = state.steps[i] + 1
                state.steps[i] = steps
                late = steps >= rules.limit
                io.reward[i] = reward
                io.terminated[i] = terminated
                io.truncated[i] = late & (not terminated)
                if late | terminated:
                    io.row[ends] = i
                    io.success[ends] = success
                    io.length[ends] = steps
                    ends += 1
                observe(rules, state, i, io.obs, i)
            if mode == STEP_AND_RESTART:
                for k in range(ends):  # a loop of its own: this much code in the loop above would slow down every row
                    i = io.row[k]
                    observe(rules, state, i, io.final_obs, k)
                    state.steps[i] = 0
                    begin(rules, state, i)
                    observe(rules, state, i, io.obs, i)
    return ends


@compiled
def random_bits(rng: np.ndarray, i: int) -> np.uint64:
    """64 random bits from the generator of row i (SplitMix64: Steele, Lea and Flood 2014)."""
    z = rng[i] + _GAMMA
    rng[i] = z
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


@compiled
def halves(rng: np.ndarray, i: int) -> tuple[np.uint64, np.uint64]:
    """Two independent numbers of 32 random bits. They serve two calls of `below` at the cost of one."""
    bits = random_bits(rng, i)
    return bits >> _32, bits & _LOW


@compiled
def below(rng: np.ndarray, i: int, half: np.uint64, n: int) -> int:
    """A uniform integer from 0 to n - 1, n from 1 to 2^32 - 1, from 32 random bits by multiplication.

    It is exactly uniform: fewer than n of the 2^32 values of `half` are rejected and drawn again. The cost does not
    depend on n. Source: arXiv 1805.10941.
    """
    bound = np.uint64(n)
    product = half * bound
    if (product & _LOW) < bound:
        threshold = ((_ONE << _32) - bound) % bound
        while (product & _LOW) < threshold:
            product = (random_bits(rng, i) >> _32) * bound
    return np.int64(product >> _32)  # type: ignore[return-value]


@compiled
def draw(rng: np.ndarray, i: int, n: int) -> int:
    """A uniform integer from 0 to n - 1, n from 1 to 2^32 - 1."""
    return below(rng, i, random_bits(rng, i) >> _32, n)


@compiled
def chance(rng: np.ndarray, i: int) -> float:
    """A uniform number in [0, 1), with 53 random bits."""
    return np.float64(random_bits(rng, i) >> np.uint64(11)) * (1.0 / (1 << 53))


@compiled
def gaussians(rng: np.ndarray, i: int) -> tuple[float, float]:
    """Two independent standard normal numbers (Box and Muller 1958)."""
    radius = np.sqrt(-2 * np.log(1 - chance(rng, i)))
    angle = 2 * np.pi * chance(rng, i)
    return radius * np.cos(angle), radius * np.sin(angle)


@compiled
def either(condition: bool, a: int, b: int) -> int:
    """`a` if the condition holds, else `b`, without a branch: a mispredicted branch costs more than computing both."""
    return b ^ ((a ^ b) & -np.int64(condition))  # type: ignore[return-value]


@compiled
def quotient(a: int, reciprocal_of_b: int) -> int:
    """The integer part of a / b, exact for 0 <= a < 2^31 / b. It multiplies, in a fifth of the time of a division."""
    return (a * reciprocal_of_b) >> 32


def reciprocal(b: int) -> int:
    """The factor for `quotient`: the first integer above 2^32 / b, for b of 1 or more."""
    return (1 << 32) // b + 1


def seeded(seeds: np.ndarray) -> np.ndarray:
    """Generator states for `seeds` [N] uint64. They are mixed, so that the streams of neighbouring seeds differ."""
    z = seeds + _GAMMA
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)
