"""Every page: its Python runs, its commands are parsed by the real parser, the API page names what there is."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tyro

from palimpsest import agents, envs, memory, train
from palimpsest.agents.launch import start
from palimpsest.agents.run.config import TrainConfig
from palimpsest.memory import registry

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")

ELSEWHERE = {
    "docs/action-masks.md",
    "docs/bring-your-environment.md",
    "docs/environments.md",
    "docs/export.md",
    "docs/from-recurrent-ppo.md",
    "docs/sweeps.md",
    "docs/tensorboard.md",
    "docs/watching.md",
}
"""Pages whose Python runs in tests of their own, which also look at what it prints."""

NEED_THEIR_MODULE = {"docs/bring-your-environment.md"}
"""Pages whose commands run in a test of their own, beside a module that the page shows."""

SHORTER = [
    (r"\.learn\([\d_]+\)", ".learn(64)"),
    (r"num_envs=\d+", "num_envs=4"),
    (r"""evaluate\(model, ("[^"]+")(?!.*episodes=)""", r"evaluate(model, \1, episodes=2"),
    (r"episodes=\d+", "episodes=2"),
    (r"corridors=\d+", "corridors=1"),
]
"""What makes a page's code cheap; everything else runs as printed."""

STANDS_FOR = {"M": "lstm", "S": "0", "N": "1000", "$L": "9"}
"""Words of the pages' commands that a reader replaces."""


def blocks(text: str, *languages: str) -> list[str]:
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", text, re.DOTALL)


WITH_PYTHON = sorted(page for page, text in PAGES.items() if blocks(text, "python") and page not in ELSEWHERE)


@pytest.fixture
def own_registry(monkeypatch):
    """A page may register a memory."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


def run(page: str, monkeypatch) -> types.ModuleType:
    """All Python blocks of a page, one after the other, in one module. No memory is compiled."""
    module = types.ModuleType("page_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with memory.kernels.torch_only():
        for code in blocks(PAGES[page], "python"):
            for pattern, shorter in SHORTER:
                code = re.sub(pattern, shorter, code)
            exec(compile(code, page, "exec"), vars(module))
    return module


@pytest.mark.learning
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, own_registry):
    monkeypatch.chdir(tmp_path)
    run(page, monkeypatch)


@pytest.mark.learning
def test_a_memory_of_ones_own_trains_by_its_name(tmp_path, monkeypatch, own_registry):
    monkeypatch.chdir(tmp_path)
    run("docs/write-a-memory.md", monkeypatch)
    words = "--memory trace --env Palimpsest/TMaze-v0 --env-args length=3 --num-envs 4 --total-timesteps 512"
    with memory.kernels.torch_only():
        assert train.main(["train", *words.split(), "--no-progress", "--run-dir", "trace"]) == 0
    assert Path("trace/model.zip").is_file()


def test_a_memory_of_ones_own_is_40_lines():
    program, _ = blocks(PAGES["docs/write-a-memory.md"], "python")
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 40


class Parsed(BaseException):
    """The parser has accepted a command line."""


def commands(text: str) -> list[str]:
    """The lines of a page that start `palimpsest`, in fences and in indented code, continued lines joined."""
    fenced = "\n".join(blocks(text, "bash", "console"))
    indented = "\n".join(re.findall(r"^ {4,}(.*)$", text, re.MULTILINE))
    joined = re.sub(r"\\\n\s*", " ", f"{fenced}\n{indented}")
    found = re.findall(r"^\s*(?:\$ )?(?:palimpsest|python train\.py) (.*)$", joined, re.MULTILINE)
    return list(dict.fromkeys(found))


def words_of(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    return [STANDS_FOR.get(word, word.replace("$L", "9")) for word in words]


COMMANDS = [(page, command) for page in sorted(PAGES.keys() - NEED_THEIR_MODULE) for command in commands(PAGES[page])]
FROM_A_RUN = {"--resume", "--config", "--from"}


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_a_command_of_a_page_is_allowed(page, command, tmp_path, monkeypatch, capsys):
    """A new training is checked up to its start, with all arguments by name; other commands are parsed."""
    words = words_of(command)
    if words[0] in ("list", "--version"):
        return
    monkeypatch.chdir(tmp_path)
    trained: list[TrainConfig] = []
    monkeypatch.setattr(start, "train", lambda config, engine: trained.append(config))
    Path("ppo_lstm.yml").write_text("CartPoleNoVel-v1:\n  policy: MlpLstmPolicy\n")
    given = FROM_A_RUN & set(words)
    for flag in given:
        run_dir = Path(words[words.index(flag) + 1])
        run_dir.mkdir(parents=True)
        (run_dir / "config.toml").write_text(TrainConfig(progress=False).to_toml())
    if words[0] != "train" or given:
        real = tyro.cli

        def parse(*args, **kwargs):
            _, unknown = real(*args, **kwargs)
            if not unknown:
                raise Parsed
            return _, unknown

        monkeypatch.setattr(tyro, "cli", parse)
        with pytest.raises(Parsed):
            assert train.main(words) == 0, capsys.readouterr().err
    else:
        assert train.main(words) == 0, capsys.readouterr().err
        assert len(trained) == 1


def test_commands_are_found():
    assert len(COMMANDS) > 20
    assert any("\\" not in command and "--carry-over" in command for _, command in COMMANDS)


def test_the_api_page_names_what_the_packages_offer():
    """A new public name is a line `::: module.name` of docs/api.md."""
    for package in (agents, envs, memory):
        section = PAGES["docs/api.md"].split(f"## {package.__name__}\n")[1].split("\n## ")[0]
        named = re.findall(r"^::: ([\w.]+)$", section, re.MULTILINE)
        assert sorted(name.rpartition(".")[2] for name in named) == sorted(set(package.__all__) - {"kernels"})
        for name in named:
            module, _, attribute = name.rpartition(".")
            assert getattr(importlib.import_module(module), attribute) is getattr(package, attribute)


@pytest.mark.programs
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason='needs the extra "docs"')
    pytest.importorskip("mkdocstrings", reason='needs the extra "docs"')
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "MemoryPPO" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")


def test_the_pictures_of_the_concepts_show_what_the_page_says():
    drawn = runpy.run_path(str(ROOT / "docs" / "concepts.py"))
    for name in ("retention", "rewriting", "capacity", "order"):
        assert f"pictures/{name}.png" in PAGES["docs/concepts.md"]
        assert (ROOT / "docs" / "pictures" / f"{name}.png").is_file()
    assert drawn["influence"]("none", 4)[1:].max() == 0
    window = drawn["influence"]("gtrxl", 12, memory_length=3)
    assert window[6] > 0 == window[8:].max()
    assert drawn["right_answers"](6, 16, "delta") > 0.95 > 0.9 > drawn["right_answers"](16, 16, "delta")
    assert drawn["right_answers"](16, 16, "add") > drawn["right_answers"](16, 16, "delta")
