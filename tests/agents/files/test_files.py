"""Laws of files: what is written comes back, and an error names the place of what cannot be written."""

import functools
import io
import math
import os
import pathlib
import warnings
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from same_bits import same
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from palimpsest.agents.files.archive import CorruptFile, read_contents, read_tree, write_tree
from palimpsest.agents.files.classes import CLASSES


def round_trip(tree, **kwargs):
    file = io.BytesIO()
    write_tree(file, tree)
    return read_tree(io.BytesIO(file.getvalue()), **kwargs)


arrays = hnp.arrays(
    dtype=st.sampled_from(["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]),
    shape=hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3),
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**130), 2**130)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | arrays
    | arrays.map(lambda array: array.flatten()[0] if array.size else None)
    | arrays.map(torch.from_numpy)
)
keys = st.text(max_size=5) | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), st.text(max_size=2))
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(lambda parts: deque(parts, maxlen=5))
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$tuple", "$named", "$", "a.b"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(trees)
def test_a_tree_comes_back_bit_for_bit(tree):
    assert same(tree, round_trip(tree))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.uint64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_tensors_of_every_type_and_shape(dtype, shape):
    tensor = (torch.arange(math.prod(shape)).reshape(shape) if math.prod(shape) else torch.zeros(shape)).to(dtype)
    assert same(tensor, round_trip({"x": tensor})["x"])


def test_views_in_any_memory_order_hold_the_same_values():
    base = np.arange(24.0).reshape(4, 6)
    for view in (base.T, base[::-1], base[:, ::2], np.broadcast_to(base[0], (3, 6)), base.astype(">f8")):
        assert np.array_equal(round_trip([view])[0], view)
    tensor = torch.arange(24.0).reshape(4, 6)
    for part in (tensor.T, tensor[1:, ::2], tensor[0].expand(3, 6), torch.randn(3, dtype=torch.cfloat).conj()):
        assert torch.equal(round_trip([part])[0], part)


def test_aliased_tensors_are_written_once_and_come_back_aliased():
    weight = torch.randn(1000, 100)
    once, twice = io.BytesIO(), io.BytesIO()
    write_tree(once, {"a": weight})
    write_tree(twice, {"a": weight, "b": [weight.detach(), torch.nn.Parameter(weight)], "c": weight.numpy()})
    assert len(twice.getvalue()) < len(once.getvalue()) + 500
    tree = read_tree(io.BytesIO(twice.getvalue()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree["a"][0, 0] = 7
    assert tree["b"][0][0, 0] == tree["b"][1][0, 0] == tree["c"][0, 0] == 7


def test_tensors_that_only_overlap_come_back_apart():
    weight = torch.arange(6.0)
    tree = round_trip(
        {"all": weight, "part": weight[:3], "reshaped": weight.view(2, 3), "empty": [weight[:0], weight[6:]]}
    )
    tree["all"].zero_()
    assert tree["part"].tolist() == [0, 1, 2]
    assert tree["reshaped"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "bits", [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]
)
def test_random_generators_continue(bits):
    rng = np.random.Generator(bits(3))
    rng.integers(10, size=7, dtype=np.int32)
    tree = round_trip({"rng": rng, "state": rng.bit_generator.state})
    other = np.random.Generator(bits(0))
    other.bit_generator.state = tree["state"]
    expected = rng.random(20).tolist()
    assert tree["rng"].random(20).tolist() == expected == other.random(20).tolist()


def test_torch_random_state_continues():
    torch.randn(3)
    state = round_trip([torch.get_rng_state()])[0]
    expected = torch.randn(5)
    torch.set_rng_state(state)
    assert torch.equal(torch.randn(5), expected)


def test_an_optimizer_continues():
    def training(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    first = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(first.parameters(), lr=0.1)
    training(first, optimizer)
    tree = round_trip({"model": first.state_dict(), "optimizer": optimizer.state_dict()})
    second = torch.nn.Linear(3, 2)
    second.load_state_dict(tree["model"])
    other = torch.optim.Adam(second.parameters(), lr=9.0)
    other.load_state_dict(tree["optimizer"])
    assert all(map(torch.equal, training(first, optimizer), training(second, other)))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, np.inf, (2, 3), np.float32),
        spaces.Box(np.array([0, 1]), np.array([5, 6]), dtype=np.int64),
        spaces.Box(0, 255, (4, 4, 3), np.uint8),
        spaces.Box(0.0, 1.0, (), np.float64),
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([[2, 3], [4, 5]]),
        spaces.MultiDiscrete([2, 3], start=[1, -1]),
        spaces.MultiBinary(4),
        spaces.MultiBinary([2, 3]),
        spaces.Text(7, min_length=2, charset="cab"),
        spaces.Dict(z=spaces.Discrete(2), a=spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(1)])),
        spaces.Dict(OrderedDict([("z", spaces.Discrete(2)), ("a", spaces.Discrete(3))])),
    ],
    ids=str,
)
def test_spaces_come_back_equal(space):
    back = round_trip({"space": space})["space"]
    assert back == space
    assert type(back) is type(space)
    assert str(back) == str(space)


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantSchedule(0.3),
        LinearSchedule(1e-3, 1e-5, 0.7),
        FloatSchedule(0.25),
        FloatSchedule(LinearSchedule(np.float64(3.0), 1, 0.5)),
        FloatSchedule(ConstantSchedule(np.float32(0.5))),
        LinearSchedule(np.float32(1e-3), np.int64(0), 1),
    ],
    ids=str,
)
def test_schedules_come_back_by_name(schedule):
    back = round_trip([schedule])[0]
    assert type(back) is type(schedule)
    assert [back(p) for p in (1.0, 0.6, 0.1, 0.0)] == [schedule(p) for p in (1.0, 0.6, 0.1, 0.0)]


def halved(progress):
    return progress / 2


class Squash(torch.nn.Module):
    pass


NAMED = {
    "class": Squash,
    "function": halved,
    "lambda": lambda x: x,
    "partial": functools.partial(halved, 0.5),
    "object": torch.nn.Linear(1, 1),
    "path": os.path,
}


@pytest.mark.parametrize("case", NAMED)
def test_other_objects_are_names_that_the_caller_must_give(case):
    with pytest.raises(ValueError, match="custom_objects") as caught:
        round_trip({"kwargs": {"fn": NAMED[case]}})
    assert not isinstance(caught.value, CorruptFile)
    assert "'kwargs.fn'" in str(caught.value)
    for place in ("kwargs.fn", "fn"):
        assert round_trip({"kwargs": {"fn": NAMED[case]}}, custom_objects={place: halved})["kwargs"]["fn"] is halved


def test_custom_objects_are_found_by_qualified_name_inside_a_schedule_too():
    tree = {"b": FloatSchedule(halved), "c": [Squash, torch.nn.Tanh]}
    names = {f"{__name__}.halved": halved, f"{__name__}.Squash": Squash, "torch.nn.modules.activation.Tanh": Squash}
    back = round_trip(tree, custom_objects=names)
    assert back["b"](0.5) == 0.25
    assert back["c"] == [Squash, Squash]
    with pytest.raises(ValueError, match=r"halved.*at 'b'.*Squash.*at 'c\.0'"):
        round_trip(tree)


def times(factor):
    """Two of these have one qualified name."""

    def schedule(progress):
        return factor * progress

    return schedule


class Caller:
    def __call__(self, progress):
        return progress


SAME_NAME = {
    "closures": (times(2), times(3)),
    "lambdas": (lambda x: 2 * x, lambda x: 3 * x),
    "partials": (functools.partial(max, 2), functools.partial(max, 3)),
    "objects": (Caller(), Caller()),
    "in schedules": (FloatSchedule(times(2)), FloatSchedule(times(3))),
    "one function twice": (halved, halved),
}


@pytest.mark.parametrize("case", SAME_NAME)
def test_a_name_that_stands_at_two_places_is_given_at_each(case):
    first, second = SAME_NAME[case]
    tree = {"rate": {"f": first}, "clip": {"f": second}}
    with pytest.raises(ValueError, match=r"custom_objects=\{'rate\.f': \.\.\., 'clip\.f': \.\.\.\}") as caught:
        round_trip(tree)
    name = str(caught.value).split("'")[3]
    for key in (name, "f"):
        with pytest.raises(ValueError, match=r"'rate\.f': \.\.\., 'clip\.f': \.\.\."):
            round_trip(tree, custom_objects={key: first})
    with pytest.raises(ValueError, match=r"custom_objects=\{'clip\.f': \.\.\.\}"):
        round_trip(tree, custom_objects={"rate.f": first})
    back = round_trip(tree, custom_objects={"rate.f": times(5), "clip.f": times(7)})
    assert (back["rate"]["f"](1), back["clip"]["f"](1)) == (5, 7)
    back = round_trip(tree, custom_objects={"rate.f": times(5), name: times(7)})
    assert (back["rate"]["f"](1), back["clip"]["f"](1)) == (5, 7)


def test_custom_objects_replace_what_stands_at_a_place():
    tree = {"rate": LinearSchedule(1, 0, 1), "kwargs": {"fn": halved, "n": 3}, "weights": torch.ones(3)}
    new = {"rate": 0.5, "kwargs.n": 4, "kwargs.fn": times(2), "weights": None, "absent": 1}
    back = round_trip(tree, custom_objects=new)
    assert back == {"rate": 0.5, "kwargs": {"fn": new["kwargs.fn"], "n": 4}, "weights": None}
    assert round_trip(tree, custom_objects={"kwargs": {}})["kwargs"] == {}  # asks for nothing inside it


def test_contents_say_what_is_missing_and_give_the_rest():
    file = io.BytesIO()
    write_tree(file, {"a": halved, "b": 3})
    contents = read_contents(file)
    assert contents.tree == {"a": None, "b": 3}
    assert contents.missing == [(f"{__name__}.halved", "a")]


ACTIVATIONS = [name for name in torch.nn.modules.activation.__all__ if name != "MultiheadAttention"]
OPTIMISERS = [
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
]


def test_every_activation_and_optimiser_of_torch_comes_back():
    classes = [getattr(torch.nn, name) for name in ACTIVATIONS] + [getattr(torch.optim, name) for name in OPTIMISERS]
    assert len(classes) > 35
    assert round_trip(classes) == classes
    assert set(classes) <= set(CLASSES.values())


def test_an_object_of_a_known_class_does_not_come_back_as_the_class():
    with pytest.raises(ValueError, match=r"'torch\.nn\.modules\.activation\.ReLU' \(at 'fn'\)"):
        round_trip({"fn": torch.nn.ReLU()})


def test_paths_and_kinds_of_text_come_back():
    back = round_trip({"log": pathlib.Path("a") / "b", "pure": pathlib.PurePosixPath("c"), "text": torch.__version__})
    assert back == {"log": pathlib.Path("a/b"), "pure": pathlib.Path("c"), "text": str(torch.__version__)}
    assert type(back["text"]) is str


UNWRITABLE = {
    "objects": np.array([object()]),
    "strings": np.array(["a"]),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "sparse": torch.eye(2).to_sparse(),
    "object key": {object(): 1},
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_cannot_be_written_says_where(case):
    with pytest.raises(ValueError, match=r"x\.y"):
        write_tree(io.BytesIO(), {"x": {"y": UNWRITABLE[case]}})


def test_a_tree_that_holds_itself_is_refused():
    tree = {}
    tree["again"] = [tree]
    with pytest.raises(ValueError, match="holds itself"):
        write_tree(io.BytesIO(), tree)
