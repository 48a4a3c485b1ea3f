"""Every memory becomes an ONNX file, as the table of docs/export.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from exported_worlds import Noise
from gymnasium import spaces
from small import VARIANTS, cases, small_policy

from palimpsest import memory
from palimpsest.agents import MemoryPPO, export_policy
from palimpsest.agents.export.formats import NotExported

pytestmark = pytest.mark.programs

DOCS = Path(__file__).resolve().parents[3] / "docs/export.md"
TABLE = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", DOCS.read_text(), re.MULTILINE))


def test_the_table_names_every_memory():
    assert list(TABLE) == memory.names()


def small_kwargs(case: str) -> dict:
    """Of one layer, where a memory has layers: more take longer to write and are written alike."""
    name, different = VARIANTS.get(case, (case, {}))
    kwargs = small_policy(name)
    arguments = kwargs["memory_kwargs"]
    kwargs["memory_kwargs"] = arguments | ({"num_layers": 1} if "num_layers" in arguments else {}) | different
    return kwargs


QUICK = {"dnc", "sat"}
"""Those whose operations need a translation of ours, or a form of their own; all together take minutes of CPU time.
That every memory's step can be recorded is a law of tests/laws/test_watched.py."""
CASES = [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in cases() if case != "gla-fixed"]


@pytest.mark.parametrize("case", CASES)
def test_a_memory_is_exported(case, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    space: spaces.Space = spaces.Box(-1, 1, (3,))
    kwargs = small_kwargs(case)
    if case == "sat-place":
        space = spaces.Dict(place=spaces.Discrete(2), seen=space)
        kwargs["memory_kwargs"]["num_places"] = 2
    policy = "MultiInputMemoryPolicy" if case == "sat-place" else "MlpMemoryPolicy"
    model = MemoryPPO(policy, Noise(space, spaces.Discrete(3)), policy_kwargs=kwargs, seed=0, device="cpu")
    # other tests hold kernels equal to torch's operations; here they would have to be compiled for every memory
    model.policy.compiled = False
    if TABLE[VARIANTS.get(case, (case,))[0]] == "no":
        with pytest.raises(NotExported, match="no file is written"):
            export_policy(model, tmp_path / "agent.onnx", episodes=3)
        return
    made = export_policy(model, tmp_path / "agent.onnx", episodes=3)
    assert made.checked.episodes >= 3
    assert len(made.signature.states) == len(model.policy.initial_state(1))
