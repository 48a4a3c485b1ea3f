"""Put the agent of a finished run on the shelf, `palimpsest/shelf/`, or renew it there.

python benchmarks/shelf.py runs/maze endless-tmaze

The model's file is made small: without the optimiser's state, and with parameters in half precision. The figures in the
manifest are those of that file: greedy, in the training's setting and in the harder ones that the environment declares.
"""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import torch
import tyro

from palimpsest.agents.environments import closing_settings
from palimpsest.agents.files import shelf
from palimpsest.agents.files.archive import read_contents, write_tree
from palimpsest.agents.learn.model_file import CLASSES
from palimpsest.agents.run.config import CONFIG_FILE, TrainConfig
from palimpsest.agents.run.runs import Run, environments, evaluate, load_run


@dataclass
class Put:
    """Put the agent of a finished run on the shelf, or renew it there."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    name: Annotated[str, tyro.conf.Positional]
    """The agent's name on the shelf: `shelf:NAME`."""
    episodes: int = 200
    """Episodes of each test."""


def put(options: Put) -> dict[str, Any]:
    """Write the agent's folder and its entry in the manifest; the entry."""
    run = load_run(options.run, "cpu")
    folder = shelf.folder() / options.name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.run / CONFIG_FILE, folder / CONFIG_FILE)
    parameters = {name for name, _ in run.model.policy.named_parameters(remove_duplicate=False)}
    shrink(options.run / "model.zip", folder / "model.zip", parameters)
    entry = described(run, json.loads((options.run / "versions.json").read_text()))
    small = load_run(folder, "cpu")
    entry["figures"] = [figure(small, setting, options.episodes) for setting in settings(run.config)]
    manifest = shelf.folder() / shelf.MANIFEST
    known = shelf.entries() if manifest.exists() else {}
    ordered = dict(sorted((known | {options.name: entry}).items()))
    manifest.write_text(tomli_w.dumps(ordered), encoding="utf-8")
    return entry


def shrink(model: Path, small: Path, parameters: set[str]) -> None:
    """Write a model's file anew: no state of the optimiser, and the policy's `parameters` in half precision."""
    tree = read_contents(model, classes=CLASSES).tree
    # a tensor of two names, as of a memory that actor and critic share, stays one
    halves: dict[int, torch.Tensor] = {}
    for name, value in tree["parameters"]["policy"].items():
        if name in parameters and value.dtype == torch.float32:
            tree["parameters"]["policy"][name] = halves.setdefault(value.data_ptr(), value.half())
    tree["parameters"]["policy.optimizer"]["state"] = {}
    write_tree(small, tree)


def described(run: Run, versions: dict[str, Any]) -> dict[str, Any]:
    """What an entry says of the training."""
    words = versions["command"][1:]
    if "--run-dir" in words:
        at = words.index("--run-dir")
        words = words[:at] + words[at + 2 :]
    words = [word for word in words if word not in ("train", "--no-progress")]
    config = run.config
    return {
        "task": config.env,
        "memory": config.memory,
        "steps": run.model.num_timesteps,
        "seed": config.seed,
        "command": shlex.join(["palimpsest", "train", *words]),
        "commit": str(versions["commit"]),
        "parameters": sum(part.numel() for part in run.model.policy.parameters()),
    }


def settings(config: TrainConfig) -> list[dict[str, Any]]:
    """Arguments of the tests, the training's setting first."""
    env = environments(config, 1)
    try:
        return [{}, *closing_settings(env)]
    finally:
        env.close()


def figure(run: Run, setting: dict[str, Any], episodes: int) -> dict[str, Any]:
    """What an agent reaches in a setting."""
    result = evaluate(run, episodes=episodes, env_args=setting, device="cpu")
    known = {name: result[name] for name in ("episodes", "success", "return_mean", "return_std")}
    return {"env_args": setting, **{name: value for name, value in known.items() if value is not None}}


def table() -> str:
    """The agents as a Markdown table, for docs/shelf.md."""
    lines = [
        "| agent | environment | memory | steps | setting | success | mean return |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in shelf.entries().items():
        for each in entry["figures"]:
            setting = " ".join(f"{key}={value}" for key, value in each["env_args"].items()) or "as trained"
            success = f"{each['success']:.3f}" if "success" in each else "-"
            cells = (name, entry["task"].removeprefix("Palimpsest/"), entry["memory"], f"{entry['steps']:,}", setting)
            lines.append(f"| {' | '.join(cells)} | {success} | {each['return_mean']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    put(tyro.cli(Put, description=__doc__))
    print(f"docs/shelf.md:\n\n{table()}")
