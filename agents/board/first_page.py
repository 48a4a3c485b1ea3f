"""The layout of TensorBoard's custom scalars, and what its HPARAMS page compares runs by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

Layout = dict[str, dict[str, list[Any]]]

COMPARED: dict[str, str | float] = {
    "env": "",
    "env_args": "",
    "memory": "",
    "memory_args": "",
    "share_memory": "",
    "algo": "",
    "algo_args": "",
    "seed": 0,
    "total_timesteps": 0,
    "num_envs": 0,
    "learning_rate": 0.0,
    "gamma": 0.0,
    "n_steps": 0,
    "ent_coef": 0.0,
    "carry_over": 0.0,
    "width": 0,
}
"""Name of a hyperparameter -> a value of its type. TensorBoard takes the columns of all runs from one of them, so every
run names the same."""

FIRST = frozenset({"env", "memory", "seed", "algo", "learning_rate"})
"""The columns that TensorBoard shows unasked; others are a click away. It takes those first that are said to differ,
and shows five."""

METRICS = (
    "closing/success",
    "closing/success_lowest",
    "closing/return_mean",
    "eval/success",
    "eval/return_mean",
    "time/fps",
)
"""Scalars by which runs are compared."""


def layout(off_policy: bool) -> Layout:
    """The pages of custom scalars: category -> chart -> its tags, as regular expressions."""

    def lines(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{tag}$" for tag in tags]]

    pages: Layout = {
        "At a glance": {
            "return": lines("rollout/ep_rew_mean", "eval/return_mean"),
            "success": lines("rollout/success_rate", "eval/success"),
            "steps per second": lines("time/fps", "time/rollout_steps_per_s", "time/update_steps_per_s"),
            "memory: its gates and reads": lines("memory/(?!state_)[^/]*"),
            "memory: size of its state": lines("memory/state_[^/]*"),
        },
        "Does it remember?": {
            "memory at events and elsewhere": lines("memory/.*_(at_events|elsewhere)"),
            "the critic's memory": lines("memory_critic/.*"),
            "after the last step: success by setting": lines("closing/success", "closing_harder/success.*"),
            "length of episodes": lines("rollout/ep_len_mean", "eval/length_mean"),
        },
        "Does it learn?": {
            "losses": lines("train/(loss|value_loss|policy_gradient_loss|actor_loss|critic_loss)"),
            "entropy": lines("train/(entropy_loss|ent_coef|std)"),
            "how far an update moves": lines("train/(approx_kl|clip_fraction)"),
            "explained variance": lines("train/explained_variance"),
            "norm of the gradient": lines("train/grad_norm"),
            "learning rate": lines("train/learning_rate"),
        },
    }
    if off_policy:
        pages["What is replayed"] = {
            "age of what is sampled": lines("replay/sampled_age"),
            "updates since its state": lines("replay/state_staleness"),
            "values and their errors": lines("train/(q_mean|td_error)"),
            "exploration": lines("rollout/exploration_rate"),
        }
    return pages


def write_hparams(writer: SummaryWriter, given: Mapping[str, Any]) -> None:
    """Write the hyperparameters of a run that begins; what is neither text nor number is shown as text."""
    shown = {name: _plain(value) for name, value in given.items() if value is not None}
    metrics = dict.fromkeys(METRICS, 0.0)
    columns, begun = hparams(COMPARED | shown, metrics)[0], hparams(shown, metrics)[1]
    plugin = columns.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    for column in data.experiment.hparam_infos:
        column.differs = column.name in FIRST
    plugin.content = data.SerializeToString()
    for summary in (columns, begun):
        writer._get_file_writer().add_summary(summary)


def write_end(writer: SummaryWriter) -> None:
    """Note that the run has ended."""
    writer._get_file_writer().add_summary(hparams({}, {})[2])


def _plain(value: Any) -> str | float:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " ".join(f"{key}={part}" for key, part in value.items()) or "-"
    return value if isinstance(value, int | float) else str(value)
