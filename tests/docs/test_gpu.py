"""The GPU's script at sizes at which nothing is measured, on the CPU: it must work where a GPU is lent for minutes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import gpu  # noqa: E402
import gpu_parts  # noqa: E402


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(folder=tmp_path, device="cpu", tiny=True)


@pytest.mark.filterwarnings("ignore:the environment's longest correlation horizon")
def test_every_part_writes_lines_of_which_the_page_is_made(options):
    gpu_parts.describe(options)
    gpu_parts.scans(options)
    gpu_parts.loops(options)
    gpu_parts.loops(options, on_cpu=True)
    lines = gpu.read(options.folder)
    # not every CPU has nn.LSTM in bfloat16
    failed = [line for line in lines if "error" in line]
    assert [line for line in failed if (line["memory"], line.get("autocast")) != (gpu_parts.PLAIN, True)] == []
    scans = {(line["memory"], line["T"], line["autocast"]) for line in lines if line["part"] == "scans"}
    assert scans == {(name, T, cast) for name in (gpu_parts.PLAIN, "mingru") for T in (4, 8) for cast in (False, True)}
    assert all(line["acting_s"] > 0 < line["updating_s"] for line in lines if line["part"] == "loops")
    lines.append(dict(part="tests", test="t.py::test_a", outcome="failed", error="E 1 != 2"))
    lines.append(dict(part="scans", memory="dnc", T=8, B=3, H=16, autocast=False, error="OutOfMemoryError: 3 GiB"))
    lines.append(dict(part="run", of="loops", ended="stopped, as it took too long", seconds=60.0))
    page = gpu.page(lines)
    assert "1 failed" in page
    assert "- dnc, T = 8: OutOfMemoryError: 3 GiB" in page
    assert "- loops: stopped, as it took too long" in page
    assert page.count("| lstm | ") == len([line for line in lines if line["part"] == "loops"])
    assert "| 8 | dnc | – | – | – | – | – | – |" in page


def test_an_error_is_a_line_and_stops_nothing(options, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error\nand more")

    monkeypatch.setattr(gpu_parts, "_pass", broken)
    gpu_parts.scans(options)
    lines = gpu.read(options.folder)
    assert len(lines) == 8
    assert {line["error"] for line in lines} == {"RuntimeError: CUDA error"}


@pytest.mark.programs
def test_the_script_runs_its_parts_in_processes(tmp_path):
    folder = tmp_path / "found"
    command = [
        str(ROOT / "benchmarks" / "gpu.sh"),
        str(folder),
        "--device",
        "cpu",
        "--tiny",
        "--only",
        "machine",
        "tests",
    ]
    environment = {**os.environ, "PYTHON": sys.executable, "COMMIT": "abc"}
    subprocess.run(command, env=environment, check=True, timeout=300)
    lines = [json.loads(line) for line in (folder / "figures.jsonl").read_text().splitlines()]
    assert [(line["of"], line["ended"]) for line in lines if line["part"] == "run"] == [
        ("machine", "done"),
        ("tests", "done"),
    ]
    assert next(line for line in lines if line["part"] == "machine")["commit"] == "abc"
    assert {line["outcome"] for line in lines if line["part"] == "tests"} == {"skipped"}
    assert (folder / "gpu.md").read_text().startswith("# On a GPU")


def test_a_part_that_takes_too_long_is_ended():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
    assert gpu.finished(process, 0.2) == "stopped, as it took too long"
    gpu.end(process)
    assert process.returncode == -9
