"""Laws of files from others: changes are noticed, and nothing in a file runs."""

import functools
import hashlib
import io
import json
import math
import os
import pickle
import warnings
import zipfile

import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from same_bits import same
from stable_baselines3 import PPO

from palimpsest.agents.files.archive import CHECKSUMS, DATA, TENSORS, CorruptFile, read_tree, write_tree


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
        "odd schedule inside": packed(
            [(DATA, document({"$schedule": ["FloatSchedule", {"$schedule": ["LinearSchedule", 1, 2, "x"]}]})), tensors]
        ),
        "schedule of nothing": packed([(DATA, document({"$schedule": ["FloatSchedule"]})), tensors]),
        "odd path": packed([(DATA, document({"$path": 3})), tensors]),
        "odd name": packed([(DATA, document({"$named": [1]})), tensors]),
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
"""Case -> header of safetensors, a list of (name, dtype, shape, [begin, end]), and the number of bytes after it."""


def tensor_file(entries, size):
    """A file whose document refers to the tensors of `entries` (name, dtype, shape, place)."""
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


def test_names_of_torch_beyond_the_table_are_not_found():
    for name in ("torch.load", "torch.nn.modules.linear.Linear", "torch.optim.Adam", "torch.nn.ReLU", "os.system"):
        content = packed([(DATA, document({"x": {"$named": name}})), (TENSORS, EMPTY)])
        with pytest.raises(ValueError, match=name):
            read_tree(io.BytesIO(content))


def test_pickles_of_torch_are_told_from_torn_files():
    content = hostile_files("unused")["torch pickle"]
    with pytest.raises(CorruptFile, match=r"a pickle of torch\.save, which can run code"):
        read_tree(io.BytesIO(content))


def test_a_model_of_stable_baselines3_is_refused_with_the_way_to_convert_it(tmp_path):
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    model.policy_kwargs["evil"] = Payload(tmp_path / "marker")
    model.save(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"stable-baselines3.*examples/from_sb3\.py") as caught:
        read_tree(tmp_path / "theirs")
    assert not isinstance(caught.value, CorruptFile)
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.zip"}
