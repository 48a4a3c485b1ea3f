"""What a training leaves for TensorBoard: the layout, scalars, histograms, pictures, texts, runs side by side."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from small import small_arguments
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.util.tensor_util import make_ndarray

from palimpsest import envs, memory
from palimpsest.agents import MemoryDQN, MemoryPPO, TensorBoardCallback
from palimpsest.agents.board.first_page import COMPARED, FIRST, METRICS, layout
from palimpsest.agents.board.inside import distributions, pictures, states
from palimpsest.agents.run import callbacks, experiment
from palimpsest.agents.run.config import TrainConfig

OF_ALL = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}


def config(directory: Path, **kwargs) -> TrainConfig:
    defaults = dict(
        env="Palimpsest/KeyValueRewrite-v0",
        memory="gru",
        memory_args=small_arguments("gru"),
        total_timesteps=4 * 64,
        num_envs=2,
        n_steps=32,
        n_epochs=1,
        width=8,
        eval_every=128,
        eval_episodes=4,
        checkpoint_every=64,
        closing_episodes=2,
        share_memory=False,
        progress=False,
        run_dir=directory,
        device="cpu",
    )
    return TrainConfig(**{**defaults, **kwargs})


def quiet() -> Console:
    return Console(quiet=True)


def events(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), size_guidance=OF_ALL).Reload()


def charts(found: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    """The layout, category -> chart -> tags, as TensorBoard reads it."""
    text = make_ndarray(found.Tensors("custom_scalars__config__")[0].tensor_proto).item()
    pages = layout_pb2.Layout.FromString(text)
    return {page.title: {chart.title: list(chart.multiline.tag) for chart in page.chart} for page in pages.category}


def compared(found: EventAccumulator) -> tuple[set[str], dict[str, object]]:
    """The columns of HPARAMS, and this run's values."""
    columns = metadata.parse_experiment_plugin_data(found.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content)
    begun = metadata.parse_session_start_info_plugin_data(
        found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    )
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in begun.hparams.items()}
    assert {info.name.tag for info in columns.metric_infos} == set(METRICS)
    assert {info.name for info in columns.hparam_infos if info.differs} == FIRST
    return {info.name for info in columns.hparam_infos}, values


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that was trained, and tested at its end."""
    directory = tmp_path_factory.mktemp("runs") / "one"
    experiment.train(config(directory), quiet())
    return directory


def test_every_chart_of_the_first_page_has_lines(run):
    found = events(run)
    tags = found.Tags()["scalars"]
    pages = charts(found)
    assert list(pages) == ["At a glance", "Does it remember?", "Does it learn?"]
    first = {
        title: {tag for tag in tags for line in lines if re.match(line, tag)}
        for title, lines in pages["At a glance"].items()
    }
    assert first["return"] == {"rollout/ep_rew_mean", "eval/return_mean"}
    assert first["success"] == {"rollout/success_rate", "eval/success"}
    assert "time/fps" in first["steps per second"]
    assert first["memory: size of its state"] == {"memory/state_h_rms"}
    assert "memory_critic/state_h_rms" in tags


def test_histograms_and_pictures_are_those_of_evaluations(run):
    found = events(run)
    assert {"memory/state_h", "memory_critic/state_h", "rollout/advantages"} <= set(found.Tags()["histograms"])
    for tag in found.Tags()["histograms"]:
        assert [event.step for event in found.Histograms(tag)] == [128, 256], tag
    assert [event.step for event in found.Images("eval/success_by_overwrites")] == [128, 256]
    assert found.Images("eval/success_by_overwrites")[0].encoded_image_string.startswith(b"\x89PNG")


def test_texts_and_the_closing_test(run):
    found = events(run)
    texts = {
        name: make_ndarray(found.Tensors(f"run/{name}/text_summary")[0].tensor_proto).item().decode()
        for name in ("configuration", "versions", "command")
    }
    assert 'memory = "gru"' in texts["configuration"]
    assert "| torch |" in texts["versions"]
    assert texts["command"].strip()
    for tag in ("closing/success", "closing/return_mean", "closing/success_lowest"):
        assert [event.step for event in found.Scalars(tag)] == [256]


def test_runs_are_compared_by_the_same_columns(run, tmp_path):
    columns, values = compared(events(run))
    assert columns == set(COMPARED)
    assert values["env"] == "Palimpsest/KeyValueRewrite-v0"
    assert values["memory"] == "gru"
    assert values["memory_args"] == "output_size=6 num_layers=2"
    assert values["env_args"] == "-"
    assert values["share_memory"] == "no"
    assert values["carry_over"] == 0.9
    other = events_of_dqn(tmp_path)
    its_columns, its_values = compared(other)
    assert its_columns == columns
    assert its_values["algo"] == "dqn"
    assert "carry_over" not in its_values
    assert "What is replayed" in charts(other)
    assert "memory/state_h" in other.Tags()["histograms"]


def events_of_dqn(directory: Path) -> EventAccumulator:
    small = dict(buffer_size=200, learning_starts=60, batch_size=2, sequence_length=4, burn_in=2, n_steps=2)
    changes = dict(env="Palimpsest/TMaze-v0", env_args={"length": 3}, algo="dqn", algo_args=small, num_envs=2)
    ppo = dict.fromkeys(("n_steps", "n_epochs"))
    given = {name: TrainConfig.__dataclass_fields__[name].default for name in ppo}
    experiment.train(config(directory / "dqn", **changes, **given, closing_episodes=0), quiet())
    return events(directory / "dqn")


def test_a_run_that_goes_on_repeats_no_step_and_keeps_its_layout(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def step(self) -> bool:
        if self.num_timesteps > 200:
            raise Killed
        return True

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.CheckpointCallback, "_on_step", step)
        with pytest.raises(Killed):
            experiment.train(config(tmp_path / "run"), quiet())
    experiment.train(config(tmp_path / "run", resume=tmp_path / "run", run_dir=None), quiet())
    found = events(tmp_path / "run")
    for tag in found.Tags()["histograms"]:
        assert [event.step for event in found.Histograms(tag)] == [128, 256], tag
    for tag in found.Tags()["images"]:
        assert [event.step for event in found.Images(tag)] == [128, 256], tag
    for tag in found.Tags()["scalars"]:
        steps = [event.step for event in found.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
    assert list(charts(found)) == list(layout(False))
    assert compared(found)[1]["memory"] == "gru"


def maze() -> envs.sb3.VecEnv:
    return envs.make_vec("Palimpsest/EndlessTMaze-v0", 2, seed=0, corridors=2, length=2)


@pytest.mark.parametrize("name", memory.names())
def test_every_memory_has_histograms_of_what_it_holds_and_shows(name):
    kwargs = dict(memory=name, memory_kwargs=small_arguments(name), encoder_arch=[5])
    model = MemoryPPO("MlpMemoryPolicy", maze(), n_steps=8, batch_size=16, n_epochs=1, policy_kwargs=kwargs, seed=0)
    model.policy.compiled = False
    before = model.learn(16).policy.state_dict()
    found = distributions(model)
    shown = model.policy.memory.diagnostics()
    assert {f"memory/{tag}" for tag, value in shown.items() if value.ndim in (1, 3)} <= found.keys()
    assert all(tag in found for tag, values in states(model).items() if values.numel())
    assert {"rollout/advantages", "rollout/returns"} <= found.keys()
    for tag, values in found.items():
        assert values.ndim == 1, tag
        assert values.isfinite().all(), tag
    drawn = pictures(model)
    assert ("memory/last_scan" in drawn) == any(value.ndim for value in shown.values())
    assert all(picture.ndim == 3 and picture.dtype == np.uint8 for picture in drawn.values())
    tells = type(model.policy.memory).read_weights is not memory.Memory.read_weights
    assert tells or "memory/read_weights" not in drawn
    if name == "rewrite":
        assert {"memory/last_scan", "memory/read_weights"} <= drawn.keys()
    assert all((before[key] == value).all() for key, value in model.policy.state_dict().items())


def test_a_model_in_python_gets_the_same_by_a_callback(tmp_path):
    kwargs = dict(memory="rewrite", memory_kwargs=small_arguments("rewrite"), encoder_arch=[5])
    model = MemoryPPO(
        "MlpMemoryPolicy", maze(), n_steps=8, batch_size=16, policy_kwargs=kwargs, seed=3, tensorboard_log=str(tmp_path)
    )
    model.policy.compiled = False
    model.learn(64, TensorBoardCallback(every=32, hparams={"note": "mine"}))
    found = events(tmp_path / "MemoryPPO_1")
    columns, values = compared(found)
    assert columns == {*COMPARED, "note"}
    assert values["note"] == "mine"
    assert values["seed"] == 3
    assert values["env"] == "Palimpsest/EndlessTMaze-v0"
    assert values["learning_rate"] == pytest.approx(3e-4)
    assert {"memory/keep", "memory/rewrite"} <= set(found.Tags()["histograms"])
    assert {"memory/last_scan", "memory/read_weights"} == set(found.Tags()["images"])
    arguments = make_ndarray(found.Tensors("run/arguments/text_summary")[0].tensor_proto).item().decode()
    assert "| gamma | 0.99 |" in arguments


def test_without_the_callback_there_are_scalars_alone(tmp_path):
    model = MemoryPPO(
        "MlpMemoryPolicy",
        maze(),
        n_steps=8,
        batch_size=16,
        policy_kwargs=dict(memory="ffm", memory_kwargs=small_arguments("ffm")),
        tensorboard_log=str(tmp_path),
    )
    model.policy.compiled = False
    model.learn(32)
    found = events(tmp_path / "MemoryPPO_1").Tags()
    assert "memory/half_life_steps_mean" in found["scalars"]
    assert not found["histograms"]
    assert not found["images"]


def test_a_replay_gives_reads_without_moving_the_agents_draws(tmp_path):
    kwargs = dict(memory="rewrite", memory_kwargs=small_arguments("rewrite"), encoder_arch=[5])
    model = MemoryDQN(
        "MlpMemoryPolicy",
        maze(),
        buffer_size=64,
        learning_starts=20,
        batch_size=2,
        sequence_length=4,
        policy_kwargs=kwargs,
        seed=0,
    )
    model.policy.compiled = False
    assert "memory/read_weights" not in pictures(model.learn(2)), "nothing has been played yet"
    model.learn(40)
    before = model.rng.bit_generator.state
    assert "memory/read_weights" in pictures(model)
    assert model.rng.bit_generator.state == before


def test_a_callback_without_tensorboard_is_refused():
    model = MemoryPPO("MlpMemoryPolicy", maze(), n_steps=8, batch_size=16, policy_kwargs=dict(memory="none"))
    with pytest.raises(ValueError, match="give the model tensorboard_log"):
        model.learn(16, TensorBoardCallback())
