"""The wheel, the sdist and the editable install each bring one name, `palimpsest`, and every module of it."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from builds import LINKS, ROOT, build, copy_of_the_tree, modules_of_the_tree, python

import palimpsest

pytestmark = pytest.mark.programs


def files_of(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}


def metadata(files: set[str]) -> set[str]:
    return {name for name in files if re.match(r"palimpsest_rl-[\w.]+\.dist-info/", name)}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    tmp = tmp_path_factory.mktemp("sdist")
    return build("sdist", copy_of_the_tree(tmp / "tree"), tmp / "out")


def test_a_wheel_holds_every_module_and_nothing_else(wheel):
    files = files_of(wheel)
    assert files - metadata(files) == modules_of_the_tree()


def test_a_wheel_brings_one_name_and_one_command(wheel):
    told = {Path(name).name: zipfile.ZipFile(wheel).read(name).decode() for name in metadata(files_of(wheel))}
    assert told["top_level.txt"].split() == ["palimpsest"]
    assert told["entry_points.txt"].split("\n")[:2] == ["[console_scripts]", "palimpsest = palimpsest.train:main"]
    assert f"\nVersion: {palimpsest.__version__}\n" in told["METADATA"]


def test_an_sdist_holds_files_where_the_tree_holds_links(sdist):
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    files = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert modules_of_the_tree() <= files
    assert not {name for name in files if name.startswith("tests/")}


def test_a_wheel_made_from_an_sdist_is_the_same(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    again = build("wheel", tree, tmp_path / "out")
    assert files_of(again) == files_of(wheel)
    for name in files_of(wheel) - metadata(files_of(wheel)):
        assert zipfile.ZipFile(again).read(name) == zipfile.ZipFile(wheel).read(name), name


def test_an_editable_install_brings_one_name(tmp_path):
    """Started without the .pth files of site-packages: this checkout's editable install may be among them."""
    tree = copy_of_the_tree(tmp_path / "tree")
    with zipfile.ZipFile(build("editable", tree, tmp_path / "out")) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import site; site.addsitedir({str(tmp_path / 'site')!r})\n"
        "from importlib.util import find_spec\n"
        "import palimpsest.train\n"
        "print(palimpsest.__file__, *map(find_spec, ('agents', 'envs', 'memory', 'train')))"
    )
    path = (tmp_path / "site", Path(sysconfig.get_path("purelib")))
    printed = python("-S", "-c", code, cwd=tmp_path, path=path)
    assert printed.split() == [str(tree / "palimpsest/__init__.py"), *["None"] * 4]


def test_links_survive_git(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path / "clone"
    git = subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", clone], capture_output=True)
    assert git.returncode == 0, git.stderr
    assert {name: str((clone / "palimpsest" / name).readlink()) for name in LINKS} == LINKS
    assert python("-c", "import palimpsest; print(palimpsest.__file__)", cwd=clone).strip() == str(
        clone / "palimpsest/__init__.py"
    )


@pytest.mark.parametrize("left", ["nothing", "a text"])
def test_a_copy_whose_links_did_not_survive(left, tmp_path):
    """Git on Windows leaves a text, the path that a link leads to; some archives leave nothing."""
    tree = copy_of_the_tree(tmp_path)
    for name, target in LINKS.items():
        (tree / "palimpsest" / name).unlink()
        if left == "a text":
            (tree / "palimpsest" / name).write_text(target)
    code = (
        "import palimpsest.train, palimpsest.agents.run.config, palimpsest.memory.registry, envs, memory, train\n"
        "assert envs is palimpsest.envs and memory is palimpsest.memory\n"
        "print(palimpsest.train.__file__, palimpsest.envs.registration.__file__)"
    )
    found = python("-c", code, cwd=tree).split()
    assert found == [str(tree / "train.py"), str(tree / "envs/registration.py")]
    version = f"palimpsest {palimpsest.__version__}\n"
    assert python("train.py", "--version", cwd=tree) == python("-m", "palimpsest", "--version", cwd=tree) == version
