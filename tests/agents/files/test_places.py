"""Where files are written to and read from: paths, suffixes, file objects, and a write that fails."""

import io
import os
import tempfile
import zipfile

import pytest
import torch
from same_bits import same

from palimpsest.agents.files.archive import CorruptFile, read_tree, write_atomically, write_tree


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
        write_atomically(tmp_path / "gone" / "x", b"2")


def test_a_folder_that_does_not_exist_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "a" / "b" / "model", "c/d.zip", "e"):
        write_tree(place, {"x": 1})
        assert read_tree(place) == {"x": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_tree(tmp_path / "file" / "model.zip", {"x": 1})


def test_a_name_is_found_again_beside_a_folder_of_that_name(tmp_path):
    (tmp_path / "run").mkdir()
    write_tree(tmp_path / "run", {"x": 1})
    assert read_tree(tmp_path / "run") == {"x": 1}
    write_tree(tmp_path / "rate0.01.zip", {"x": 2})
    assert read_tree(tmp_path / "rate0.01") == {"x": 2}
    with pytest.raises(FileNotFoundError, match=r"absent\.zip"):
        read_tree(tmp_path / "absent")
    for nothing in ("", ".", "/"):
        with pytest.raises(ValueError, match="needs a name"):
            write_tree(nothing, {})


@pytest.mark.parametrize("make", [io.BytesIO, tempfile.TemporaryFile, tempfile.NamedTemporaryFile])
def test_a_file_object_needs_no_rewinding(make):
    with make() as file:
        write_tree(file, {"x": 1})
        assert read_tree(file) == read_tree(file) == {"x": 1}
        assert not file.closed


def test_a_file_object_is_read_from_where_it_stands(tmp_path):
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"before")
        write_tree(file, {"x": 1})
        file.seek(len(b"before"))
        assert read_tree(file) == {"x": 1}
        with pytest.raises(CorruptFile, match="bytes before"):
            read_tree(file)  # from its start


def test_what_is_no_binary_file_is_refused_by_name(tmp_path):
    path = tmp_path / "model.zip"
    write_tree(path, {"x": 1})
    with path.open() as text, path.open("r+b") as both, (tmp_path / "new").open("wb") as written:
        for wrong in (text, written, 3, None, {"x": 1}):
            with pytest.raises(ValueError, match="open in mode 'rb'") as caught:
                read_tree(wrong)
            assert not isinstance(caught.value, CorruptFile)
        assert read_tree(both) == {"x": 1}
    with path.open("rb") as read, (tmp_path / "text").open("w") as text:
        for wrong in (text, read, 3, None):
            with pytest.raises(ValueError, match="open in mode 'wb'"):
                write_tree(wrong, {"x": 1})


def test_files_beyond_the_limits_of_a_small_zip_are_read(monkeypatch):
    tree = {"x": torch.arange(1000.0)}
    small = io.BytesIO()
    write_tree(small, tree)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 300)
    large = io.BytesIO()
    write_tree(large, tree)
    assert len(large.getvalue()) > len(small.getvalue())
    assert same(read_tree(large), tree)


def test_the_directory_is_synced_after_the_rename(tmp_path, monkeypatch):
    events = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("rename"), replace(*a)))
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append("directory" if os.path.isdir(f"/dev/fd/{fd}") else "file"), fsync(fd))
    )
    write_atomically(tmp_path / "x", b"1")
    assert events == ["file", "rename", "directory"]
