"""What stable-baselines3 tests of saving and loading, done with MemoryPPO: the situations are theirs.

Deliberate differences: a function is asked for instead of unpickled, and a CUDA device that is not there is refused.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_arguments
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Spaces

from palimpsest.agents import CnnMemoryPolicy, MemoryPPO, MlpMemoryPolicy, MultiInputMemoryPolicy

BOX = spaces.Box(-10, 10, (1,), np.float32)
IMAGE = spaces.Box(0, 255, (40, 40, 2), np.uint8)
DICT = spaces.Dict(image=IMAGE, flat=BOX)
OBSERVATIONS = {"MlpMemoryPolicy": BOX, "CnnMemoryPolicy": IMAGE, "MultiInputMemoryPolicy": DICT}
CLASSES = {cls.__name__: cls for cls in (MlpMemoryPolicy, CnnMemoryPolicy, MultiInputMemoryPolicy)}


def worlds(n: int = 1, observations: spaces.Space = BOX, actions: spaces.Space = BOX) -> DummyVecEnv:
    return DummyVecEnv([lambda: Spaces(observations, actions) for _ in range(n)])


def make(policy: str = "MlpMemoryPolicy", env=None, policy_kwargs=None, **kwargs) -> MemoryPPO:
    small = {"memory": "gru", "memory_kwargs": small_arguments("gru"), "net_arch": [16], **(policy_kwargs or {})}
    env = worlds(observations=OBSERVATIONS[policy]) if env is None else env
    defaults = dict(n_steps=16, batch_size=16, n_epochs=1, device="cpu", policy_kwargs=small)
    return MemoryPPO(policy, env, **{**defaults, **kwargs})


def observations_of(space: spaces.Space, n: int = 10):
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=0)


def randomised(model: MemoryPPO) -> MemoryPPO:
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.copy_(torch.rand_like(parameter))
    return model


def test_parameters_that_belong_to_nothing_or_are_missing_are_refused():
    model = make().learn(16)
    whole = deepcopy(model.get_parameters())
    assert set(whole) == {"policy", "policy.optimizer"}
    for exact in (True, False):
        with pytest.raises(ValueError, match="no_such_object"):
            model.set_parameters({**whole, "no_such_object": {}}, exact_match=exact)
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        model.set_parameters({"policy": whole["policy"]})
    last = list(whole["policy"])[-1]
    less = {name: tensor for name, tensor in whole["policy"].items() if name != last}
    with pytest.raises(RuntimeError, match="Missing key"):
        model.set_parameters({**whole, "policy": less})
    assert_same(whole["policy"], model.get_parameters()["policy"])


def test_some_parameters_are_set_and_the_others_stay():
    model = make().learn(16)
    before = deepcopy(model.get_parameters()["policy"])
    *changed, kept = before
    model.set_parameters({"policy": {name: before[name] + 1 for name in changed}}, exact_match=False)
    after = model.get_parameters()["policy"]
    torch.testing.assert_close(after[kept], before[kept], rtol=0, atol=0)
    for name in changed:
        torch.testing.assert_close(after[name], before[name] + 1, rtol=0, atol=0)


@pytest.mark.parametrize("device", ["auto", "cpu", torch.device("cpu")])
@pytest.mark.parametrize("form", [str, Path])
def test_a_loaded_model_has_its_parameters_acts_alike_and_learns(device, form, tmp_path):
    env = worlds()
    model = randomised(make(env=env).learn(32))
    model.save(form(tmp_path / "model.zip"))
    loaded = MemoryPPO.load(form(tmp_path / "model.zip"), env=env, device=device)
    assert loaded.device.type == loaded.policy.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert_same(model.get_parameters()["policy"], {k: v.cpu() for k, v in loaded.get_parameters()["policy"].items()})
    obs = observations_of(BOX)
    np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    before = loaded.num_timesteps
    loaded.learn(16, reset_num_timesteps=False)
    assert loaded.num_timesteps == before + 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused(tmp_path):
    model = make()
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    for load in (
        lambda: MemoryPPO.load(tmp_path / "model", device="cuda"),
        lambda: MlpMemoryPolicy.load(tmp_path / "policy", device="cuda"),
        lambda: model.set_parameters(tmp_path / "model", device="cuda"),
    ):
        with pytest.raises(ValueError, match=r"'cuda' is not there.*use device='cpu' or 'auto'"):
            load()


def test_environments_are_exchanged(tmp_path):
    model = make().learn(16)
    model.set_env(worlds())
    assert model._last_obs is None
    assert model.learn(16).num_timesteps == 16
    model.set_env(Spaces(BOX, BOX))
    model.learn(16)
    with pytest.raises(AssertionError, match=r"MemoryPPO\.load"):
        model.set_env(worlds(2))
    model.set_env(model.get_env(), force_reset=False)
    assert model._last_obs is not None
    assert model.learn(16, reset_num_timesteps=False).num_timesteps == 32

    env = model.get_env()
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", env=env, force_reset=False)
    assert loaded._last_obs is not None
    assert loaded.learn(16, reset_num_timesteps=False).num_timesteps == 48
    loaded = MemoryPPO.load(tmp_path / "model", env=Spaces(BOX, BOX), force_reset=True)
    assert loaded._last_obs is None
    assert loaded.learn(16, reset_num_timesteps=False).num_timesteps == 48
    assert MemoryPPO.load(tmp_path / "model", env=worlds(2)).learn(32).num_timesteps == 32


def test_a_model_is_loaded_alone_and_given_environments_later(tmp_path):
    make().learn(16).save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model")
    assert loaded.get_env() is None
    loaded.set_env(worlds())
    assert loaded.learn(16, reset_num_timesteps=False).num_timesteps == 32


def test_attributes_are_excluded_included_and_replaced(tmp_path, capsys):
    model = make(verbose=2)
    model.save(tmp_path / "model", exclude=["verbose"])
    loaded = MemoryPPO.load(str(tmp_path / "model.zip"))
    assert loaded.verbose == 0
    loaded.verbose = 2
    loaded.save(tmp_path / "model", exclude=["verbose"], include=["verbose"])
    objects = {"learning_rate": 2e-5, "dummy": 1.0, "lr_schedule": lambda _: 0.0}
    loaded = MemoryPPO.load(tmp_path / "model", custom_objects=objects, print_system_info=True)
    assert (loaded.verbose, loaded.learning_rate) == (2, 2e-5)
    assert loaded.lr_schedule(0.5) == 2e-5
    assert not hasattr(loaded, "dummy")
    assert "SYSTEM INFO" in capsys.readouterr().out


def test_images_are_loaded_with_the_arguments_of_the_training(tmp_path):
    env = Spaces(IMAGE, BOX)
    extractor = {"features_extractor_kwargs": {"features_dim": 8}}
    model = make("CnnMemoryPolicy", env, extractor).learn(16)
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(str(tmp_path / "model.zip"), env=env, policy_kwargs=model.policy_kwargs)
    assert loaded.observation_space.shape == (2, 40, 40)
    loaded.learn(16)


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_a_policy_is_saved_alone(name, use_sde, tmp_path):
    model = randomised(make(name, use_sde=use_sde).learn(16))
    policy, obs = model.policy, observations_of(model.observation_space)
    policy.save(tmp_path / "new" / "policy.pkl")
    loaded = CLASSES[name].load(tmp_path / "new" / "policy.pkl")
    assert_same(policy.state_dict(), loaded.cpu().state_dict())
    for _ in range(2):  # a state is given back too
        (action, state), (again, its) = (p.predict(obs, deterministic=True) for p in (policy, loaded))
        np.testing.assert_allclose(action, again)
        np.testing.assert_allclose(state, its)


POLICIES = {
    "one each": dict(share_memory=False),
    "two extractors": dict(share_memory=False, share_features_extractor=False),
    "torch's classes": dict(activation_fn=torch.nn.ELU, optimizer_class=torch.optim.SGD),
    "two heads": dict(net_arch={"pi": [7], "vf": [5, 3]}),
    "another memory": dict(memory="lstm", memory_kwargs=small_arguments("lstm")),
    "no encoder": dict(encoder_arch=[]),
}


@pytest.mark.parametrize("case", POLICIES)
def test_a_policys_arguments_are_saved_with_it(case, tmp_path):
    policy = randomised(make(policy_kwargs=POLICIES[case])).policy
    policy.save(tmp_path / "policy")
    with pytest.raises(ValueError, match="holds a policy; use the load of its class"):
        MemoryPPO.load(tmp_path / "policy")
    loaded = MlpMemoryPolicy.load(tmp_path / "policy")
    assert type(loaded.optimizer) is type(policy.optimizer)
    assert loaded.activation_fn is policy.activation_fn
    obs = observations_of(BOX)
    np.testing.assert_array_equal(
        policy.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0]
    )


class Own(torch.nn.Tanh):
    """An activation that only its user knows."""


def test_a_policy_asks_for_classes_of_the_users_and_runs_no_pickle(tmp_path):
    policy = make(policy_kwargs={"activation_fn": Own}).policy
    policy.save(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"Own.*custom_objects=\{'policy\.activation_fn': \.\.\.\}"):
        MlpMemoryPolicy.load(tmp_path / "policy")
    loaded = MlpMemoryPolicy.load(tmp_path / "policy", custom_objects={"policy.activation_fn": Own})
    assert type(loaded.encoder[1]) is Own
    torch.save({"state_dict": policy.state_dict(), "data": {}}, tmp_path / "pickle.zip")
    with pytest.raises(ValueError, match=r"a pickle of torch\.save, which can run code"):
        MlpMemoryPolicy.load(tmp_path / "pickle.zip")
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds a model; use MemoryPPO\.load"):
        MlpMemoryPolicy.load(tmp_path / "model")


def test_paths_get_a_suffix_where_they_have_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make()
    for given, written in (("a", "a.zip"), (Path("b.zip"), "b.zip"), ("c.ext", "c.ext"), ("new/d", "new/d.zip")):
        model.save(given)
        assert Path(written).is_file()
        MemoryPPO.load(given)
    (tmp_path / "folder").mkdir()
    model.save("folder")
    MemoryPPO.load("folder")
    for absent in ("nowhere", "nowhere.zip", Path("nowhere/at/all")):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            MemoryPPO.load(absent)


def test_what_is_no_file_is_refused(tmp_path):
    model = make()
    for wrong in (123, None, io.StringIO()):
        with pytest.raises(ValueError, match="open in mode 'wb'"):
            model.save(wrong)
        with pytest.raises(ValueError, match="open in mode 'rb'"):
            MemoryPPO.load(wrong)
    file = (tmp_path / "model").open("w+b")
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        model.save(file)


@pytest.mark.filterwarnings("error")
def test_files_are_closed_and_file_objects_stay_open(tmp_path):
    model = make()
    for path in (tmp_path / "model", str(tmp_path / "model")):
        model.save(path)
        MemoryPPO.load(path)
    for make_file in (tempfile.TemporaryFile, io.BytesIO):
        with make_file() as file:
            model.save(file)
            MemoryPPO.load(file)
            MemoryPPO.load(file)
            assert not file.closed


@pytest.mark.filterwarnings("error")
def test_a_function_is_asked_for_and_taken_without_a_word(tmp_path):
    make(learning_rate=lambda _: 1.0).save(tmp_path / "model")
    with pytest.raises(ValueError, match="custom_objects"):
        MemoryPPO.load(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", custom_objects={"learning_rate": lambda _: 0.5})
    assert loaded.lr_schedule(1.0) == 0.5


def test_a_learning_rate_is_a_float_whatever_its_schedule_gives(tmp_path):
    rate = lambda progress: progress * np.sin(1.0)  # noqa: E731  as their users write it
    model = make(learning_rate=rate)
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", custom_objects={"learning_rate": rate})
    for each in (model, loaded):
        assert type(each.lr_schedule(1.0)) is float
        assert each.lr_schedule(0.5) == pytest.approx(0.5 * np.sin(1.0))


def test_heads_by_default_come_back(tmp_path):
    make(policy_kwargs={"net_arch": None}).save(tmp_path / "model")
    assert MemoryPPO.load(tmp_path / "model").policy.net_arch == {"pi": [64], "vf": [64]}


def test_checkpoints_of_a_callback_are_whole_and_in_a_folder_of_their_own(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    model = make()
    model.learn(64, CheckpointCallback(save_freq=20, save_path=str(folder), save_vecnormalize=True))
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == [f"rl_model_{step}_steps.zip" for step in (20, 40, 60)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = MemoryPPO.load(paths[0], env=worlds())
    assert loaded.num_timesteps == 20
    loaded.learn(16, reset_num_timesteps=False)
