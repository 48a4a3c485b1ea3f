"""Windows has no fcntl and opens no directories; the package works without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest.agents.files.archive import write_atomically

ROOT = Path(__file__).resolve().parents[3]

WITHOUT_FCNTL = """
import sys, warnings
sys.modules["fcntl"] = None
warnings.simplefilter("ignore")
from pathlib import Path
from palimpsest.agents.files.lock import locked
folder = Path(sys.argv[1])
with locked(folder):
    try:
        with locked(folder):
            print("twice")
    except ValueError as error:
        print(error)
with locked(folder):
    print("again")
"""


def test_a_directory_is_locked_without_fcntl(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    refused, again = done.stdout.splitlines()
    assert "is in use by another process" in refused
    assert again == "again"


def test_files_are_written_where_no_directory_can_be_opened(tmp_path, monkeypatch):
    opened = os.open

    def as_on_windows(path, flags, *rest, **more):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", as_on_windows)
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "file", b"one")
    monkeypatch.delattr(os, "O_DIRECTORY")
    write_atomically(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
