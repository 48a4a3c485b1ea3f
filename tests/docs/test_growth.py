"""The figures of benchmarks/growth.py are those of the process that is measured; its page has those of its lines."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import growth
from growth import highest_mib

DOCS = Path(growth.__file__).parent.parent / "docs"


def test_a_process_does_not_count_the_memory_of_the_one_that_started_it():
    source = f"import resource, sys\nfrom pathlib import Path\n{inspect.getsource(highest_mib)}\nprint(highest_mib())"
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert 1 < float(child.stdout) < 100 < highest_mib()  # torch alone takes more


def test_the_power_is_that_of_the_three_largest_sizes():
    assert growth.power({2: 9.0, 4: 7 * 4**1.5, 8: 7 * 8**1.5, 16: 7 * 16**1.5}) == pytest.approx(1.5)
    assert growth.power({4: 3.0, 16: 3.0}) == pytest.approx(0)
    assert growth.power({2: 1.0, 4: 2.0, 8: None}) is None  # it did not fit into memory


def test_the_page_has_the_figures_of_its_lines():
    page = (DOCS / "growth.md").read_text()
    lines = growth.kept_lines(DOCS / "results" / "growth.jsonl")
    assert list(lines) == list(growth.PARTS)
    for part, (_, over, figures) in growth.PARTS.items():
        assert growth.table(lines[part][1:], over, figures) in page
