"""The registry's face: `memory.names`, `entry`, `make`, `register`."""

import inspect
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from small import SMALL

from palimpsest import memory
from palimpsest.memory import registry
from palimpsest.memory.base import Context, Memory


class Previous(NamedTuple):
    x: torch.Tensor


class Delay(Memory):
    """A memory as a user writes it: y_t = gain x_{t-1}, and zeros at an episode's start."""

    def __init__(self, input_size: int, gain: float = 1.0) -> None:
        super().__init__(input_size, input_size)
        self.gain = gain

    def initial_state(self, batch_size):
        return Previous(torch.zeros(batch_size, self.input_size))

    def step(self, x, state, place=None, strategy=None):
        return self.gain * state.x, Previous(x)

    def context(self):
        return Context(1, 2)


@pytest.fixture
def delay():
    """The user's memory under the name "delay", for one test."""
    memory.register("delay", f"{__name__}:Delay", "The input before this one.", "ours", erases=True)
    yield "delay"
    del registry._ENTRIES["delay"]


def test_the_names_of_the_design():
    assert memory.names() == [
        *("rewrite", "ffm", "hcam", "sat", "lstm", "gru", "rnn", "gtrxl", "shm"),
        *("mingru", "s5", "mamba", "linear", "gla", "mlstm", "cmru", "based", "mom"),
        *("deltaproduct", "trxl", "elmur", "dnc", "titans", "miras", "aler", "larimar", "memoria"),
        "none",
    ]


def test_every_memory_has_small_arguments():
    assert set(SMALL) == set(memory.names())


@pytest.mark.parametrize("name", memory.names())
def test_every_entry_is_a_memory_with_one_sentence(name):
    line = memory.entry(name)
    assert line.meaning.endswith(".")
    assert line.meaning[0].isupper()
    assert ". " not in line.meaning
    assert "\n" not in line.meaning
    assert line.source or name == "none"
    cls = memory.memory_class(name)
    assert issubclass(cls, Memory)
    assert cls.__doc__
    assert f"{cls.__module__}:{cls.__name__}" == line.target


def test_listing_imports_no_torch():
    program = (
        "import sys; from palimpsest import memory; lines = [memory.entry(name).meaning for name in memory.names()]; "
        "assert len(lines) > 9; print([m for m in ('torch', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(("given", "closest"), [("lstn", "lstm"), ("rewrit", "rewrite"), ("gtrXL", "gtrxl")])
def test_an_unknown_name_is_answered_with_the_closest(given, closest):
    with pytest.raises(
        ValueError, match=rf"unknown memory '{given}' \(did you mean '{closest}'\?\); known: rewrite, ffm"
    ):
        memory.make(given, 4)


def test_an_unknown_name_close_to_none_lists_all():
    with pytest.raises(ValueError, match=r"unknown memory 'xyzzy'; known: rewrite, ffm.*none") as error:
        memory.entry("xyzzy")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("name", memory.names())
def test_an_unknown_argument_is_answered_with_the_closest(name):
    with pytest.raises(
        ValueError,
        match=rf"memory '{name}' has no argument 'output_sise' \(did you mean 'output_size'\?\); allowed: output_size",
    ):
        memory.make(name, 4, output_sise=8)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "rewrite", "hcam", "sat", "gtrxl"])
@pytest.mark.parametrize("value", [0, -2, 1.5, True])
def test_wrong_numbers_of_layers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"num_layers must be an integer, 1 to 1,048,576; got {value}"):
        memory.make(name, 4, num_layers=value)


@pytest.mark.parametrize("name", memory.names())
def test_numpy_scalars_count_as_numbers_of_python(name):
    as_numpy = {bool: np.bool_, int: np.int64, float: np.float32}
    parameters = inspect.signature(memory.memory_class(name)).parameters.values()
    given = {p.name: p.default for p in parameters} | {"input_size": 5} | SMALL[name]
    taken = {key: as_numpy.get(type(value), lambda v: v)(value) for key, value in given.items()}
    torch.manual_seed(0)
    plain = memory.make(name, **given)
    torch.manual_seed(0)
    module = memory.make(name, **taken)
    kept = [
        value
        for attribute in vars(module).values()
        for value in (attribute if type(attribute) is tuple else [attribute])
    ]
    assert [value for value in kept if isinstance(value, np.generic)] == []
    x, start, place = torch.randn(4, 2, 5), torch.zeros(4, 2, dtype=torch.bool), torch.zeros(4, 2, dtype=torch.int64)
    y, state = module.scan(x, start, module.initial_state(2), place)
    expected, last = plain.scan(x, start, plain.initial_state(2), place)
    for one, other in zip((y, *state), (expected, *last), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_name_is_registered_once(delay):
    with pytest.raises(ValueError, match="memory 'delay' is already test_registry:Delay; choose another name"):
        memory.register("delay", "elsewhere:Other", "Another.")
    with pytest.raises(ValueError, match=r"memory 'lstm' is already palimpsest\.memory\.recurrent:LSTM"):
        memory.register("lstm", "elsewhere:Other", "Another.")


@pytest.mark.parametrize("target", ["palimpsest.memory.recurrent.LSTM", "a:b:c", ""])
def test_a_target_names_module_and_class(target):
    with pytest.raises(ValueError, match=r'target must read "module:Class"; got'):
        memory.register("mine", target, "Mine.")
    assert "mine" not in memory.names()


def test_ones_own_memory_works_end_to_end(delay):
    assert memory.names()[-1] == delay
    assert memory.entry(delay) == memory.Entry("test_registry:Delay", "The input before this one.", "ours", True)
    module = memory.make(delay, 3, gain=2.0)
    # start  1  0  0  1  0
    # x      1  2  3  4  5
    # y      0  2  4  0  8
    x = torch.arange(1.0, 6.0).view(5, 1, 1).expand(5, 1, 3)
    start = torch.tensor([1, 0, 0, 1, 0]).bool().view(5, 1)
    y, state = module.scan(x, start, module.initial_state(1))
    assert y[:, 0, 0].tolist() == [0, 2, 4, 0, 8]
    assert state.x.tolist() == [[5, 5, 5]]
    with pytest.raises(
        ValueError, match=r"memory 'delay' has no argument 'gian' \(did you mean 'gain'\?\); allowed: gain"
    ):
        memory.make(delay, 3, gian=1.0)
