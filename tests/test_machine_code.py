"""Machine code between processes: never of older sources, and never an error where it cannot be kept."""

import gc
import importlib.util
import inspect
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

import palimpsest
from palimpsest import cache_folder, machine_code, source_stamp

KERNEL = "from palimpsest.machine_code import njit\n{}\n@njit(cache=True)\ndef {}(x):\n    return {}\n"
CALL = "from kernels.outer import outer; print(outer(1), sum(outer.stats.cache_hits.values()))"
CHECK = "from palimpsest.envs.kernels import first_illegal; import numpy; first_illegal(numpy.zeros(1, int), 1)"
ROOT = Path(palimpsest.__file__).parents[1]


def run(code: str, *path: Path, **environment: str | Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new process that imports from `path`, in the first of its folders."""
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, path)), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=path[0], env=variables, check=True, capture_output=True, text=True)


@pytest.mark.programs
def test_a_kernel_is_compiled_again_once_what_it_calls_has_changed(tmp_path):
    def called() -> str:
        return run(CALL, tmp_path, ROOT).stdout

    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    inner, outer, number = (package / f"{name}.py" for name in ("inner", "outer", "number"))
    inner.write_text(KERNEL.format("from kernels import number\n", "inner", "x + number.ADDED"))
    outer.write_text(KERNEL.format("from .inner import inner\n", "outer", "10 * inner(x)"))
    number.write_text("ADDED = 1\n")
    assert called() == "20 0\n"
    assert called() == "20 1\n"
    (package / "unrelated.py").touch()
    assert called() == "20 1\n"
    number.write_text("ADDED = 2\n")
    assert called() == "30 0\n"
    inner.write_text(inner.read_text().replace("x +", "100 +"))
    assert called() == "1020 0\n"


@pytest.mark.programs
def test_named_tuples_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "kernels.py").write_text(KERNEL.format("", "first", "x[0]"))
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text("from typing import NamedTuple\nclass Pair(NamedTuple):\n    a: int\n")
    code = (
        "import numba, one, two; from kernels import first\n"
        "print(*(numba.njit(lambda pair: first(pair))(given) for given in (one.Pair(1), two.Pair(2), one.Pair(3))))"
    )
    assert run(code, tmp_path, ROOT).stdout == run(code, tmp_path, ROOT).stdout == "1 2 3\n"


def test_a_source_that_changes_while_a_process_runs_has_no_stamp(tmp_path):
    inner, outer = tmp_path / "inner.py", tmp_path / "outer.py"
    inner.touch()
    outer.write_text("import inner\n")
    for file in (inner, outer):
        os.utime(file, (0, 0))
    assert source_stamp.source_stamp(outer, "outer") is not None
    source_stamp.source_stamp.cache_clear()
    source_stamp._read.cache_clear()
    inner.touch()
    assert source_stamp.source_stamp(outer, "outer") is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import a.b as c, d", {"a.b", "d"}),
        ("from a import b", {"a", "a.b"}),
        ("from a import (  # (so)\n    b as c,\n    d,\n)\n", {"a", "a.b", "a.d"}),
        ("from a import b, \\\n    c", {"a", "a.b", "a.c"}),
        ("from . import a\nfrom ..b import c", {".", ".a", "..b", "..b.c"}),
        ("if x: import a; import b\nimportant = 1", {"a", "b"}),
    ],
)
def test_imports_are_read_from_the_text(text, names):
    assert set(source_stamp._imported_names(text)) == names


def _called_by(function):
    """What of the package a compiled function names."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
        for name in code.co_names:
            found = function.__globals__.get(name)
            found = getattr(found, "py_func", found)
            if getattr(found, "__module__", "").startswith("palimpsest."):
                yield found


def test_the_stamp_of_every_kernel_covers_what_it_calls():
    for module in pkgutil.walk_packages(palimpsest.__path__, "palimpsest."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = [each.py_func for each in gc.get_objects() if issubclass(type(each), Dispatcher)]
    ours = [each for each in found if each.__module__.startswith("palimpsest.")]
    calls = {(kernel, called) for kernel in ours for called in _called_by(kernel)}
    assert len(calls) > 100
    for kernel, called in calls:
        files = source_stamp.imported_files(Path(inspect.getfile(kernel)), kernel.__module__)
        assert Path(sys.modules[called.__module__].__file__) in files, (kernel, called)


@pytest.mark.programs
def test_a_package_that_cannot_be_written_and_no_home(tmp_path):
    """A file named `__pycache__` stands for a disk that is read-only."""
    shutil.copytree(ROOT / "palimpsest", tmp_path / "palimpsest", ignore=shutil.ignore_patterns("__pycache__"))
    for folder, _, _ in os.walk(tmp_path):
        Path(folder, "__pycache__").touch()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = dict(HOME="/proc/none", TMPDIR=temporary)
    first, second = (run(CHECK, tmp_path, PYTHONDONTWRITEBYTECODE="1", **environment) for _ in range(2))
    assert first.stderr.count("\n") == 1
    assert str(temporary) in first.stderr
    assert "envs cannot be written" in first.stderr
    assert second.stderr == ""


@pytest.fixture
def blocked(tmp_path, monkeypatch):
    """Beside the sources, at home and among temporary files nothing can be written: a file that is no folder."""
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "__pycache__").touch()
    monkeypatch.setattr(cache_folder.sys, "platform", "linux")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    monkeypatch.setattr(cache_folder.tempfile, "gettempdir", lambda: str(file))
    monkeypatch.setattr(machine_code, "_said", set())
    cache_folder.cache_folder.cache_clear()
    yield tmp_path
    cache_folder.cache_folder.cache_clear()
    sys.modules.pop("source", None)


def test_which_folder_is_taken(blocked, monkeypatch):
    """What can be written is added from the last choice to the first."""

    def found() -> Path | None:
        cache_folder.cache_folder.cache_clear()
        return cache_folder.cache_folder(blocked)

    assert found() is None
    temporary = blocked / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(cache_folder.tempfile, "gettempdir", lambda: str(temporary))
    private = found().parent
    assert private.parent == temporary
    assert private.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked / "home"))
    assert found().parent == blocked / "home" / "palimpsest"
    (blocked / "__pycache__").unlink()
    assert found() == blocked / "__pycache__"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked / "given"))
    assert found().parent == blocked / "given"


def test_without_a_home_nothing_is_written_to_a_folder_called_tilde(blocked, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cache_folder.os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(blocked)
    assert cache_folder.cache_folder(blocked) is None
    assert not (blocked / "~").exists()


@pytest.mark.parametrize("how", ["open", "link"])
def test_a_temporary_folder_that_others_can_write_to_is_not_used(blocked, monkeypatch, how):
    """They could put code of theirs into it."""
    monkeypatch.setattr(cache_folder.tempfile, "gettempdir", lambda: str(blocked))
    folder = cache_folder._private_temporary_folder()
    folder.rmdir()
    if how == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.symlink_to(blocked)
    assert cache_folder._private_temporary_folder() is None
    assert cache_folder.cache_folder(blocked) is None


SOURCE = """from palimpsest.machine_code import njit

@njit(cache=True)
def doubled(x):
    return 2 * x

def adding(n):
    @njit(cache=True)
    def added(x):
        return x + n
    return added
"""


def _kernel(folder: Path, name: str = "doubled", source: str = SOURCE):
    """A kernel of a module in a folder, as a new process would load it."""
    file = folder / "source.py"
    file.write_text(source)
    os.utime(file, (0, 0))
    source_stamp.source_stamp.cache_clear()
    source_stamp._read.cache_clear()
    spec = importlib.util.spec_from_file_location("source", file)
    module = sys.modules["source"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return eval(name, vars(module))


def test_where_nothing_can_be_kept_it_is_said_once(blocked, capsys):
    for _ in range(2):
        kernel = _kernel(blocked)
        assert kernel.stats.cache_path is None
        assert kernel(4) == 8
    assert "NUMBA_CACHE_DIR" in capsys.readouterr().err.removesuffix("\n")


@pytest.fixture
def given(blocked, monkeypatch):
    """A folder that can be written, for kernels of sources in `blocked`."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked / "given"))
    return blocked / "given"


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_machine_code_that_cannot_be_read_is_compiled_again(blocked, given, capsys, content):
    assert _kernel(blocked)(4) == 8
    (file,) = given.rglob("*.nbc")
    for hits in (0, 1):
        kernel = _kernel(blocked)
        if not hits:
            file.write_bytes(content)
        assert kernel(4) == 8
        assert sum(kernel.stats.cache_hits.values()) == hits
    assert capsys.readouterr().err.count("cannot be read") == 1


def test_a_full_disk(blocked, given, monkeypatch, capsys):
    def full(*args) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(machine_code.Path, "replace", full)
    assert _kernel(blocked)(4) == 8
    assert "cannot be kept" in capsys.readouterr().err
    assert not list(given.rglob("*.nbc*"))


def test_each_signature_and_closure_has_a_file_of_its_own(blocked, given):
    """However many processes write at once, a file holds what its name says."""
    for hits in (0, 1):
        for call, x, expected in (("adding(1)", 1, 2), ("adding(1)", 1.5, 2.5), ("adding(2)", 1, 3)):
            kernel = _kernel(blocked, call)
            assert kernel(x) == expected
            assert sum(kernel.stats.cache_hits.values()) == hits
        assert len(list(given.rglob("*.nbc"))) == 3


def test_code_of_older_sources_is_dropped(blocked, given):
    _kernel(blocked)(4)
    (old,) = given.rglob("*.nbc")
    assert _kernel(blocked, source=SOURCE.replace("2 * x", "3 * x"))(4) == 12
    (new,) = given.rglob("*.nbc")
    assert new != old


def test_flush_drops_all(blocked, given):
    kernel = _kernel(blocked)
    kernel(4)
    kernel._cache.flush()
    assert not list(given.rglob("*.nbc"))


def test_garbage_is_collected_again_after_compiling(blocked):
    for collecting in (gc.disable, gc.enable):
        collecting()
        assert _kernel(blocked)(4) == 8
        assert gc.isenabled() == (collecting is gc.enable)
