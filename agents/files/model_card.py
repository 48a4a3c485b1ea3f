"""A model card: README.md of a run directory, in the format of the Hugging Face hub, from the run's own files."""

from __future__ import annotations

import csv
import json
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.agents.files.archive import write_atomically

CARD = "README.md"
ALGORITHMS = {"ppo": "MemoryPPO", "dqn": "MemoryDQN", "sac": "MemorySAC"}


def write_model_card(directory: Path) -> None:
    """Write the card of a finished run beside its model.zip."""
    write_atomically(directory / CARD, model_card(directory).encode())


def model_card(directory: Path) -> str:
    """The card of a finished run. All figures in it are those of closing.json, else of the last row of evaluations.csv.

    Args:
        directory: of the run, with config.toml and versions.json.
    """
    config = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
    versions = json.loads((directory / "versions.json").read_text(encoding="utf-8"))
    algorithm = ALGORITHMS[config.get("algo", "ppo")]
    name = f"{algorithm} with memory {config['memory']} on {config['env']}"
    evaluations = _evaluations(directory)
    origin, results = _results(directory, config, evaluations)
    parts = [
        _front_matter(config, algorithm, name, results),
        f"# {name}",
        _about(config, algorithm, evaluations),
        f"## Results\n\n{origin}\n\n{_table(results)}" if results else "## Results\n\nNone: nothing was evaluated.",
        "![Learning curve](learning_curve.png)" if (directory / "learning_curve.png").exists() else "",
        _use(algorithm),
        _training(config, versions),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _evaluations(directory: Path) -> list[dict[str, str]]:
    path = directory / "evaluations.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _results(
    directory: Path, config: Mapping[str, Any], evaluations: list[dict[str, str]]
) -> tuple[str, list[dict[str, Any]]]:
    """Where figures come from, in words, and one dict for each setting."""
    closing = directory / "closing.json"
    if closing.exists():
        results = json.loads(closing.read_text(encoding="utf-8"))
        actions, seed = "Greedy" if results[0]["deterministic"] else "Sampled", results[0]["seed"]
        return (
            f"{actions} actions in episodes that training never saw, of seeds from {seed} on (`closing.json`).",
            results,
        )
    if not evaluations:
        return "", []
    last = evaluations[-1]
    origin = f"The last evaluation of the training, at step {int(last['step']):,}, greedy (`evaluations.csv`)."
    numbers = {key: float(value) if value else None for key, value in last.items()}
    return origin, [{"env_args": config["env_args"], **numbers, "episodes": int(last["episodes"])}]


def _front_matter(config: Mapping[str, Any], algorithm: str, name: str, results: list[dict[str, Any]]) -> str:
    """The metadata that the hub reads. A string of JSON is one of YAML."""
    env = json.dumps(config["env"])
    tags = ["reinforcement-learning", "deep-reinforcement-learning", "stable-baselines3", "memory", config["memory"]]
    lines = ["---", "library_name: palimpsest-rl", "pipeline_tag: reinforcement-learning", "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in [*tags, algorithm, config["env"]]]
    if results:
        first = results[0]
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:", "  - task:"]
        lines += ["      type: reinforcement-learning", "      name: reinforcement-learning", "    dataset:"]
        lines += [f"      name: {env}", f"      type: {env}", "    metrics:", "    - type: mean_reward"]
        lines += [f"      value: {first['return_mean']:.2f} +/- {first['return_std']:.2f}"]
        lines += ["      name: mean_reward", "      verified: false"]
        if first["success"] is not None:
            lines += ["    - type: success_rate", f"      value: {first['success']:.3f}"]
            lines += ["      name: success_rate", "      verified: false"]
    return "\n".join([*lines, "---"])


def _about(config: Mapping[str, Any], algorithm: str, evaluations: list[dict[str, str]]) -> str:
    # a training may end early, and its last evaluation is after its last step
    steps = f"{int(evaluations[-1]['step']):,}" if evaluations else f"about {config['total_timesteps']:,}"
    arguments = ", ".join(f"`{key}={value}`" for key, value in config["memory_args"].items()) or "the default arguments"
    task = ", ".join(f"`{key}={value}`" for key, value in config["env_args"].items()) or "the default arguments"
    return "\n".join(
        [
            "An agent with a memory, trained by palimpsest-rl.",
            "",
            f"- Task: `{config['env']}`, {task}",
            f"- Memory: `{config['memory']}`, {arguments}",
            f"- Algorithm: `{algorithm}`, {steps} environment steps, seed {config['seed']}",
        ]
    )


def _table(results: list[dict[str, Any]]) -> str:
    rows = ["| arguments | success | chance | mean return ± std | episodes |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        setting = ", ".join(f"{key}={value}" for key, value in result["env_args"].items()) or "default"
        success, error, chance = (result.get(key) for key in ("success", "success_se", "chance"))
        shown = "-" if success is None else f"{success:.3f}" + ("" if error is None else f" ± {error:.3f}")
        returns = f"{result['return_mean']:.2f} ± {result['return_std']:.2f}"
        rows.append(
            f"| {setting} | {shown} | {'-' if chance is None else f'{chance:.3g}'} | {returns} | {result['episodes']} |"
        )
    return "\n".join(rows)


def _use(algorithm: str) -> str:
    return f"""## Use

In this folder, with `pip install palimpsest-rl`:

```python
from palimpsest.agents import {algorithm}, evaluate

model = {algorithm}.load("model.zip")
print(evaluate(".", episodes=100))
```

`palimpsest export . --format onnx` writes it as a file that needs numpy and onnxruntime alone."""


def _training(config: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    told = {key: value for key, value in versions.items() if key != "command"}
    return "\n".join(
        [
            "## Training",
            "",
            "```bash",
            f"palimpsest train --config config.toml{_started(versions['command'])}",
            "```",
            "",
            f"Environment i of {config['num_envs']} was reset with seed {config['seed']} + i. Versions: "
            + ", ".join(f"{key} {value}" for key, value in told.items())
            + ".",
        ]
    )


def _started(command: list[str]) -> str:
    """The words with which the training was started, as a comment; empty if another program called it."""
    program, *words = command
    if Path(program).name not in ("palimpsest", "train.py", "__main__.py"):
        return ""
    kept = []
    for before, word in zip(["", *words], words):
        # where the run lay is no part of what it did
        if "--run-dir" not in (before.replace("_", "-"), word.partition("=")[0].replace("_", "-")):
            kept.append(word)
    return f"\n# it was started as: palimpsest {shlex.join(kept)}"
