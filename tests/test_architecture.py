"""The floors of docs/architecture.md, read from every import statement: who may import whom, and how big a part is.

Imports for a type checker and inside functions count. So do names of modules in strings, which registries and lazy
faces import when they are asked; only a circle may pass through those.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _modules() -> dict[str, Path]:
    """Name below `palimpsest` -> file; the face `palimpsest` itself is ""."""
    found = {path.stem: path for path in (ROOT / "palimpsest").glob("*.py")} | {"train": ROOT / "train.py"}
    for folder in ("agents", "envs", "memory"):
        found |= {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / folder).rglob("*.py")}
    return {re.sub(r"\.?__init__$", "", name): path for name, path in found.items()}


MODULES = _modules()

ARITHMETIC = "memory.kernels.arithmetic"
CLASSES = sorted(f"memory.kernels.{path.parent.name}" for path in (ROOT / "memory/kernels").glob("*/__init__.py"))
CLASSES.remove(ARITHMETIC)
GROUND = [
    "agents.tree",
    "agents.device",
    "agents.environments",
    "agents.masks",
    "agents.observation_checks",
    "agents.slips",
    "agents.drawing",
    "agents.printing",
    "agents.advantages",
]
ROOMS = [
    f"agents.{room}" for room in ("files", "workers", "policy", "evaluation", "learn", "off_policy", "run", "sweep")
]
WORLDS, COMMAND, WATCH, EXPORT = "agents.worlds", "agents.command", "agents.watch", "agents.export"
LAUNCH, BOARD = "agents.launch", "agents.board"

MAY_IMPORT: dict[str, list[str]] = {
    "refusals": [],
    "imports": [],
    "cache_folder": [],
    "source_stamp": [],
    "machine_code": ["cache_folder", "source_stamp"],
    "short_names": [],
    "fork_server": [],
    "envs": ["short_names"],
    ARITHMETIC: [],
    **{recurrence: [ARITHMETIC] for recurrence in CLASSES},
    "memory.kernels": [ARITHMETIC, *CLASSES],
    "memory.messages": [],
    "memory.base": ["memory.messages", ARITHMETIC],
    "memory.parts": ["memory.base", "memory.messages", ARITHMETIC, *CLASSES],
    "memory": ["memory.base", "memory.messages", "memory.parts", "memory.kernels", ARITHMETIC, *CLASSES, "short_names"],
    "agents.tree": [],
    "agents.device": [],
    "agents.masks": ["agents.environments"],
    "agents.observation_checks": [],
    "agents.slips": [],
    "agents.drawing": [],
    "agents.printing": [],
    "agents.advantages": ["machine_code"],
    "agents.environments": ["envs"],
    "agents.files": [*GROUND],
    "agents.workers": [*GROUND],
    "agents.policy": [*GROUND, *ROOMS[:2], "memory", "memory.base", "memory.kernels", ARITHMETIC],
    "agents.evaluation": [*GROUND, *ROOMS[:2], "envs", "memory", "memory.base"],
    "agents.learn": [*GROUND, *ROOMS[:4], "envs", "memory", "memory.base", "memory.kernels", ARITHMETIC],
    "agents.off_policy": [*GROUND, *ROOMS[:5]],
    WORLDS: [*GROUND, "envs", "fork_server"],
    BOARD: [*GROUND, *ROOMS[:6], "memory.base", ARITHMETIC],
    "agents.run": [*GROUND, WORLDS, BOARD, *ROOMS[:6], "envs", "memory"],
    LAUNCH: [*GROUND, WORLDS, *ROOMS[:7], "fork_server", "memory"],
    "agents.sweep": [*GROUND, *ROOMS[:7], "envs", "fork_server", "memory"],
    "agents.tune": [*GROUND, *ROOMS, "memory"],
    "agents.zoo": ["agents.learn", "agents.run", "envs"],
    COMMAND: ["agents.run"],
    WATCH: [*GROUND, WORLDS, *ROOMS[2:4], "agents.run", "envs", "memory.base", ARITHMETIC],
    EXPORT: [*GROUND, WORLDS, *ROOMS[:7], "memory.base"],
    "agents": ["agents.masks", *ROOMS, BOARD, EXPORT, "short_names"],
    "train": [
        "agents.files",
        "agents.run",
        "agents.sweep",
        "agents.tune",
        "agents.zoo",
        COMMAND,
        LAUNCH,
        WATCH,
        EXPORT,
        "",
    ],
    "__main__": ["train"],
    "": ["agents", "envs", "memory"],
}
"""Part -> the parts it may import, besides itself and `COMMON_GROUND`. A module is in the part of the longest name."""

COMMON_GROUND = {"refusals", "imports", "machine_code"}
"""What every part may import."""

FACES = ("", "agents", "memory.kernels")
"""Parts of one `__init__.py`: a new file beside it must be given a floor of its own."""

ALLOWED_FOREIGN: dict[str, set[str]] = {
    "memory": {"llvmlite", "numba", "numpy", "torch"},
    "envs": {"gymnasium", "minigrid", "numba", "numpy"},
    "palimpsest": {"numba", "numpy"},
}
"""Folder -> the distributions it may import, besides the standard library."""

TOUCH_SB3 = {"envs.sb3", "envs.sb3_wrappers", "envs.halves", "envs.registration"}
"""The first three say so in their docstring; the last names a type that `make_vec` returns."""


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def part_of(module: str) -> str:
    names = module.split(".")
    return next(part for end in range(len(names), -1, -1) if (part := ".".join(names[:end])) in MAY_IMPORT)


def imported(tree: ast.AST) -> Iterator[str]:
    """What the import statements name, whole: `from a.b import c` is a.b.c where that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if below(whole) in MODULES else str(node.module)


def named_in_strings(tree: ast.AST) -> Iterator[str]:
    """The modules of strings like "palimpsest.memory.base" and "palimpsest.envs.tmaze:ActiveTMaze"."""
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if found := re.fullmatch(r"(palimpsest(?:\.\w+)+)(?::\w*)?", text):
            yield found[1]


def below(name: str) -> str | None:
    """The name below `palimpsest` of one of our modules, None of another."""
    top, _, rest = name.partition(".")
    return rest if top == "palimpsest" else None


def said(module: str) -> str:
    return ast.get_docstring(tree_of(module)) or ""


@functools.cache
def by_statements(module: str) -> set[str]:
    return {found for name in imported(tree_of(module)) if (found := below(name)) is not None}


@functools.cache
def by_any_means(module: str) -> set[str]:
    named = {found for name in named_in_strings(tree_of(module)) if (found := below(name)) is not None}
    return by_statements(module) | named


def unlawful(module: str) -> set[str]:
    part = part_of(module)
    allowed = {part, *COMMON_GROUND, *MAY_IMPORT[part]}
    return {target for target in by_any_means(module) if part_of(target) not in allowed}


def test_a_module_imports_its_own_floor_and_those_below():
    wrong = {module: found for module in MODULES if (found := unlawful(module))}
    assert not wrong, "see MAY_IMPORT"


def test_every_name_of_a_module_is_one():
    wrong = {module: found for module in MODULES if (found := by_any_means(module) - set(MODULES))}
    assert not wrong


def test_the_floors_are_those_of_the_tree():
    assert {part_of(module) for module in MODULES} == set(MAY_IMPORT)
    assert {module for module in MODULES if part_of(module) in FACES} == set(FACES)
    assert {target for allowed in MAY_IMPORT.values() for target in allowed} <= set(MAY_IMPORT)


def test_no_module_imports_itself_in_a_circle():
    # CycleError shows the circle
    order = list(graphlib.TopologicalSorter({m: by_statements(m) for m in MODULES}).static_order())
    assert set(order) == set(MODULES)


def test_a_part_knows_only_its_own_libraries():
    wrong = {}
    for module in MODULES:
        found = (
            {name.partition(".")[0] for name in imported(tree_of(module))} - sys.stdlib_module_names - {"palimpsest"}
        )
        folder = MODULES[module].relative_to(ROOT).parts[0]
        allowed = ALLOWED_FOREIGN.get(folder, found) | ({"stable_baselines3"} if module in TOUCH_SB3 else set())
        if found - allowed:
            wrong[module] = found - allowed
    assert not wrong, "see ALLOWED_FOREIGN"


def test_no_module_needs_a_library_of_one_system_alone():
    of_one_system = {"fcntl", "grp", "msvcrt", "posix", "pwd", "resource", "termios", "winreg"}
    wrong = {module: found for module in MODULES if (found := set(imported(tree_of(module))) & of_one_system)}
    assert not wrong


def test_a_file_of_envs_that_needs_sb3_says_so():
    assert all("SB3" in said(module) for module in TOUCH_SB3 - {"envs.registration"})


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import a, b.c\nfrom d import e", ["a", "b.c", "d"]),
        ("from palimpsest.memory import base, make", ["palimpsest.memory.base", "palimpsest.memory"]),
        ("from palimpsest import memory", ["palimpsest.memory"]),
        ("if TYPE_CHECKING:\n    import a\ndef f():\n    class C:\n        import b", ["a", "b"]),
        ("try:\n    import a\nexcept ImportError:\n    from b import c", ["a", "b"]),
    ],
)
def test_imports_are_read_wherever_they_stand(source, names):
    assert list(imported(ast.parse(source))) == names


def test_modules_in_strings_are_read():
    source = 'register("palimpsest.memory.sat:SAT")\nf"palimpsest.envs.vector:{name}"\n"see palimpsest.memory.sat"'
    assert list(named_in_strings(ast.parse(source))) == ["palimpsest.memory.sat", "palimpsest.envs.vector"]


FOLDERS_OF_MODULES = sorted({path.parent for path in MODULES.values()} - {ROOT})
MOST_FILES = {"envs": 99, "memory": 99}
"""Folders with more than 12 files: `envs` has one per task, `memory` one per memory."""


def test_a_folder_is_small():
    counts = {folder.name: len(list(folder.glob("*.py"))) for folder in FOLDERS_OF_MODULES}
    assert not {name: count for name, count in counts.items() if count > MOST_FILES.get(name, 12)}


def test_a_folder_says_what_lives_there():
    silent = [module for module, path in MODULES.items() if path.name == "__init__.py" and not said(module)]
    assert not silent
    assert all((folder / "__init__.py").is_file() for folder in FOLDERS_OF_MODULES)


def test_a_file_is_short():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert not {module: length for module, length in lengths.items() if length > 400}
