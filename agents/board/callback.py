"""The callback that gives TensorBoard what SB3's logger does not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.utils.tensorboard import SummaryWriter

from palimpsest.agents.board.events import writer_of
from palimpsest.agents.board.first_page import layout, write_end, write_hparams
from palimpsest.agents.board.inside import distributions, pictures, root_mean_square, states
from palimpsest.agents.board.pictures import curve
from palimpsest.agents.environments import registered_id
from palimpsest.agents.evaluation.intervals import BetweenIterations
from palimpsest.agents.files.versions import versions
from palimpsest.agents.off_policy.algorithm import OffPolicyMemoryAlgorithm
from palimpsest.agents.workers.group import here

Kinds = Mapping[str, Any]


class TensorBoardCallback(BetweenIterations):
    """Writes to the model's TensorBoard events, beside the scalars that every SB3 logger writes there.

    At the beginning: a layout for TensorBoard's custom scalars, whose first page shows return, success, steps per
    second and the memory; hyperparameters, by which its HPARAMS page compares the runs of a folder; texts. At
    intervals: histograms of what the memories show and hold, and of advantages; pictures of the last scan and of what
    reads weigh. Of several workers the first one alone writes, and shows its own rows.

    Args:
        every: environment steps between histograms and pictures; 0 for none.
        hparams: name -> value, beside those that are the model's own.
        texts: name -> Markdown, beside versions and command. Default: the model's arguments.

    Raises:
        ValueError: at the beginning of a training without `tensorboard_log` or another TensorBoard output.
    """

    def __init__(
        self, every: int = 50_000, hparams: Mapping[str, Any] | None = None, texts: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(every)
        self.hparams = dict(hparams or {})
        self.texts = texts
        self._curves: dict[str, list[tuple[int, Kinds]]] = {}

    @property
    def writer(self) -> SummaryWriter:
        """The writer of the logger's TensorBoard output."""
        found = writer_of(self.logger)
        if found is None:
            raise ValueError(
                "TensorBoardCallback writes beside the logger's TensorBoard output, and there is none; give the model "
                "tensorboard_log, or a logger made by stable_baselines3.common.logger.configure(..., ['tensorboard'])"
            )
        return found

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if here().rank:
            return
        writer, step = self.writer, self.num_timesteps
        writer.add_custom_scalars(layout(isinstance(self.model, OffPolicyMemoryAlgorithm)))
        # a registration is not asked for where its id is known: not every one goes through a pipe
        known = self.hparams if "env" in self.hparams else {"env": registered_id(self.training_env), **self.hparams}
        write_hparams(writer, model_hparams(self.model) | known)
        found = versions()
        command = shlex.join(found.pop("command"))
        texts = {"arguments": _table(model_arguments(self.model))} if self.texts is None else self.texts
        for name, text in {**texts, "versions": _table(found), "command": f"    {command}"}.items():
            writer.add_text(f"run/{name}", text, step)
        writer.flush()

    def work(self) -> None:
        """Write histograms and pictures of now."""
        if here().rank:
            return
        model: Any = self.model
        writer, step = self.writer, self.num_timesteps
        for tag, values in states(model).items():
            writer.add_scalar(f"{tag}_rms", root_mean_square(values), step)
        for tag, values in distributions(model).items():
            writer.add_histogram(tag, values, step)
        for tag, picture in pictures(model).items():
            writer.add_image(tag, picture, step, dataformats="HWC")
        writer.flush()

    def seen(self, result: dict[str, Any]) -> dict[str, Any]:
        """Draw how an evaluation's success depends on the kind of answer, as its age or its overwrites; `result` again.

        Args:
            result: of `agents.evaluate`.
        """
        for name, kinds in result["success_by"].items():
            if kinds and here().rank == 0:
                found = self._curves.setdefault(name, [])
                found.append((self.num_timesteps, kinds))
                self.writer.add_image(
                    f"eval/success_by_{name}", curve(name, found), self.num_timesteps, dataformats="HWC"
                )
        return result

    def _on_training_end(self) -> None:
        super()._on_training_end()
        if here().rank == 0:
            write_end(self.writer)
            self.writer.flush()


def model_hparams(model: Any) -> dict[str, Any]:
    """The values of `COMPARED` that a model has, but for the environment's id."""
    found = {name: getattr(model, name, None) for name in ("seed", "gamma", "learning_rate")}
    if isinstance(model, OnPolicyAlgorithm):
        found |= {"n_steps": model.n_steps, "ent_coef": model.ent_coef, "carry_over": model.memory_carry_over}  # type: ignore[attr-defined]
    policy = model.policy
    return {
        **{name: value(1.0) if callable(value) else value for name, value in found.items()},
        "memory": policy.memory_name,
        "memory_args": policy.memory_kwargs,
        "share_memory": policy.shares_memory,
        "algo": type(model).__name__.removeprefix("Memory").lower(),
        "num_envs": model.n_envs,
    }


def model_arguments(model: Any) -> dict[str, Any]:
    """The arguments that a model was made with, by name."""
    return {name: getattr(model, name) for name in sorted(type(model).allowed) if hasattr(model, name)}


def _table(values: Mapping[str, Any]) -> str:
    """A Markdown table of names and values."""

    def shown(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        return text.replace("|", "\\|").replace("\n", " ")

    return "\n".join(["| name | value |", "| --- | --- |", *(f"| {name} | {shown(values[name])} |" for name in values)])
