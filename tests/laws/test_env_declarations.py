"""What every registered environment tells of itself: horizons, pictures, data sheet, and the names it is made by."""

from __future__ import annotations

import inspect
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from faces import FAMILIES, IDS, ROWS, at, make, make_rows, same

from palimpsest import envs

pytestmark = pytest.mark.usefixtures("tiny_family")


@pytest.mark.parametrize("id", IDS)
def test_what_an_environment_declares(id):
    env, vector, venv = make(id), make_rows(id), envs.make_vec(id, ROWS, seed=0)
    horizons = env.memory_horizons()
    assert isinstance(horizons, tuple)
    assert list(horizons) == sorted({int(h) for h in horizons})
    assert horizons[0] >= 1
    assert 0 <= env.chance_level() <= 1
    assert venv.env_method("memory_horizons", indices=[0]) == [horizons] == [vector.memory_horizons()]
    assert venv.env_method("chance_level", indices=0) == [env.chance_level()] == [vector.chance_level()]
    obs, _ = vector.reset(seed=0)
    stacked = {k: np.stack([v, v]) for k, v in obs.items()} if isinstance(obs, dict) else np.stack([obs, obs])
    mask = vector.event_mask(stacked)
    assert mask.shape == (2, ROWS)
    assert mask.dtype == bool
    assert same(mask[0], np.array([env.event_mask(at(obs, i)) for i in range(ROWS)]))
    for extra in env.closing_settings:
        make(id, **extra)


@pytest.mark.parametrize("id", IDS)
def test_pictures(id):
    drawn = make(id, render_mode="rgb_array")
    written = make(id, render_mode="ansi")
    with pytest.raises(ValueError, match="call reset"):
        drawn.render()
    pictures, texts = [], []
    for env, frames in ((drawn, pictures), (written, texts)):
        env.reset(seed=0)
        frames.append(env.render())
        over = False
        while not over:
            *_, terminated, truncated, _ = env.step(env.expert_action())
            over = terminated or truncated
            if over or len(frames) < 30:
                frames.append(env.render())
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape == pictures[0].shape
    assert len({picture.tobytes() for picture in pictures}) > 1
    assert len(set(texts)) > 1
    rows = make_rows(id, 3, render_mode="rgb_array")
    rows.reset(seed=0)
    assert same(rows.render()[0], pictures[0])
    with pytest.raises(ValueError, match="render_mode must be one of 'rgb_array', 'ansi'"):
        type(drawn)(render_mode="movie")
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert make(id).render() is None


@pytest.mark.parametrize("id", IDS)
def test_every_way_to_make_it(id):
    spec = gym.spec(id)
    assert gym.make(f"palimpsest:{id}").spec.id == id
    gym.register_envs(envs)
    assert make_rows(id).spec.id == id
    assert gym.make_vec(id, 2).num_envs == 2
    assert envs.make_vec(f"palimpsest:{id}", 2).get_attr("spec")[0].id == id
    assert gym.make(gym.envs.registration.EnvSpec.from_json(spec.to_json())).spec.id == id
    assert envs.describe(id)
    assert envs.family(id) is type(make(id))
    assert make(id).__doc__


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_its_data_sheet_is_complete(family):
    sheet = inspect.getdoc(family)
    parts = (
        "Observation",
        "| index |",
        "Actions",
        "Rewards:",
        "Ends:",
        "Horizons Ξ",
        "Chance level:",
        "Args:",
        "Versions:",
    )
    missing = [part for part in parts if part.replace("index", "key") not in sheet and part not in sheet]
    assert missing == []
    assert "| index |" in sheet or "| key |" in sheet
    for argument in inspect.signature(family).parameters:
        assert f"\n    {argument}: " in sheet, argument


def test_wrong_names_are_refused_with_the_closest():
    known = envs.ids()[0]
    with pytest.raises(ValueError, match=f"unknown environment .*did you mean '{known}'"):
        envs.make_vec(known.replace("-v0", "-v1"), 1)
    with pytest.raises(ValueError, match="unknown environment"):
        envs.describe("CartPole-v1")
    with pytest.raises(ValueError, match="no module 'no_such_module'"):
        envs.make_vec(f"no_such_module:{known}", 1)
    with pytest.raises(ValueError, match=r"has no argument 'rendermode'.*did you mean 'render_mode'.*allowed: "):
        envs.make_vec(known, 1, rendermode="ansi")
    with pytest.raises(ValueError, match="has no argument"):
        envs.make_vec("CartPole-v1", 1, gravity=1)
    for rows in (0, 1.0, True, "3"):
        with pytest.raises(ValueError, match="num_envs must be an integer, 1 to "):
            envs.make_vec(known, rows)
    with pytest.raises(ValueError, match="seed must be an integer, 0 to "):
        envs.make_vec(known, 1, seed=-1)


def test_an_id_is_taken_once():
    with pytest.raises(ValueError, match="is already"):
        envs.register(envs.ids()[0], "palimpsest.envs.core:World", "again")
    with pytest.raises(ValueError, match="module:Class"):
        envs.register("Palimpsest/New-v0", "palimpsest.envs.core.World", "no colon")


def test_importing_envs_is_light():
    heavy = {"torch", "stable_baselines3", "numba", "minigrid"}
    code = f"import sys; from palimpsest import envs; envs.describe(envs.ids()[0]); print({heavy} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    light = {"torch", "stable_baselines3"}
    code = f"import sys, gymnasium; gymnasium.make('palimpsest:{envs.ids()[0]}'); print({light} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
