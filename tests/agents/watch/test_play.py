"""Playing an agent as frames: what they hold, how many there are, and what is refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from stable_baselines3.common.vec_env import DummyVecEnv
from watching import ARGUMENTS, MAZE, agent, write_run
from worlds import Counter

from palimpsest import envs, memory, train
from palimpsest.agents import MemoryDQN, MemorySAC
from palimpsest.agents.tree import tree_map
from palimpsest.agents.watch import play as playing
from palimpsest.agents.watch.config import PlayCommand
from palimpsest.agents.watch.frames import COLUMNS, EMPTY, Frames, Track
from palimpsest.agents.watch.player import chosen_flags, moments, render_modes, score_values
from palimpsest.memory.base import Panel


def maze(mode="rgb_array", rows=1):
    return envs.make_vec(MAZE, rows, seed=0, render_mode=mode, **ARGUMENTS)


@pytest.mark.parametrize("name", memory.names())
def test_every_memory_plays(name):
    played = list(moments(agent(name), maze(), max_steps=2, render=True))
    assert [moment.step for moment in played] == [0, 1]
    assert played[-1].end == "stopped"
    frames = Frames(played[0], "maze")
    pictures = [frames.draw(moment) for moment in played]
    width, height = frames.size
    assert {(picture.shape, picture.dtype) for picture in pictures} == {((height, width, 3), np.dtype(np.uint8))}
    assert width % 2 == height % 2 == 0
    assert (pictures[0] != pictures[1]).any()


def test_a_moment_is_what_evaluation_plays():
    model, env = agent(), maze()
    played = list(moments(model, env, episodes=2, seed=5, render=True))
    assert [moment.episode for moment in played] == sorted(moment.episode for moment in played)
    state, start = None, np.ones(1, bool)
    env.seed(5)
    obs = env.reset()
    total = 0.0
    for moment in [moment for moment in played if moment.episode == 1]:
        np.testing.assert_array_equal(moment.world, env.env_method("render")[0])
        assert moment.event == bool(obs[0, :2].any())
        with torch.no_grad():
            distribution, _ = model.policy.get_distribution(
                torch.as_tensor(obs),
                tree_map(torch.as_tensor, model.policy.initial_state(1) if state is None else state),
                torch.as_tensor(start),
            )
        np.testing.assert_allclose(moment.scores.values, distribution.distribution.probs[0], rtol=1e-5)
        action, state = model.predict(obs, state, start, deterministic=True)
        assert moment.action == action[0]
        assert moment.scores.names[int(action[0])] == ("forward", "left", "right")[int(action[0])]
        assert moment.scores.chosen.nonzero()[0].tolist() == action.tolist()
        obs, reward, start, infos = env.step(action)
        total += reward[0]
        assert (moment.reward, moment.total) == (pytest.approx(reward[0]), pytest.approx(total))
    assert start[0]
    assert moment.end == ("success" if infos[0]["is_success"] else "failure")


def test_the_value_is_the_critics():
    model, env = agent(), maze()
    (moment,) = moments(model, env, max_steps=1)
    env.seed(1_000_000_007)
    with torch.no_grad():
        start = torch.ones(1, dtype=torch.bool)
        value = model.policy.predict_values(torch.as_tensor(env.reset()), model.policy.initial_state(1), start)
    assert moment.value == pytest.approx(value.item(), rel=1e-4)


def test_two_memories_show_the_actors():
    model = agent("rewrite", share_memory=False)
    (moment,) = moments(model, maze(), max_steps=1)
    torch.testing.assert_close(moment.panels[0].values, model.policy.memory.diagnostics()["keep"][-1, 0])


def test_values_of_actions_stand_for_probabilities_in_dqn():
    (moment,) = moments(agent(algorithm=MemoryDQN), maze(), max_steps=1)
    assert moment.scores.title == "value of each action"
    assert moment.value == pytest.approx(moment.scores.values.max())
    assert moment.scores.chosen.argmax() == moment.scores.values.argmax()


@pytest.mark.parametrize("id", ["Palimpsest/PendulumNoVel-v0", MAZE])
def test_sac_shows_the_smallest_value_of_its_critics(id):
    env = envs.make_vec(id, 1, seed=0)
    model = agent(env=env, algorithm=MemorySAC)
    (moment,) = moments(model, env, max_steps=1)
    env.seed(1_000_000_007)
    with torch.no_grad():
        obs, start = torch.as_tensor(env.reset())[None], torch.ones(1, 1, dtype=torch.bool)
        look = model.policy.look(obs, model.policy.initial_state(1), start)
        if id == MAZE:
            values = model.policy.q_values(look.latent.critic)[..., int(moment.action)]
        else:
            action = model.policy.scale_action(moment.action)
            values = model.policy.q_values(look.latent.critic, torch.as_tensor(action).view(1, 1, -1))
    assert moment.value == pytest.approx(values.min().item(), rel=1e-3)
    assert len(moment.scores.values) == (3 if id == MAZE else 1)


@pytest.mark.parametrize(
    ("space", "action", "flags"),
    [
        (spaces.Discrete(3), np.int64(1), [0, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), [0, 1, 0, 0, 1]),
        (spaces.MultiBinary(3), np.array([1, 0, 1]), [1, 0, 1]),
        (spaces.Box(-1, 1, (2,)), np.array([0.5, 0.5]), [0, 0]),
    ],
)
def test_every_space_says_what_was_chosen(space, action, flags):
    assert chosen_flags(space, action).tolist() == [bool(flag) for flag in flags]
    env = envs.make_vec("Palimpsest/CartPoleNoVel-v0", 1, seed=0)
    env.action_space = space
    model = agent(env=env)
    with torch.no_grad():
        start = torch.ones(1, dtype=torch.bool)
        obs = torch.as_tensor(env.reset())
        distribution, _ = model.policy.get_distribution(obs, model.policy.initial_state(1), start)
    title, values = score_values(space, distribution)
    assert len(values) == len(flags)
    assert isinstance(space, spaces.Box) == (title == "mean of each number")


class TestTrack:
    def test_time_goes_to_the_right_and_then_scrolls(self):
        track = Track(Panel("", torch.zeros(2), (0, 1)))
        for step in range(COLUMNS + 2):
            track.add(Panel("", torch.tensor([step / 100, 0.0]), (0, 1)), step)
            if step == 1:
                assert np.isnan(track.image[:, 2:]).all()
                assert (track.pixels()[:, 2:] == EMPTY).all()
        np.testing.assert_allclose(track.image[0] * 100, np.arange(2, COLUMNS + 2), rtol=1e-5)
        track.add(Panel("", torch.ones(2), (0, 1)), 0)
        assert np.isnan(track.image[:, 1:]).all(), "a new episode begins on an empty page"

    def test_colours_follow_the_largest_value_and_lie_about_zero(self):
        track = Track(Panel("", torch.zeros(1)))
        track.add(Panel("", torch.tensor([2.0])), 0)
        assert track.limits == (0, 2)
        track.add(Panel("", torch.tensor([-3.0])), 1)
        assert track.limits == (-3, 3)
        assert (track.pixels()[0, 1] == track.pixels().reshape(-1, 3)[1]).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "maze")


def test_a_gif_has_a_frame_per_step(run, capsys, tmp_path):
    out = tmp_path / "deep" / "episode.gif"
    assert train.main(["play", str(run), "--out", str(out), "--episodes", "2", "--max-steps", "4", "--fps", "5"]) == 0
    said = capsys.readouterr().out
    steps = int(said.split(": ")[1].split()[0])
    assert said == f"{out}: {steps} steps, 2 episodes\n"
    with Image.open(out) as image:
        assert image.n_frames == steps
        assert image.info["duration"] == 200
        image.seek(steps - 1)
        assert image.info["duration"] == playing.Gif.LAST_MS


def test_a_run_without_flags_gets_its_gif(run, capsys):
    assert train.main(["play", str(run), "--max-steps", "1"]) == 0
    assert (run / "episode.gif").is_file()


def test_the_terminal_shows_world_memory_and_choices(run, capsys):
    assert train.main(["play", str(run), "--ansi", "--max-steps", "2", "--fps", "240"]) == 0
    said = capsys.readouterr().out
    assert said.count("passed 0 of 3") == 2
    assert "state h" in said
    assert ">forward" in said or ">left" in said or ">right" in said


def test_a_window_shows_the_frames(run, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame")
    shown = []
    monkeypatch.setattr(pygame.display, "flip", lambda: shown.append(pygame.display.get_surface().get_at((1, 1))))
    assert train.main(["play", str(run), "--human", "--max-steps", "2", "--fps", "240"]) == 0
    assert [tuple(colour)[:3] for colour in shown] == [(255, 255, 255)] * 2
    closing = pygame.event.Event(pygame.QUIT)
    monkeypatch.setattr(pygame.event, "get", lambda: [closing])
    assert train.main(["play", str(run), "--human", "--max-steps", "9", "--fps", "240"]) == 130
    assert len(shown) == 3


class Silent(gym.Env):
    """Counts to five, and draws nothing."""

    observation_space = spaces.Box(0, 9, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(2, self.time, np.float32), 0.0, self.time == 5, False, {}


def test_where_nothing_renders_the_memory_is_drawn(tmp_path, capsys):
    gym.register("Silent-v0", Silent)
    run = write_run(tmp_path / "silent", env="Silent-v0", env_args={})
    assert render_modes("Silent-v0") == []
    assert render_modes(MAZE) == ["rgb_array", "ansi"]
    assert train.main(["play", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [playing.NO_PICTURE, f"{run / 'episode.gif'}: 5 steps, 1 episode"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "cannot read the configuration 'nowhere"),
        (["RUN", "--out", "x.png"], "--out must end in .gif or .mp4; got 'x.png'"),
        (["RUN", "--out", "folder.gif"], "--out 'folder.gif' is a folder; name a file in it"),
        (["RUN", "--env-args", "corridor=2"], "did you mean 'corridors'"),
        (["RUN", "--env", "CartPole-v1"], "the model was made for the observation space"),
        (["RUN", "--fps", "0"], "fps must be an integer"),
    ],
)
def test_wrong_use_is_refused(words, said, run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.gif").mkdir()
    assert train.main(["play", *(str(run) if word == "RUN" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("rendered", "got"),
    [
        (np.zeros((4, 5, 3), np.float32), r"float32 \[4, 5, 3\]"),
        (np.zeros((4, 5), np.uint8), r"uint8 \[4, 5\]"),
        (np.zeros((4, 5, 4), np.uint8), r"uint8 \[4, 5, 4\]"),
        ([np.zeros((4, 5, 3), np.uint8)], "a list"),
    ],
)
def test_frames_of_another_kind_are_refused(rendered, got, tmp_path):
    class Rendering(Counter):
        def render(self):
            return rendered

    env = DummyVecEnv([Rendering])
    model = agent(env=env)
    with pytest.raises(ValueError, match=rf"render\(\) must return uint8 \[H, W, 3\]; got {got}"):
        next(moments(model, env, render=True))


def test_a_gif_without_frames_is_no_file(tmp_path):
    playing.Gif(tmp_path / "x.gif", 4).close()
    assert list(tmp_path.iterdir()) == []


def test_a_video_names_its_extra(run, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    assert train.main(["play", str(run), "--out", "x.mp4"]) == 2
    assert 'pip install "palimpsest-rl[video]"' in capsys.readouterr().err


def test_a_video_holds_the_frames(run, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    from imageio_ffmpeg import count_frames_and_secs

    out = tmp_path / "x.mp4"
    playing.play(PlayCommand(run, out=out, max_steps=3, fps=4))
    assert count_frames_and_secs(str(out))[0] == 3


class Unrendered(gym.Env):
    """Lists a mode, but has no render()."""

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}  # noqa: RUF012
    observation_space, action_space = spaces.Box(-1, 1, (4,)), spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode, self.left = render_mode, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 3
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(4, np.float32), 0.0, self.left == 0, False, {}


def test_a_mode_without_a_render_leaves_the_memory(tmp_path, capsys):
    gym.register("Unrendered-v0", entry_point=Unrendered)
    try:
        run = write_run(tmp_path / "run", "gru", "Unrendered-v0", {})
        capsys.readouterr()
        assert train.main(["play", str(run)]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said == [playing.NO_PICTURE, f"{run / 'episode.gif'}: 3 steps, 1 episode"]
        assert train.main(["play", str(run), "--ansi"]) == 0
    finally:
        gym.registry.pop("Unrendered-v0")
