"""A model that was saved and loaded acts, learns and normalises as before, and its file runs no code."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small import small_arguments, small_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from worlds import Counter

import palimpsest
from palimpsest import memory
from palimpsest.agents import MemoryPPO
from palimpsest.agents.files.archive import CHECKSUMS, DATA, TENSORS, CorruptFile, read_tree, write_tree
from palimpsest.agents.files.classes import qualified_name
from palimpsest.agents.policy.layers import Tanh


def counters(n: int = 3) -> DummyVecEnv:
    return DummyVecEnv([lambda row=row: Counter(row) for row in range(n)])


def make(name: str = "gru", env=None, **kwargs) -> MemoryPPO:
    policy = {"memory": name, "memory_kwargs": small_arguments(name)} | kwargs.pop("policy", {})
    env = counters() if env is None else env
    return MemoryPPO("MlpMemoryPolicy", env, n_steps=16, n_epochs=1, policy_kwargs=policy, seed=0, **kwargs)


def actions(model: MemoryPPO) -> np.ndarray:
    rng = np.random.default_rng(0)
    state, start, taken = None, np.ones(3, bool), []
    for _ in range(20):
        action, state = model.predict(rng.random((3, 2)).astype(np.float32), state, start, deterministic=True)
        start = rng.random(3) < 0.2
        taken.append(action)
    return np.stack(taken)


@pytest.mark.parametrize("name", memory.names())
def test_saved_and_loaded_models_act_alike(name, tmp_path):
    model = make(name, learning_rate=LinearSchedule(1e-2, 0.0, 1.0))
    model.learn(96)
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(actions(model), actions(loaded))
    for mine, its in zip(model.policy.state_dict().values(), loaded.policy.state_dict().values()):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)
    assert loaded.num_timesteps == 96
    assert loaded.lr_schedule(0.5) == model.lr_schedule(0.5)


def test_a_loaded_model_learns_on_with_its_optimiser():
    model = make("lstm")
    model.learn(96)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = MemoryPPO.load(file, env=counters(5))
    steps = [state["step"].item() for state in loaded.policy.optimizer.state_dict()["state"].values()]
    assert min(steps) > 0
    loaded.learn(80, reset_num_timesteps=False)
    assert loaded.num_timesteps == 96 + 80


def test_separate_memories_and_normalisation_are_kept(tmp_path):
    model = make("gru", env=VecNormalize(counters()), policy={"share_memory": False})
    model.learn(96)
    model.save(tmp_path / "model.zip")
    loaded = MemoryPPO.load(tmp_path / "model.zip", env=VecNormalize(counters()))
    mine, its = model.get_vec_normalize_env(), loaded.get_vec_normalize_env()
    np.testing.assert_array_equal(mine.obs_rms.mean, its.obs_rms.mean)
    assert mine.ret_rms.count == its.ret_rms.count
    np.testing.assert_array_equal(actions(model), actions(loaded))


class Squash(torch.nn.Tanh):
    """An activation that no table knows."""


def test_classes_are_asked_for_and_never_imported(tmp_path):
    model = make(policy={"activation_fn": Squash}, learning_rate=lambda progress: 1e-3 * progress)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"Squash.*custom_objects=\{'policy_kwargs\.activation_fn'.*'learning_rate'"):
        MemoryPPO.load(tmp_path / "model")
    objects = {"policy_kwargs.activation_fn": Squash, "learning_rate": 5e-4}
    loaded = MemoryPPO.load(tmp_path / "model", custom_objects=objects)
    assert isinstance(loaded.policy.encoder[1], Squash)
    assert loaded.lr_schedule(1.0) == 5e-4
    np.testing.assert_array_equal(actions(model), actions(loaded))


def test_classes_of_torch_sb3_and_ours_come_back_without_asking(tmp_path):
    policy = {
        "activation_fn": torch.nn.ReLU,
        "optimizer_class": torch.optim.RMSprop,
        "features_extractor_class": FlattenExtractor,
    }
    model = make(policy=policy)
    model.learn(48)
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model")
    assert type(loaded.policy.optimizer) is torch.optim.RMSprop
    assert type(loaded.policy.encoder[1]) is torch.nn.ReLU
    assert loaded.policy_kwargs == model.policy_kwargs
    np.testing.assert_array_equal(actions(model), actions(loaded))
    model = make(policy={"activation_fn": Tanh})
    model.save(tmp_path / "ours")
    assert MemoryPPO.load(tmp_path / "ours").policy_kwargs["activation_fn"] is Tanh


@pytest.mark.parametrize("name", ["agents.activations.Tanh", "agents.layers.Tanh"])
def test_files_from_before_the_one_name_palimpsest_are_read(name, tmp_path):
    model = make(policy={"activation_fn": Tanh})
    model.learn(48)
    model.save(tmp_path / "model")
    now = qualified_name(Tanh)

    def renamed(content: bytes) -> bytes:
        assert content.count(now.encode()) == 1
        return content.replace(now.encode(), name.encode())

    with_changed_data(tmp_path / "model.zip", renamed)
    loaded = MemoryPPO.load(tmp_path / "model")
    assert type(loaded.policy.encoder[1]) is Tanh
    np.testing.assert_array_equal(actions(model), actions(loaded))


def with_changed_data(path: Path, change) -> None:
    """Rewrite a file's JSON, with checksums that fit."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries[DATA] = change(entries[DATA])
    lines = [f"{hashlib.sha256(entries[name]).hexdigest()}  {name}\n" for name in (DATA, TENSORS)]
    entries[CHECKSUMS] = "".join(lines).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def linear(first: float):
    """The schedule that SB3's documentation shows; any two have one qualified name."""

    def schedule(progress: float) -> float:
        return progress * first

    return schedule


def test_two_functions_of_one_name_do_not_become_one_another(tmp_path):
    make(learning_rate=linear(3e-4), clip_range=linear(0.2), ent_coef=linear(0.1)).save(tmp_path / "model")
    objects = {"learning_rate": linear(3e-4), "clip_range": linear(0.2), "ent_coef": linear(0.1)}
    name = qualified_name(linear(1))
    asked = r"custom_objects=\{'learning_rate': \.\.\., 'ent_coef': \.\.\., 'clip_range': \.\.\.\}"
    for given in (None, {name: linear(3e-4)}, {"schedule": linear(3e-4)}):
        with pytest.raises(ValueError, match=asked):
            MemoryPPO.load(tmp_path / "model", custom_objects=given)
    with pytest.raises(ValueError, match=r"custom_objects=\{'ent_coef': \.\.\.\}"):
        MemoryPPO.load(tmp_path / "model", custom_objects={k: v for k, v in objects.items() if k != "ent_coef"})
    loaded = MemoryPPO.load(tmp_path / "model", custom_objects=objects)
    assert (loaded.lr_schedule(0.5), loaded.clip_range(0.5), loaded.ent_coef(0.5)) == (1.5e-4, 0.1, 0.05)
    loaded = MemoryPPO.load(tmp_path / "model", **objects)
    assert (loaded.lr_schedule(0.5), loaded.clip_range(0.5), loaded.ent_coef(0.5)) == (1.5e-4, 0.1, 0.05)


@pytest.mark.parametrize(
    ("schedule", "half"),
    [(LinearSchedule(0.4, 0.2, 1.0), 0.3), (ConstantSchedule(0.3), 0.3), (FloatSchedule(LinearSchedule(1, 0, 1)), 0.5)],
)
def test_schedules_come_back_by_value_at_every_argument(schedule, half, tmp_path):
    names = ("learning_rate", "clip_range", "clip_range_vf", "ent_coef")
    make(**dict.fromkeys(names, schedule)).save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model")
    assert [getattr(loaded, name)(0.5) for name in names] == pytest.approx([half] * 4)


def test_arguments_given_by_keyword_take_effect(tmp_path):
    make().save(tmp_path / "model")
    logs = str(tmp_path / "logs")
    changed = dict(
        n_steps=32, batch_size=64, learning_rate=1e-4, clip_range=0.1, stats_window_size=7, tensorboard_log=logs
    )
    for loaded in (
        MemoryPPO.load(tmp_path / "model", env=counters(), **changed),
        MemoryPPO.load(tmp_path / "model", env=counters(), custom_objects=changed),
    ):
        assert (loaded.n_steps, loaded.batch_size, loaded._stats_window_size) == (32, 64, 7)
        assert (loaded.lr_schedule(1.0), loaded.clip_range(1.0), loaded.tensorboard_log) == (1e-4, 0.1, logs)
        assert loaded.learn(96).rollout_buffer.pos == 32
    assert MemoryPPO.load(tmp_path / "model", num_timesteps=5).num_timesteps == 5


def test_a_new_seed_draws_anew(tmp_path):
    model = make()
    model.learn(48)
    model.save(tmp_path / "model")
    again = [MemoryPPO.load(tmp_path / "model", seed=seed).rng.random() for seed in (3, 3, 4)]
    assert again[0] == again[1] != again[2]
    assert MemoryPPO.load(tmp_path / "model").rng.random() == model.rng.random()


BAD_KEYWORDS = {
    "batchsize": (dict(batchsize=64), r"MemoryPPO\.load has no keyword 'batchsize' \(did you mean 'batch_size'\?\)"),
    "customobjects": (dict(custom_object={}), r"no keyword 'custom_object'"),
    "policy": (dict(policy="MlpMemoryPolicy"), r"no keyword 'policy'"),
    "a value": (dict(n_steps="many"), r"n_steps must be an integer.*got 'many'"),
    "a range": (dict(custom_objects={"gamma": 2.0}), r"gamma must be a number, 0 to 1; got 2\.0"),
    "a schedule": (dict(learning_rate="x"), r"learning_rate must be"),
    "a device": (dict(device="gpu"), r"device must be .*got 'gpu'"),
    "policy_kwargs": (dict(policy_kwargs={}), r"policy_kwargs must be those of the file"),
    "a class": (
        dict(custom_objects={"policy_class": "Mlp"}),
        r"what was given to load, learning_rate, policy_class: policy must be",
    ),
}


@pytest.mark.parametrize("case", BAD_KEYWORDS)
def test_what_was_given_is_blamed_and_not_the_file(case, tmp_path):
    make(learning_rate=linear(1e-3)).save(tmp_path / "model")
    kwargs, message = BAD_KEYWORDS[case]
    given = {"learning_rate": 1e-3} | kwargs.get("custom_objects", {})
    kwargs = {name: value for name, value in kwargs.items() if name != "custom_objects"}
    with pytest.raises(ValueError, match=message) as caught:
        MemoryPPO.load(tmp_path / "model", custom_objects=given, **kwargs)
    assert not isinstance(caught.value, CorruptFile)
    assert "\n" not in str(caught.value)


def test_a_misspelt_keyword_is_told_before_a_missing_function(tmp_path):
    make(learning_rate=linear(1e-3)).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"'learningrate'.*did you mean 'learning_rate'"):
        MemoryPPO.load(tmp_path / "model", learningrate=1e-3)


def test_parameters_that_do_not_fit_what_was_given_are_told(tmp_path):
    model = make(policy={"net_arch": [8]})
    model.save(tmp_path / "model")
    wrong = {"policy_kwargs": model.policy_kwargs | {"net_arch": [9]}}
    with pytest.raises(ValueError, match=r"model\.zip' with what was given to load, policy_kwargs: .*size mismatch"):
        MemoryPPO.load(tmp_path / "model", custom_objects=wrong)


def test_policy_kwargs_may_be_given_as_they_were(tmp_path):
    model = make(policy={"activation_fn": Squash, "net_arch": [8]})
    model.save(tmp_path / "model")
    kwargs = {"memory": "gru", "memory_kwargs": small_arguments("gru"), "activation_fn": Squash, "net_arch": [8]}
    loaded = MemoryPPO.load(tmp_path / "model", policy_kwargs=kwargs)
    np.testing.assert_array_equal(actions(model), actions(loaded))
    make(policy={"activation_fn": torch.nn.ReLU}).save(tmp_path / "other")
    with pytest.raises(ValueError, match="policy_kwargs must be those of the file"):
        MemoryPPO.load(tmp_path / "other", policy_kwargs=kwargs | {"activation_fn": torch.nn.Tanh})


def test_attributes_of_ones_own_are_kept_and_told_of(tmp_path):
    model = make()
    model.note = {"trained on": "counters"}
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="note, which a MemoryPPO does not know"):
        loaded = MemoryPPO.load(tmp_path / "model")
    assert loaded.note == model.note


def test_what_is_excluded_has_its_default_and_what_is_needed_is_named(tmp_path):
    model = make(gamma=0.5)
    model.save(tmp_path / "model", exclude=["gamma", "verbose"])
    loaded = MemoryPPO.load(tmp_path / "model", env=counters())
    assert loaded.gamma == 0.99
    model.save(tmp_path / "less", exclude=["observation_space"])
    with pytest.raises(CorruptFile, match=r"lacks observation_space.*save it without exclude"):
        MemoryPPO.load(tmp_path / "less")
    with pytest.warns(UserWarning, match=r"include=\['_logger', 'env'\] is left out"):
        model.save(tmp_path / "more", include=["env", "_logger", "gamma"])
    assert MemoryPPO.load(tmp_path / "more").gamma == 0.5


def test_a_path_for_logs_comes_back(tmp_path):
    make(tensorboard_log=tmp_path / "logs").save(tmp_path / "model")
    assert MemoryPPO.load(tmp_path / "model").tensorboard_log == tmp_path / "logs"


def test_parameters_alone_need_no_functions_of_the_file(tmp_path):
    model = make(learning_rate=linear(1e-2))
    model.learn(48)
    model.save(tmp_path / "model")
    other = make()
    for file in (tmp_path / "model", str(tmp_path / "model.zip"), io.BytesIO((tmp_path / "model.zip").read_bytes())):
        other.set_parameters(file)
        np.testing.assert_array_equal(actions(model), actions(other))
    write_tree(tmp_path / "other", {"a": 1})
    with pytest.raises(CorruptFile, match="holds no model"):
        other.set_parameters(tmp_path / "other")


def test_information_on_both_systems_is_printed(tmp_path, capsys):
    make().save(tmp_path / "model")
    assert MemoryPPO.load(tmp_path / "model") is not None
    assert capsys.readouterr().out == ""
    MemoryPPO.load(tmp_path / "model", print_system_info=True)
    out = capsys.readouterr().out
    current, saved = (out.index(f"== {name} SYSTEM INFO ==") for name in ("CURRENT", "SAVED MODEL"))
    assert current < saved
    assert out.count(f"- Palimpsest: {palimpsest.__version__}") == out.count(f"- PyTorch: {torch.__version__}") == 2
    write_tree(tmp_path / "old", {k: v for k, v in read_tree(tmp_path / "model").items() if k != "written_by"})
    MemoryPPO.load(tmp_path / "old", print_system_info=True)
    assert "the file does not say" in capsys.readouterr().out


class Resets(Counter):
    """Counts its resets."""

    count = 0

    def reset(self, **kwargs):
        self.count += 1
        return super().reset(**kwargs)


def test_without_a_forced_reset_it_goes_on_where_it_was(tmp_path):
    worlds = [Resets(row) for row in (1, 2, 5)]
    env = DummyVecEnv([lambda world=world: world for world in worlds])
    model = make("lstm", env=env)
    model.learn(48)
    model.save(tmp_path / "model")
    before = [world.count for world in worlds]
    loaded = MemoryPPO.load(tmp_path / "model", env=env, force_reset=False)
    np.testing.assert_array_equal(loaded._last_obs, model._last_obs)
    assert type(loaded._last_state) is type(model._last_state)
    torch.testing.assert_close(tuple(loaded._last_state), tuple(model._last_state), rtol=0, atol=0)
    assert any(part.abs().max() > 0 for part in loaded._last_state)
    loaded._setup_learn(48, None, reset_num_timesteps=False)
    assert [world.count for world in worlds] == before
    torch.testing.assert_close(tuple(loaded._last_state), tuple(model._last_state), rtol=0, atol=0)
    assert loaded.learn(48, reset_num_timesteps=False).num_timesteps == 96

    fresh = MemoryPPO.load(tmp_path / "model", env=env)
    assert fresh._last_obs is None
    assert fresh._last_state is None
    with pytest.raises(ValueError, match=r"force_reset=False continues in the 3 environments.*got 5"):
        MemoryPPO.load(tmp_path / "model", env=counters(5), force_reset=False)
    MemoryPPO.load(tmp_path / "model", env=counters(5)).learn(80)


def test_a_registered_id_will_do_as_env(tmp_path):
    model = MemoryPPO("MlpMemoryPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs=small_policy("gru"))
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", env="CartPole-v1")
    assert loaded.learn(8).num_timesteps == 8


def test_parameters_can_be_set_from_a_file(tmp_path):
    model = make()
    model.learn(48)
    model.save(tmp_path / "model")
    other = make()
    other.set_parameters(str(tmp_path / "model.zip"))
    np.testing.assert_array_equal(actions(model), actions(other))
