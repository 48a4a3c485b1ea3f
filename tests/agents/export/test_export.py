"""An exported agent is `predict` as a function of tensors, in every space; what is not equal does not stay."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_worlds import CASES, NUMBERS, Noise, agent
from gymnasium import spaces
from small import small_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from palimpsest.agents import MemoryPPO, export_policy
from palimpsest.agents.export import check, exporting, formats
from palimpsest.agents.export.formats import NotExported, read_torch
from palimpsest.train import main

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.filterwarnings("ignore:MemoryDQN does not obey")
@pytest.mark.parametrize("case", CASES)
def test_a_program_acts_as_predict_does(case, tmp_path):
    model, env = agent(case)
    made = export_policy(model, tmp_path / "agent.pt2", env=env, episodes=3)
    assert made.checked.episodes >= 3
    assert made.signature == read_torch(made.file).signature
    # MemoryDQN and MemorySAC know no masks
    assert (made.signature.action_mask is not None) == (case in ("ppo-dict", "ppo-switches"))


def test_an_onnx_file_acts_as_predict_does(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    model, env = agent("ppo-dict")
    made = export_policy(model, tmp_path / "agent.onnx", env=env, episodes=3)
    assert made.checked.episodes >= 3
    assert made.signature == formats.read_onnx(made.file).signature
    # which file of which machine an operation comes from is nobody's concern
    assert str(ROOT).encode() not in made.file.read_bytes()
    assert b"site-packages" not in made.file.read_bytes()
    check_the_example(made.file)


def check_the_example(file: Path) -> None:
    """It needs numpy and onnxruntime alone."""
    code = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"torch", "palimpsest", "gymnasium"} & set(sys.modules)
"""
    words = [sys.executable, "-c", code, str(ROOT / "examples/run_onnx.py"), str(file)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    # an action a line, of two numbers
    assert np.loadtxt(io.StringIO(done.stdout.replace("[", " ").replace("]", " "))).shape == (10, 2)


@pytest.mark.parametrize("case", ["ppo", "ppo-dict"])
def test_without_an_environment_it_is_checked_on_noise(case, tmp_path):
    model, _ = agent(case, share_memory=False)
    made = export_policy(model, tmp_path / "agent.pt2", episodes=2)
    assert made.checked.episodes >= 2
    # the critic's memory acts on nothing
    assert [port.name for port in made.signature.states] == ["state.h"]


def test_a_file_needs_torch_alone(tmp_path):
    made = export_policy(agent("ppo")[0], tmp_path / "agent.pt2", episodes=1)
    code = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
for rows in (1, 5):
    start = torch.ones(rows, dtype=torch.bool)
    action, h = program(torch.zeros(rows, 4), torch.full((rows, 2, 6), torch.nan), start)
    assert action.shape == (rows,) and h.isfinite().all()
assert not {"palimpsest", "gymnasium", "numba"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, made.file], check=True, cwd=tmp_path)
    with zipfile.ZipFile(made.file) as archive:
        assert not any(str(ROOT).encode() in archive.read(name) for name in archive.namelist())


def test_statistics_of_vec_normalize_are_inside(tmp_path):
    def normalized(seed):
        venv = VecNormalize(DummyVecEnv([lambda: Noise(NUMBERS, spaces.Discrete(3))] * 2), clip_obs=1.0)
        venv.seed(seed)
        venv.reset()
        for _ in range(20):
            venv.step(np.zeros(2, int))
        return venv

    venv = normalized(0)
    model = MemoryPPO("MlpMemoryPolicy", venv, policy_kwargs=small_policy("gru"), seed=0, device="cpu")
    mean, other = venv.obs_rms.mean.copy(), normalized(1)
    made = export_policy(model, tmp_path / "agent.pt2", episodes=2)
    np.testing.assert_array_equal(venv.obs_rms.mean, mean)
    # numbers of another environment's statistics
    raw = np.full((1, 4), 4.0, np.float32)
    start = np.ones(1, bool)
    given = [raw, np.zeros((1, 2, 6), np.float32), start]
    _, h = read_torch(made.file).run(given)
    np.testing.assert_allclose(h, model.predict(venv.normalize_obs(raw), None, start)[1].h, atol=1e-5)
    before = other.obs_rms.count
    assert export_policy(model, tmp_path / "b.pt2", env=other, episodes=2).checked.episodes >= 2
    assert other.obs_rms.count == before


def test_pictures_beside_what_vec_normalize_scales_are_exported(tmp_path):
    image, numbers = spaces.Box(0, 255, (36, 40, 3), np.uint8), NUMBERS
    for observations, policy, arguments in (
        (image, "CnnMemoryPolicy", dict(norm_obs=False)),
        (spaces.Dict(image=image, numbers=numbers), "MultiInputMemoryPolicy", dict(norm_obs_keys=["numbers"])),
    ):
        env = VecNormalize(DummyVecEnv([lambda space=observations: Noise(space, spaces.Discrete(3))] * 2), **arguments)
        model = MemoryPPO(policy, env, policy_kwargs=small_policy("gru"), seed=0, device="cpu")
        made = export_policy(model, tmp_path / "agent.pt2", env=env, episodes=2)
        assert {port.shape for port in made.signature.observations} <= {(3, 36, 40), numbers.shape}
        assert export_policy(model, tmp_path / "agent.pt2").signature == made.signature


def test_a_wrapper_around_vec_normalize_that_a_file_lacks_is_refused(tmp_path):
    env = VecFrameStack(VecNormalize(DummyVecEnv([lambda: Noise(NUMBERS, spaces.Discrete(3))])), 2)
    model = MemoryPPO("MlpMemoryPolicy", env, policy_kwargs=small_policy("gru"), device="cpu")
    with pytest.raises(ValueError, match=r"not what VecFrameStack around it does; .* VecNormalize\(VecFrameStack"):
        export_policy(model, tmp_path / "agent.pt2")
    assert not list(tmp_path.iterdir())


def test_exporting_leaves_the_agent_as_it_is(tmp_path):
    model, _ = agent("ppo-sde")
    model.policy.set_training_mode(True)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    drawn = torch.get_rng_state()
    export_policy(model, tmp_path / "agent.pt2", episodes=1)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.requires_grad for parameter in model.policy.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    model.learn(8)


class Wrong(exporting.Step):
    """Forgets what it read."""

    def forward(self, *inputs):
        action, *states = super().forward(*inputs)
        return action, *(torch.zeros_like(state) for state in states)


class Contrary(exporting.Step):
    """Acts otherwise."""

    def forward(self, *inputs):
        action, *states = super().forward(*inputs)
        return (action + 1) % 3, *states


@pytest.mark.parametrize(("step", "said"), [(Wrong, r"step 0 state.h is off by"), (Contrary, "the file's action is")])
def test_a_file_that_acts_differently_does_not_stay(step, said, tmp_path, monkeypatch):
    file = tmp_path / "agent.pt2"
    file.write_text("what was there")
    monkeypatch.setattr(exporting, "Step", step)
    with pytest.raises(NotExported, match=rf"{said}.*no file is written"):
        export_policy(agent("ppo")[0], file, episodes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.pt2"]
    assert file.read_text() == "what was there"


def test_of_equally_likely_actions_either_is_right(tmp_path, monkeypatch):
    model, _ = agent("ppo")
    with torch.no_grad():
        model.policy.action_net.weight.zero_()
    monkeypatch.setattr(exporting, "Step", Contrary)
    made = export_policy(model, tmp_path / "agent.pt2", episodes=1)
    assert made.checked.ties * check.Drawn.num_envs == made.checked.steps


def test_what_cannot_be_recorded_says_so(tmp_path, monkeypatch):
    class Choosing(exporting.Step):
        def forward(self, *inputs):
            return super().forward(*inputs) if inputs[0].sum() > 0 else inputs

    monkeypatch.setattr(exporting, "Step", Choosing)
    with pytest.raises(NotExported, match=r"cannot be recorded: .*data-dependent.*no file is written"):
        export_policy(agent("ppo")[0], tmp_path / "agent.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"file": "agent.zip"}, r"onnx or torch, or a file named \*.onnx or \*.pt2; got 'agent.zip'"),
        ({"file": "agent.onnx", "format": "tflite"}, "got 'tflite'"),
        ({"file": "agent.pt2", "episodes": 0}, "episodes must be"),
        ({"file": "agent.pt2", "env": Noise(spaces.Box(-1, 1, (7,)), spaces.Discrete(3))}, "was made for"),
    ],
)
def test_what_is_refused(arguments, said, tmp_path):
    arguments["file"] = tmp_path / arguments["file"]
    with pytest.raises(ValueError, match=said):
        export_policy(agent("ppo")[0], **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file_to_write_to(tmp_path):
    with pytest.raises(ValueError, match="the file to write must be a file, not a folder"):
        export_policy(agent("ppo")[0], tmp_path, format="torch")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"onnx(script)?; install it with: pip install 'palimpsest-rl\[export\]'"):
        export_policy(agent("ppo")[0], tmp_path / "agent.onnx")


def test_the_command(tmp_path, capsys):
    run = tmp_path / "run"
    sizes = ["--n-steps", "8", "--num-envs", "2", "--total-timesteps", "16", "--eval-episodes", "2", "--no-progress"]
    task = ["--env", "Palimpsest/EndlessTMaze-v0", "--env-args", "corridors=1", "length=1", "--memory", "none"]
    assert main([*task, *sizes, "--run-dir", str(run)]) == 0
    assert main(["export", str(run), "--format", "torch", "--episodes", "2"]) == 0
    said = capsys.readouterr().out
    assert "policy.pt2: (observation, episode_start) -> (action)" in said
    assert "acts as the agent does over" in said
    assert main(["export", str(tmp_path / "absent")]) == 2
    assert main(["export", str(run), "--format", "tflite"]) == 2
