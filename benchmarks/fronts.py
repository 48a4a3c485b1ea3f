"""Trial: forms of a recurrent unit before or beside the tables of `rewrite`. Undone by the next commit.

    PYTHONPATH=benchmarks VGRAD=.3 palimpsest train --memory fronts:SH --share-memory --learning-rate 1e-3 ...

Parallel: beside the tables. Series: GRU with half of its units slow. SH: all units of 2 steps. SM: minimal GRU. SHN: as SH, without
clock, and nothing turns. VGRAD is the share of the critic's gradient that reaches a shared memory, MEMLR that of the rate of the
actor's memory, EPS Adam's epsilon.
"""

from typing import Any, NamedTuple
import math, os
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from palimpsest.memory.base import Context, Memory
from palimpsest.memory.rewrite import RewriteMemory
from palimpsest.memory.recurrent import GRU


class Two(NamedTuple):
    a: Any
    b: Any


class Parallel(Memory):
    """gru beside rewrite, outputs side by side."""
    FORM = "parallel"

    def __init__(self, input_size: int, output_size: int = 128, units: int = 64) -> None:
        super().__init__(input_size, output_size + (units if self.FORM == "parallel" else 0))
        self.gru = GRU(input_size, units)
        self.rewrite = RewriteMemory(units if self.FORM == "series" else input_size, output_size)

    def initial_state(self, batch_size: int) -> Two:
        return Two(self.gru.initial_state(batch_size), self.rewrite.initial_state(batch_size))

    def join(self, a, b):
        return torch.cat((a, b), -1)

    def step(self, x, state, place=None, strategy=None):
        a, sa = self.gru.step(x, state.a)
        b, sb = self.rewrite.step(a if self.FORM == "series" else x, state.b)
        return (b if self.FORM == "series" else self.join(a, b)), Two(sa, sb)

    def scan(self, x, start, state, place=None, strategy=None):
        a, sa = self.gru.scan(x, start, state.a)
        b, sb = self.rewrite.scan(a if self.FORM == "series" else x, start, state.b)
        return (b if self.FORM == "series" else self.join(a, b)), Two(sa, sb)

    def context(self):
        return Context(1, math.inf)


class Series(Parallel):
    FORM = "series"


class S1(Series):
    def __init__(self, input_size: int, output_size: int = 128, units: int = 64) -> None:
        super().__init__(input_size, output_size, units)
        self.rewrite = RewriteMemory(units, output_size, num_layers=1)


class NoTurn(RewriteMemory):
    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.turns = self.turns[:1].expand_as(self.turns).clone()
        return self


class SNT(Series):
    def __init__(self, input_size: int, output_size: int = 128, units: int = 64) -> None:
        super().__init__(input_size, output_size, units)
        self.rewrite = NoTurn(units, output_size, clock=False)
        self.rewrite.to(torch.float32)
        assert (self.rewrite.turns[5] == self.rewrite.turns[0]).all()


class SC(Series):
    def __init__(self, input_size: int, output_size: int = 128, units: int = 64) -> None:
        super().__init__(input_size, output_size, units)
        self.rewrite = RewriteMemory(units, output_size, clock=False)


from palimpsest.memory.recurrent import LSTM, RNN


class SL(Series):
    def __init__(self, input_size: int, output_size: int = 128, units: int = 64) -> None:
        super().__init__(input_size, output_size, units)
        self.gru = LSTM(input_size, units)


class SX(Series):
    """the tables read the gru's output and the input"""

    def __init__(self, input_size: int, output_size: int = 128, units: int = 64) -> None:
        super().__init__(input_size, output_size, units)
        self.rewrite = RewriteMemory(units + input_size, output_size)

    def step(self, x, state, place=None, strategy=None):
        a, sa = self.gru.step(x, state.a)
        b, sb = self.rewrite.step(torch.cat((a, x), -1), state.b)
        return b, Two(sa, sb)

    def scan(self, x, start, state, place=None, strategy=None):
        a, sa = self.gru.scan(x, start, state.a)
        b, sb = self.rewrite.scan(torch.cat((a, x), -1), start, state.b)
        return b, Two(sa, sb)


class SH(Series):
    """fast units only"""

    def __init__(self, input_size: int, output_size: int = 128, units: int = 64) -> None:
        super().__init__(input_size, output_size, units)
        self.gru = GRU(input_size, units, horizon=2)


class SR(Series):
    def __init__(self, input_size: int, output_size: int = 128, units: int = 64) -> None:
        super().__init__(input_size, output_size, units)
        self.gru = RNN(input_size, units)
        with torch.no_grad():
            self.gru.weight_hh_l0 *= .5


from palimpsest.memory.mingru import MinGRU


class SM(Series):
    def __init__(self, input_size: int, output_size: int = 128, units: int = 64) -> None:
        super().__init__(input_size, output_size, units)
        self.gru = MinGRU(input_size, units, 1, 2)


class SHN(SNT):
    """fast units, nothing turns, no clock"""

    def __init__(self, input_size: int, output_size: int = 128, units: int = 64) -> None:
        super().__init__(input_size, output_size, units)
        self.gru = GRU(input_size, units, horizon=2)
