"""Looking inside: gradients against finite differences, probes of planted facts, and the pictures."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_arguments
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from watching import ARGUMENTS, MAZE, agent, write_run

from palimpsest import envs, train
from palimpsest.agents import MemoryDQN, MemoryPPO, MemorySAC
from palimpsest.agents.policy.memory_pair import Both
from palimpsest.agents.watch.inside import chosen_output, chosen_outputs, influence, read_weights, record
from palimpsest.agents.watch.look_inside import read_weights_picture
from palimpsest.agents.watch.probes import LEAST_SAMPLES, best_guess, collect, curve, predicted, shortened
from palimpsest.memory.kernels.arithmetic.dispatch import torch_only


def maze(rows=1):
    return envs.make_vec(MAZE, rows, seed=0, **ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "shared"), [("rewrite", True), ("gru", False), ("gtrxl", True), ("elmur", True), ("ffm", True)]
)
def test_influence_equals_finite_differences(name, shared, monkeypatch):
    model = agent(name, share_memory=shared)
    policy = model.policy
    recording = record(model, maze(), 3, 6)
    T, F, eps = len(recording.actions), 5, 1e-6
    assert T >= 2
    policy.double()
    x = torch.randn(T, 1, F, dtype=torch.float64)
    monkeypatch.setattr(policy, "memory_inputs", lambda obs: Both(x, x.clone()))
    found = influence(policy, recording)
    slopes = np.zeros((T, T, F))
    for s in range(T):
        for f in range(F):
            change = torch.zeros(T, T, F, dtype=torch.float64)
            change[s, :, f] = eps
            with torch.no_grad():
                up, down = (chosen_outputs(policy, recording, sign * change)[1] for sign in (1, -1))
            slopes[:, s, f] = ((up - down) / (2 * eps)).numpy()
    np.testing.assert_allclose(found, np.linalg.norm(slopes, axis=2), rtol=1e-5, atol=1e-8)
    assert (np.triu(found, 1) == 0).all()
    assert found[-1, 0] > 0


def test_outputs_are_those_that_the_agent_acts_by():
    model = agent("rewrite", carry_over=0.5)
    recording = record(model, maze(), 3, 6)
    with torch.no_grad():
        _, outputs = chosen_outputs(model.policy, recording)
        look = model.policy.look(recording.obs, model.policy.initial_state(1), recording.start)
    logits = look.distribution.distribution.logits + 0
    own = logits.gather(1, recording.actions.view(-1, 1))[:, 0]
    # logits are known up to a number per step, which differences between actions do not have
    other = (recording.actions + 1) % 3
    _, others = chosen_outputs(model.policy, recording._replace(actions=other))
    torch.testing.assert_close(outputs - others, own - logits.gather(1, other.view(-1, 1))[:, 0], rtol=1e-4, atol=1e-5)


SEEN = {
    "Mlp": spaces.Box(-1, 1, (3,)),
    "Cnn": spaces.Box(0, 255, (3, 8, 8), np.uint8),
    "MultiInput": spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(4)}),
}
"""Policy -> observations."""


class Seen(gym.Env):
    """Random observations of a space, for episodes of five steps."""

    def __init__(self, space, actions):
        self.observation_space, self.action_space, self.left = space, actions, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 5
        return self.observation_space.sample(), {}

    def step(self, action):
        self.left -= 1
        return self.observation_space.sample(), 0.0, self.left == 0, False, {}


@pytest.mark.parametrize("policy", SEEN)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("algorithm", "actions"),
    [
        (MemoryPPO, spaces.Discrete(3)),
        (MemoryDQN, spaces.Discrete(3)),
        (MemorySAC, spaces.Discrete(3)),
        (MemorySAC, spaces.Box(-1, 1, (2,))),
    ],
)
def test_every_policy_has_an_influence(algorithm, actions, shared, policy):
    """The heads of some read past the memory."""
    env = DummyVecEnv([lambda: Seen(SEEN[policy], actions)])
    model = algorithm(
        f"{policy}MemoryPolicy",
        env,
        policy_kwargs={"memory": "gru", "memory_kwargs": small_arguments("gru"), "share_memory": shared},
        seed=0,
        device="cpu",
        **({"n_steps": 8, "batch_size": 8} if algorithm is MemoryPPO else {}),
    )
    model.policy.compiled = False
    recording = record(model, model.env, 3, 6)
    own = model.policy
    with torch.no_grad():
        latent, _ = own._scan(recording.obs, own.initial_state(1), recording.start, None, None)
        heads = own.action_net(own.mlp_extractor.forward_actor(latent.actor[:, 0]))
        _, outputs = chosen_outputs(own, recording)
    torch.testing.assert_close(outputs, chosen_output(actions, heads, recording.actions), rtol=1e-4, atol=1e-5)
    found = influence(own, recording)
    assert found.shape == (5, 5)
    assert found[-1, 0] > 0


@pytest.mark.parametrize(
    ("space", "actions", "found"),
    [
        (spaces.Discrete(3), [0, 2], [0, 12]),
        (spaces.MultiDiscrete([1, 2]), [[0, 0], [0, 1]], [0 + 1, 10 + 12]),
        (spaces.MultiBinary(3), [[1, 0, 1], [0, 0, 0]], [0 - 1 + 2, -10 - 11 - 12]),
        (spaces.Box(-1, 1, (3,)), [[0.0] * 3] * 2, [3, 33]),
    ],
)
def test_every_space_has_an_output(space, actions, found):
    outputs = torch.tensor([[0.0, 1, 2], [10, 11, 12]])
    assert chosen_output(space, outputs, torch.tensor(actions)).tolist() == found


def test_weights_are_those_of_the_memory():
    model = agent("rewrite", carry_over=0.5)
    recording = record(model, maze(), 3, 4)
    T = len(recording.actions)
    weights = read_weights(model.policy, recording)
    assert weights.shape == (4, T, T)
    with torch.no_grad(), torch_only():
        x = model.policy.memory_inputs(recording.obs).actor
        x[0] += model.policy.start_mark[0]
        own = model.policy.memory.read_weights(x, recording.start, model.policy.memory.initial_state(1))
    np.testing.assert_allclose(weights, own[0], rtol=1e-5)
    assert read_weights(agent("gru").policy, recording) is None


def planted(strength, rng, N=160, d=30):
    """Numbers of which one direction holds a label of three kinds, as `strength` says."""
    labels, direction = rng.integers(3, size=N), rng.standard_normal((3, d))
    return rng.standard_normal((N, d)) + strength * direction[labels], labels


def test_a_probe_finds_what_is_planted_and_nothing_else():
    rng = np.random.default_rng(0)
    histories, lags = np.arange(160), np.zeros(160, np.int64)
    features, labels = planted(3.0, rng)
    there = curve(features, labels, lags, histories)
    assert there.lags.tolist() == [0]
    assert there.accuracy > 0.95
    absent = curve(rng.standard_normal((160, 30)), labels, lags, histories)
    assert absent.accuracy < absent.chance + 3 * absent.error
    assert 0.25 < absent.chance < 0.5


def test_a_probe_cannot_name_histories_by_heart():
    """Two hundred samples of a few histories, each with a state of its own that says nothing about the label."""
    rng = np.random.default_rng(1)
    histories = np.repeat(np.arange(64), 4)
    features, labels = rng.standard_normal((64, 40))[histories], rng.integers(2, size=64)[histories]
    found = curve(features, labels, np.zeros(len(labels), np.int64), histories)
    assert found.accuracy < found.chance + 4 * found.error
    half = np.arange(len(labels)) % 2 == 0
    by_heart = predicted(features[half], labels[half], features[~half]) == labels[~half]
    assert by_heart.mean() > 0.8, "with the same histories on both sides it could"


def test_what_is_there_only_in_the_last_digits_is_not_found():
    rng = np.random.default_rng(2)
    features, labels = planted(3.0, rng)
    features = np.concatenate([1e-4 * features, np.ones((160, 3)), rng.standard_normal((160, 3))], 1)
    found = curve(features, labels, np.zeros(160, np.int64), np.arange(160))
    assert found.accuracy < found.chance + 4 * found.error


def test_a_probe_is_ridge_regression():
    """By its normal equations, with the noise taken out and the penalty fixed."""
    from palimpsest.agents.watch import probes

    rng = np.random.default_rng(3)
    features, labels = planted(0.7, rng)
    patch = pytest.MonkeyPatch()
    with patch.context() as with_no_noise:
        with_no_noise.setattr(probes, "NOISE", 0.0)
        with_no_noise.setattr(probes, "PENALTIES", (0.5,))
        found = predicted(features[:80], labels[:80], features[80:])
    X = (features - features[:80].mean(0)) / np.sqrt(features[:80].var(0).mean())
    Y = np.eye(3)[labels[:80]]
    train, test = X[:80], X[80:]
    # the penalty is in mean eigenvalues of the 80 x 80 products
    penalty = 0.5 * np.trace(train @ train.T) / 80
    slopes = np.linalg.solve(train.T @ train + penalty * np.eye(30), train.T @ (Y - Y.mean(0)))
    np.testing.assert_array_equal(found, (test @ slopes + Y.mean(0)).argmax(1))


def test_few_samples_are_left_out():
    rng = np.random.default_rng(0)
    features, labels = planted(3.0, rng)
    lags = (np.arange(160) >= 2 * LEAST_SAMPLES - 2).astype(np.int64)
    assert curve(features, labels, lags, np.arange(160)).lags.tolist() == [1]


def test_the_best_guess_may_know_something():
    train, test = np.array([0, 0, 0, 1, 1]), np.array([1, 1, 0])
    assert best_guess(train, test, None) == pytest.approx(1 / 3)
    known = np.array([5, 5, 6, 7, 7]), np.array([7, 7, 6])
    assert best_guess(train, test, known) == 1


def test_long_states_are_shortened_the_same_way():
    state = (torch.randn(6, 50, 40), torch.ones(6, dtype=torch.int64))
    short = shortened(state, 5)
    assert short.shape == (5, 1024)
    np.testing.assert_array_equal(short[:2], shortened(state, 2))
    np.testing.assert_allclose(np.square(short).sum(1), state[0][:5].square().sum((1, 2)), rtol=0.5)
    assert shortened((torch.randn(6, 50),), 6).shape == (6, 50)
    assert shortened((), 6).tolist() == [[0]] * 6


class Expert:
    """Plays as the expert does, with the policy of an agent that does not."""

    def __init__(self, model, env):
        self.policy, self.env, self.model = model.policy, env, model

    def predict(self, *arguments, **more):
        _, state = self.model.predict(*arguments, **more)
        return np.array(self.env.env_method("expert_action")), state


def test_samples_know_their_events():
    env = maze(4)
    samples = collect(Expert(agent(), env), env, 6, 11, lags=1)
    cue = samples.names.index("cue")
    assert "rng" not in samples.names
    # 6 episodes of 3 corridors, each an event; two steps are kept of each
    assert len(samples.lags) == 6 * 3 * 2
    assert np.bincount(samples.lags).tolist() == [18, 18]
    assert np.bincount(samples.number).tolist() == [12, 12, 12]
    env.seed(11)
    first = env.reset()
    at_first = samples.number == 0
    np.testing.assert_array_equal(samples.facts[at_first & (samples.lags == 0)][:4, cue], first[:, 1])
    later = samples.number == 1
    assert sorted(samples.old_facts[later, cue]) == sorted(samples.facts[at_first, cue])
    assert len(np.unique(samples.histories)) == len(np.unique(samples.histories[samples.lags == 0]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "maze", "rewrite")


def test_inspect_writes_pictures_and_images(run, capsys):
    words = ["inspect", str(run), "--steps", "4", "--episodes", "4", "--lags", "1", "--tensorboard"]
    assert train.main(words) == 0
    said = capsys.readouterr().out
    assert "too few different histories" in said
    assert sorted(path.name for path in (run / "inspect").iterdir()) == ["influence.png", "read_weights.png"]
    events = EventAccumulator(str(run))
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["inside/influence", "inside/read_weights"]


def test_reads_are_drawn_alike_with_events_and_without():
    weights = np.ones((4, 3, 3))
    shapes = {read_weights_picture(weights, np.full(3, event), 2).shape for event in (False, True)}
    assert len(shapes) == 1


def test_inspect_says_what_it_leaves_out(tmp_path, capsys):
    run = write_run(tmp_path / "cart", "gru", "CartPole-v1", {})
    assert train.main(["inspect", str(run), "--steps", "3", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "read_weights: gru does not read a sum of what was written" in said
    assert "probes: CartPole-v1 has no event_mask() and hidden_state()" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["influence.png"]


def test_inspect_refuses(capsys):
    assert train.main(["inspect", "nowhere"]) == 2
    assert "cannot read the configuration" in capsys.readouterr().err
