"""Stable Hadamard Memory: a matrix that is scaled element by element (calibrated) at every step.

h = LN(x_t)
k, q = L1(relu(W_k h)), L1(relu(W_q h)),  v = W_v h,  v_c = W_c h,  eta = sigmoid(w_eta h)
C_t = 1 + tanh(theta_t (x) v_c)                        theta_t = table[hash(salt, t) mod rows]
M_t = M_{t-1} * C_t + eta v (x) k                      [H, H]
y_t = W_o M_t q + b_o                                  L1(a) = a / (1e-5 + sum a)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context, Memory, Panel
from palimpsest.memory.kernels.outer.hadamard import hadamard_scan
from palimpsest.memory.kernels.outer.torch_hadamard import hadamard_step
from palimpsest.memory.parts.steps import bits_of, episode_steps
from palimpsest.refusals import check_integer


class SHMState(NamedTuple):
    """State of SHM."""

    M: Tensor
    """[B, H, H], rows along the value, columns along the key."""
    t: Tensor
    """[B] int64, steps taken in the episode. It selects the next row of the table."""


class SHM(Memory):
    """Stable Hadamard Memory.

    Where rows of the table are symmetric about 0 and drawn at random, the mean of C is 1, so that M neither grows nor
    fades in expectation. The paper draws theta_t anew at every step. Here the row is a hash of a saved `salt` and the
    episode's step, so that the update sees what acting saw; `redraw` changes the salt between rollouts.

    The authors published two modules. The one for reuse draws its index from floor(U(0, 1)), so it always takes row 0.
    The one of their POMDP experiments draws rows at random, adds a linear path around the memory and clips M to +-100.
    This class draws rows as the paper does and has neither addition: only the calibration's mean bounds M. As in both
    modules there is a layer norm, only the last map has a bias, and the table's initial values are Xavier's. Initial
    rows come in pairs theta and -theta, so that the mean of C over rows is exactly 1 (an odd number leaves one row
    unpaired).

    Args:
        input_size: F, features per input.
        output_size: D, features per output.
        memory_size: H; M is [H, H].
        num_rows: rows of the table.
    State:
        M [B, H, H], zeros at first; t [B] int64, 0 at first.

    Raises:
        ValueError: a size is not an integer of 1 or more.
    Source: arXiv 2410.10132.
    """

    salt: Tensor

    def __init__(self, input_size: int, output_size: int = 128, memory_size: int = 64, num_rows: int = 128) -> None:
        super().__init__(input_size, output_size)
        memory_size = check_integer("memory_size", memory_size, 1)
        num_rows = check_integer("num_rows", num_rows, 1)
        self.memory_size = memory_size
        self.num_rows = num_rows
        self.norm = nn.LayerNorm(input_size)
        # key, query, value, calibration and eta in one product
        self.maps = nn.Linear(input_size, 4 * memory_size + 1, bias=False)
        self.table = nn.Parameter(torch.empty(num_rows, memory_size))
        nn.init.xavier_uniform_(self.table)
        half = num_rows // 2
        with torch.no_grad():
            self.table[half : 2 * half] = -self.table[:half]
        self.output = nn.Linear(memory_size, output_size)
        self.register_buffer("salt", torch.zeros((), dtype=torch.int64))

    def initial_state(self, batch_size: int) -> SHMState:
        """An empty matrix and step 0."""
        H = self.memory_size
        return SHMState(
            torch.zeros(batch_size, H, H, dtype=self.dtype, device=self.device),
            torch.zeros(batch_size, dtype=torch.int64, device=self.device),
        )

    def step(
        self, x: Tensor, state: SHMState, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, SHMState]:
        """Map x [B, F] to y [B, D]; compiled where no gradient is recorded."""
        self.check_step(x, state)
        theta, v_c, v, k, q, _ = self._tokens(x, state.t)
        if torch.is_grad_enabled():
            read, M = hadamard_step(theta, v_c, v, k, q, state.M)
        else:
            no_start = torch.zeros(1, x.shape[0], dtype=torch.bool, device=x.device)
            read, M = hadamard_scan(theta[None], v_c[None], v[None], k[None], q[None], no_start, state.M)
            read = read[0]
        return self.output(read), SHMState(M, state.t + 1)

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: SHMState,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, SHMState]:
        """Map x [T, B, F] to y [T, B, D] by `memory.kernels.outer.hadamard.hadamard_scan`."""
        T, _ = self.check_sequence(x, start, state)
        t, last_t = episode_steps(start, state.t)
        theta, v_c, v, k, q, eta = self._tokens(x, t)
        read, M = hadamard_scan(theta, v_c, v, k, q, start, state.M)
        if T:
            C = 1 + (theta[-1].detach().unsqueeze(2) * v_c[-1].detach().unsqueeze(1)).tanh()
            self.watched = {
                "write_strength": eta.detach(),
                "calibration_mean": C.mean(),
                "memory_rms": M.detach().square().mean().sqrt(),
            }
        return self.output(read), SHMState(M, last_t)

    def context(self) -> Context:
        """The current input is read directly; the matrix may keep any earlier one."""
        return Context(1, float("inf"))

    def redraw(self, rng: np.random.Generator) -> None:
        """Draw a new salt. It decides which row of the table each step takes."""
        self.salt.fill_(int(rng.integers(2**63 - 1)))

    def diagnostics(self) -> dict[str, Tensor]:
        """Of the last scan: eta of every write, mean of C at the last step, and root mean square of the last M."""
        return dict(self.watched)

    def panels(self, before: Any, after: Any) -> list[Panel]:
        """How strongly the step wrote, how long each row of the matrix is, and the matrix."""
        M = after.M[0].detach()
        return [
            Panel("strength of the write (η)", self.watched["write_strength"][-1, 0], (0, 1)),
            Panel("rows of the matrix: lengths", M.norm(dim=1)),
            Panel("matrix: values down, keys across", M),
        ]

    def _tokens(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """theta, v_c, eta v, k, q [..., H] and eta [..., 1] of inputs x [..., F] at the steps t [...] of episodes."""
        H = self.memory_size
        k, q, v, v_c, eta = self.maps(self.norm(x)).split([H, H, H, H, 1], -1)
        k, q = (a / (1e-5 + a.sum(-1, keepdim=True)) for a in (k.relu(), q.relu()))
        eta = eta.sigmoid()
        theta = functional.embedding(row_of(self.salt, t, self.num_rows), self.table)
        return theta, v_c, eta * v, k, q, eta


def row_of(salt: Tensor, t: Tensor, num_rows: int) -> Tensor:
    """The row of a table with `num_rows` rows that step t [...] int64 takes: int64 of t's shape, in [0, num_rows)."""
    return bits_of(salt, t) % num_rows
