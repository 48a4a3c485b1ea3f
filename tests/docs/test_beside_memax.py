"""The page of benchmarks/beside_memax.py has the figures of its lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from palimpsest import memory

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import beside_memax

DOCS = Path(beside_memax.__file__).parent.parent / "docs"


def test_the_page_has_the_figures_of_its_lines():
    lines = (DOCS / "results" / "beside_memax.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert (DOCS / "beside_memax.md").read_text() == beside_memax.page(rows)
    for row in rows:
        assert row["ours"].split(",")[0] in memory.names()
        # what is not equal differs by its definition alone
        assert row.get("with our definition", row["as published"]) < 1e-5
