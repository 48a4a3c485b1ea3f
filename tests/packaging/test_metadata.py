"""What the project says of itself: bounds, extras, citation, targets."""

from __future__ import annotations

import re
import runpy
import subprocess
import tomllib

import pytest
from builds import ROOT

import palimpsest

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>= ]", requirement)[0].lower()


def test_every_dependency_has_a_lower_bound_that_is_tested():
    lowest = runpy.run_path(str(ROOT / ".ci" / "lowest.py"))["lowest"]()
    pinned = dict(line.split("==") for line in lowest)
    assert {name_of(line) for line in PROJECT["dependencies"]} | {"pytest", "hypothesis"} == set(pinned)
    for line in PROJECT["dependencies"]:
        assert f">={pinned[name_of(line)]}" in line or name_of(line) == "torch"  # see NOT_LOWEST


def test_an_extra_is_part_of_what_developers_install():
    """So that the tests of what it brings run; `bench` is what figures are compared with, not what is tested."""
    names = {extra: {name_of(line) for line in lines} for extra, lines in EXTRAS.items()}
    assert {"bench", "cluster", "tune", "docs", "export", "dev"} <= names.keys()
    assert set().union(*names.values()) - names["bench"] <= names["dev"]


def test_every_requirement_is_pinned_for_developers():
    pins = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    wanted = {name_of(line) for line in [*PROJECT["dependencies"], *EXTRAS["dev"]]}
    assert wanted <= pins


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {palimpsest.__version__}\n" in text
    (author,) = PROJECT["authors"]
    assert f"name: {author['name']}\n" in text
    assert author["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_make_help_lists_every_target():
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    help_of_make = ["make", "--no-print-directory", "help"]  # the tests are themselves run by a make
    try:
        shown = subprocess.run(help_of_make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("no make here")
    assert {line.split()[0] for line in shown.splitlines()} == set(targets.split())
