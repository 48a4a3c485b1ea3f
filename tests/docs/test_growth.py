"""The figures of benchmarks/growth.py are those of the process that is measured."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from growth import highest_mib


def test_a_process_does_not_count_the_memory_of_the_one_that_started_it():
    source = f"import resource, sys\nfrom pathlib import Path\n{inspect.getsource(highest_mib)}\nprint(highest_mib())"
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert 1 < float(child.stdout) < 100 < highest_mib()  # torch alone takes more
