"""docs/results.md is what its script makes of the tables of sweeps."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import results


def test_the_page_is_that_of_the_tables():
    assert results.PAGE.read_text(encoding="utf-8") == results.page()


def test_a_table_that_is_missing_is_named(tmp_path):
    shutil.copy(results.LINES / "published.toml", tmp_path)
    (tmp_path / "page.md").write_text("<!-- nothing -->\n")
    with pytest.raises(ValueError, match=r"nothing\.csv"):
        results.page(tmp_path)
