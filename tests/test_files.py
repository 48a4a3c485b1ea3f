"""Laws of files: what is written comes back, what is altered is noticed, and nothing in a file runs."""

import functools
import hashlib
import io
import json
import math
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict, deque

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3 import PPO
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from agents.files import CHECKSUMS, DATA, TENSORS, CorruptFile, read_tree, write_atomically, write_tree


def round_trip(tree, **kwargs):
    file = io.BytesIO()
    write_tree(file, tree)
    return read_tree(io.BytesIO(file.getvalue()), **kwargs)


def same(a, b):
    """Whether two trees are equal in types, values and bits (NaN equals NaN, 0.0 is not -0.0)."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and (a.numel() == 0 or torch.equal(*(x.contiguous().flatten().view(torch.uint8) for x in (a, b))))
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.generic):
        return a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return math.isnan(a) == math.isnan(b) and (
            math.isnan(a) or (a == b and math.copysign(1, a) == math.copysign(1, b))
        )
    return a == b


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
    ],
    ids=str,
)
def test_schedules_come_back_by_name(schedule):
    back = round_trip([schedule])[0]
    assert type(back) is type(schedule)
    assert [back(p) for p in (1.0, 0.6, 0.1, 0.0)] == [schedule(p) for p in (1.0, 0.6, 0.1, 0.0)]


def halved(progress):
    return progress / 2


NAMED = {
    "class": torch.nn.Tanh,
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
    tree = {"a": halved, "b": FloatSchedule(halved), "c": [torch.nn.Tanh]}
    names = {f"{__name__}.halved": halved, "torch.nn.modules.activation.Tanh": torch.nn.ReLU}
    back = round_trip(tree, custom_objects=names)
    assert back["a"] is halved
    assert back["b"](0.5) == 0.25
    assert back["c"] == [torch.nn.ReLU]
    with pytest.raises(ValueError, match=r"halved.*at 'a'.*Tanh.*at 'c\.0'"):
        round_trip(tree)


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


def test_paths_get_a_suffix_and_equal_trees_equal_bytes(tmp_path):
    write_tree(tmp_path / "model", {"x": torch.ones(2)})
    write_tree(str(tmp_path / "other.zip"), {"x": torch.ones(2)})
    assert {path.name for path in tmp_path.iterdir()} == {"model.zip", "other.zip"}
    assert (tmp_path / "model.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()
    assert read_tree(tmp_path / "model")["x"].tolist() == read_tree(str(tmp_path / "model.zip"))["x"].tolist() == [1, 1]


def test_a_failed_write_leaves_the_file_before_and_nothing_beside(tmp_path, monkeypatch):
    path = tmp_path / "model.zip"
    write_tree(path, {"x": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tree(path, {"x": 2})
    monkeypatch.undo()
    assert read_tree(path) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_tree(tmp_path / "gone" / "model.zip", {"x": 2})


def test_the_directory_is_synced_after_the_rename(tmp_path, monkeypatch):
    events = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("rename"), replace(*a)))
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append("directory" if os.path.isdir(f"/dev/fd/{fd}") else "file"), fsync(fd))
    )
    write_atomically(tmp_path / "x", b"1")
    assert events == ["file", "rename", "directory"]


def sample_bytes():
    file = io.BytesIO()
    write_tree(file, {"x": torch.arange(5.0), "y": [1, (2, 3)], "z": spaces.Discrete(3)})
    return file.getvalue()


SAMPLE = sample_bytes()
ORIGINAL = read_tree(io.BytesIO(SAMPLE))


@settings(max_examples=500, deadline=None)
@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_an_altered_byte_is_noticed_or_without_effect(position, flip):
    altered = bytearray(SAMPLE)
    altered[position] ^= flip
    try:
        tree = read_tree(io.BytesIO(altered))
    except CorruptFile:
        return
    assert same(tree, ORIGINAL)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(SAMPLE) - 1))
def test_a_torn_file_is_noticed(length):
    with pytest.raises(CorruptFile):
        read_tree(io.BytesIO(SAMPLE[:length]))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(content):
    with pytest.raises(CorruptFile):
        read_tree(io.BytesIO(content))


class Payload:
    """Unpickling this creates the file whose path it is given."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


def packed(entries, checksums=True, compression=zipfile.ZIP_STORED):
    """A ZIP of (name, content) pairs, with sums that fit."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # duplicate names
        for name, content in entries:
            archive.writestr(name, content)
        if checksums:
            lines = [
                f"{hashlib.sha256(content).hexdigest()}  {getattr(name, 'filename', name)}\n"
                for name, content in entries
            ]
            archive.writestr(CHECKSUMS, "".join(lines))
    return file.getvalue()


def document(tree):
    return json.dumps({"format": "palimpsest", "version": 1, "tree": tree}).encode()


EMPTY = safetensors.torch.save({})


def hostile_files(marker):
    """Files that a stranger may send: case -> bytes."""
    evil = pickle.dumps(Payload(marker))
    torch_file = io.BytesIO()
    torch.save(Payload(marker), torch_file)
    data, tensors = (DATA, document({"x": 1})), (TENSORS, EMPTY)
    bomb = b"[" + b"0," * 5_000_000 + b"0]"
    return {
        "pickle": evil,
        "torch pickle": torch_file.getvalue(),
        "pickle as data": packed([(DATA, evil), tensors]),
        "pickle as tensors": packed([data, (TENSORS, evil)]),
        "pickle beside": packed([data, tensors, ("policy.pth", torch_file.getvalue())]),
        "pickle before": evil + packed([data, tensors]),
        "pickle in the comment": _commented(packed([data, tensors]), evil),
        "pickle in a string": packed([(DATA, document({"$pickle": evil.hex()})), tensors]),
        "deflated": packed([data, tensors], compression=zipfile.ZIP_DEFLATED),
        "bomb": packed([(DATA, bomb), tensors], compression=zipfile.ZIP_DEFLATED),
        "huge claim": _claiming(packed([data, tensors]), 2**32 - 2),
        "traversal": packed([data, tensors, ("../../evil", b"x")]),
        "absolute": packed([(str(marker), document({})), tensors]),
        "duplicate": packed([data, data, tensors]),
        "missing": packed([data]),
        "reordered": packed([tensors, data]),
        "no checksums": packed([data, tensors], checksums=False),
        "wrong checksums": packed([data, tensors, (CHECKSUMS, b"")], checksums=False),
        "deep": packed([(DATA, b"[" * 100_000 + b"]" * 100_000), tensors]),
        "deep tree": packed([(DATA, document(functools.reduce(lambda x, _: [x], range(900), 0))), tensors]),
        "key twice": packed([(DATA, document({"a": 1})[:-2] + b',"a":2}}'), tensors]),
        "NaN": packed([(DATA, document({"a": math.nan})), tensors]),
        "other version": packed([(DATA, document({}).replace(b": 1,", b": 2,")), tensors]),
        "no tensor": packed([(DATA, document({"$tensor": ["t0", False]})), tensors]),
        "unused tensor": packed([data, (TENSORS, safetensors.torch.save({"t0": torch.ones(1)}))]),
        "unknown kind": packed([(DATA, document({"$os": "system"})), tensors]),
        "odd scalar": packed([(DATA, document({"$scalar": ["object", "00"]})), tensors]),
        "odd dtype": packed([(DATA, document({"$dtype": "load"})), tensors]),
        "odd space": packed([(DATA, document({"$space": ["Space", {}]})), tensors]),
        "odd space argument": packed([(DATA, document({"$space": ["Discrete", {"n": "x", "start": 0}]})), tensors]),
        "odd schedule": packed([(DATA, document({"$schedule": ["ConstantSchedule", "x"]})), tensors]),
        "odd generator": packed([(DATA, document({"$generator": {"bit_generator": "os"}})), tensors]),
        "tuple of text": packed([(DATA, document({"$tuple": "abc"})), tensors]),
        "link": packed([(_link(DATA), str(marker).encode()), tensors]),
        "bytes after": packed([data, tensors]) + b"x",
        "not UTF-8": packed([(DATA, b'"\xff"'), tensors]),
        "UTF-16": packed([(DATA, document({}).decode().encode("utf-16")), tensors]),
        "half a character": packed([(DATA, document({"$\ud800": "\ud800"})), tensors]),
        "long number": packed([(DATA, document({}).replace(b"{}", b"9" * 10_000)), tensors]),
        "negative deque": packed([(DATA, document({"$deque": [-1, []]})), tensors]),
        **{f"tensors {name}": tensor_file(*case) for name, case in BAD_TENSORS.items()},
    }


BAD_TENSORS = {
    "beyond the end": ([("t0", "F32", [1000], [0, 4000])], 8),
    "far beyond the end": ([("t0", "F32", [2**40], [0, 2**42])], 8),
    "of overflowing size": ([("t0", "F32", [2**33, 2**33], [0, 8])], 8),
    "of another size": ([("t0", "F32", [3], [0, 8])], 8),
    "of negative size": ([("t0", "F32", [-2], [0, 8])], 8),
    "of no size": ([("t0", "F32", [math.nan], [0, 8])], 8),
    "of broken size": ([("t0", "F32", [1.5], [0, 8])], 8),
    "backwards": ([("t0", "F32", [2], [8, 0])], 8),
    "of negative place": ([("t0", "F32", [2], [-8, 0])], 8),
    "that overlap": ([("t0", "F32", [2], [0, 8]), ("t1", "F32", [2], [4, 12])], 12),
    "with a hole": ([("t0", "F32", [1], [0, 4]), ("t1", "F32", [1], [8, 12])], 12),
    "with bytes after": ([("t0", "F32", [1], [0, 4])], 8),
    "of unknown type": ([("t0", "O8", [1], [0, 8])], 8),
    "told of twice": ([("t0", "F32", [1], [0, 4]), ("t0", "F32", [1], [4, 8])], 8),
}
"""Headers of safetensors, each a list of (name, dtype, shape, [begin, end]), and how many bytes follow."""


def tensor_file(entries, size):
    """A file whose document refers to the tensors that `entries` (name, dtype, shape, place) tell of."""
    parts = [
        f'"{name}":{json.dumps({"dtype": dtype, "shape": shape, "data_offsets": place})}'
        for name, dtype, shape, place in entries
    ]
    header = "{{{}}}".format(",".join(parts)).encode()
    tensors = len(header).to_bytes(8, "little") + header + bytes(size)
    return packed([(DATA, document([{"$tensor": [entry[0], False]} for entry in entries])), (TENSORS, tensors)])


def _link(name):
    """A ZIP entry that says it is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def _commented(content, comment):
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = comment
    return file.getvalue()


def _claiming(content, size):
    """The same ZIP, its first entry claiming `size` bytes in both of the central directory's fields."""
    at = content.index(b"PK\x01\x02") + 20
    return content[:at] + 2 * size.to_bytes(4, "little") + content[at + 8 :]


@pytest.mark.parametrize("case", hostile_files("unused"))
def test_hostile_files_are_refused_and_run_nothing(case, tmp_path):
    marker = tmp_path / "marker"
    content = hostile_files(marker)[case]
    before = set(os.listdir())
    with pytest.raises(CorruptFile) as caught:
        read_tree(io.BytesIO(content))
    assert "\n" not in str(caught.value)
    path = tmp_path / "model.zip"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=r"model\.zip"):
        read_tree(path)
    assert list(tmp_path.iterdir()) == [path]
    assert set(os.listdir()) == before


def test_a_file_made_as_those_with_bad_tensors_is_read_where_they_are_good():
    content = tensor_file([("t0", "F32", [2], [0, 8]), ("t1", "F32", [1], [8, 12])], 12)
    assert [part.tolist() for part in read_tree(io.BytesIO(content))] == [[0, 0], [0]]


def test_the_payload_of_these_tests_does_run_when_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


def test_a_name_in_a_file_is_never_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nfn = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = packed([(DATA, document({"x": {"$named": "evil_module.fn"}})), (TENSORS, EMPTY)])
    with pytest.raises(ValueError, match=r"evil_module\.fn"):
        read_tree(io.BytesIO(content))
    assert not (tmp_path / "marker").exists()


def test_a_model_of_stable_baselines3_is_refused_with_the_way_to_convert_it(tmp_path):
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    model.policy_kwargs["evil"] = Payload(tmp_path / "marker")
    model.save(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"stable-baselines3.*examples/from_sb3\.py") as caught:
        read_tree(tmp_path / "theirs")
    assert not isinstance(caught.value, CorruptFile)
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.zip"}
