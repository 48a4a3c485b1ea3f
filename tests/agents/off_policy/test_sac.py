"""`MemorySAC`: its losses against a plain loop, whose gradients go where, its files, spaces and noise."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_policy
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Spaces

from palimpsest.agents import MemorySAC
from palimpsest.agents.learn.numerics import NotFinite
from palimpsest.agents.off_policy import sac
from palimpsest.agents.off_policy.replay import Sequences
from palimpsest.agents.off_policy.sac_loss import sac_losses

OBSERVATIONS = spaces.Box(-5, 5, (2,), np.float32)
ACTIONS = {
    "box": spaces.Box(np.array([[-1, 0]], np.float32), np.array([[1, 3]], np.float32)),
    "discrete": spaces.Discrete(3),
}
B = 2


class Double(FlattenExtractor):
    """Features in float64."""

    def forward(self, observations):
        return super().forward(observations).double()


def worlds(kind="box", rows=B, observations=OBSERVATIONS):
    return DummyVecEnv([lambda: Spaces(observations, ACTIONS[kind]) for _ in range(rows)])


def make(kind="box", name="gru", policy=None, env=None, policy_class="MlpMemoryPolicy", **kwargs):
    settings = dict(sequence_length=4, burn_in=2, buffer_size=200, learning_starts=20, batch_size=3, seed=0)
    return MemorySAC(
        policy_class,
        worlds(kind) if env is None else env,
        policy_kwargs=small_policy(name) | (policy or {}),
        device="cpu",
        **settings | kwargs,
    )


def batch_for(policy, kind, T, b, seed=0):
    """Fresh states, random numbers, resets, terminations and final observations inside sequences."""
    rng = np.random.default_rng(seed)
    acted = rng.random((T, b)) > 0.2
    terminated = acted & (rng.random((T, b)) < 0.2)
    start = np.zeros((T, b), bool)
    start[1:] = terminated[:-1] | ~acted[:-1]
    actions = rng.integers(3, size=(T, b)) if kind == "discrete" else rng.uniform(-1, 1, (T, b, 1, 2))
    obs = rng.normal(size=(T, b, 2)).astype(np.float32)
    tensors = map(torch.from_numpy, (obs, actions, 5 * rng.normal(size=(T, b)), terminated, acted, start))
    batch = Sequences(*tensors, policy.initial_state(b), torch.from_numpy(rng.random(b) + 0.5), None, None, None)
    floats = {
        name: part.to(policy.memory.dtype)
        for name, part in batch._asdict().items()
        if isinstance(part, torch.Tensor) and part.dtype == torch.float64
    }
    return batch._replace(**floats)


def plain_losses(policy, target, batch, kind, ent_coef, n_steps, gamma, noise):
    """The losses by loops over rows and steps; `noise` [T, b, numbers] makes the actions of a Box."""
    T, b = batch.acted.shape
    critic = actor = 0.0
    count = 0
    for row in range(b):
        soft, aims, current = [], [], []
        state = target_state = policy.initial_state(1)
        for t in range(T):
            if batch.memory_start[t, row]:
                state = target_state = policy.initial_state(1)
            obs = batch.observations[t, row : row + 1]
            latent, state = policy._step(obs, state, None, None)
            its, target_state = target._step(obs, target_state, None, None)
            pi = latent.actor.detach() if policy.shares_memory else latent.actor
            read = policy.mlp_extractor.forward_actor(pi)
            frozen = [[p.detach() for p in net.parameters()] for net in policy.value_net]
            reads = latent.critic.detach()
            if kind == "discrete":
                log_pi = policy.action_net(read).log_softmax(-1)[0]
                q = torch.stack([functional_q(net, reads, p)[0] for net, p in zip(policy.value_net, frozen)]).amin(0)
                q_target = torch.stack([net(its.critic)[0] for net in target.value_net]).amin(0)
                soft.append((log_pi.exp() * (q - ent_coef * log_pi)).sum())
                aims.append((log_pi.exp() * (q_target - ent_coef * log_pi)).sum().detach())
                current.append([net(latent.critic)[0, batch.actions[t, row]] for net in policy.value_net])
                continue
            mean, std = policy.action_net(read)[0], policy.log_std(read)[0].clamp(-20, 2).exp()
            before = mean + std * noise[t, row]
            action = torch.tanh(before)
            normal = torch.distributions.Normal(mean, std).log_prob(before).sum()
            log_pi = normal - torch.log(1 - action**2 + 1e-6).sum()
            joined = torch.cat([reads[0], action])[None]
            q = torch.stack([functional_q(net, joined, p)[0, 0] for net, p in zip(policy.value_net, frozen)]).min()
            beside = torch.cat([its.critic[0], action])[None]
            q_target = torch.stack([net(beside)[0, 0] for net in target.value_net]).min()
            soft.append(q - ent_coef * log_pi)
            aims.append((q_target - ent_coef * log_pi).detach())
            played = torch.cat([latent.critic[0], batch.actions[t, row].flatten()])[None]
            current.append([net(played)[0, 0] for net in policy.value_net])
        for t in range(T - n_steps):
            if not batch.acted[t, row]:
                continue
            goal, discount, end = 0.0, 1.0, t
            while end < t + n_steps and batch.acted[end, row] and discount:
                goal = goal + discount * batch.rewards[end, row]
                discount *= 0.0 if batch.terminated[end, row] else gamma
                end += 1
            goal = goal + discount * aims[min(end, T - 1)]
            critic = critic + batch.weights[row] * 0.5 * sum((q - goal) ** 2 for q in current[t])
            actor = actor - soft[t]
            count += 1
    return critic / count, actor / count


def functional_q(net, reads, parameters):
    """A critic with parameters that get no gradient."""
    named = dict(zip([name for name, _ in net.named_parameters()], parameters))
    return torch.func.functional_call(net, named, (reads,))


@pytest.mark.parametrize("share_memory", [False, True])
@pytest.mark.parametrize(("kind", "n_steps"), [("box", 1), ("box", 3), ("discrete", 2)])
def test_the_losses_are_those_of_a_plain_loop(kind, n_steps, share_memory, monkeypatch):
    model = make(kind, policy=dict(features_extractor_class=Double, share_memory=share_memory))
    policy, target = model.policy.double(), model.critic_target.double()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    batch = batch_for(policy, kind, 8, 3)
    noise = torch.randn(8, 3, 2, dtype=torch.float64)

    def drawn(self, deterministic=False):
        gaussian = self.distribution
        self.gaussian_actions = gaussian.mean + gaussian.stddev * noise.flatten(0, 1)
        return torch.tanh(self.gaussian_actions)

    monkeypatch.setattr(SquashedDiagGaussianDistribution, "get_actions", drawn)
    ent_coef = torch.tensor([0.3], dtype=torch.float64)
    fast = sac_losses(policy, target, batch, ent_coef, 0, n_steps, 0.9)
    slow = plain_losses(policy, target, batch, kind, 0.3, n_steps, 0.9, noise)
    assert fast.critic.dtype == torch.float64
    for mine, its in zip((fast.critic, fast.actor), slow):
        torch.testing.assert_close(mine, its)
        for parameters in (policy.critic_parameters, policy.actor_parameters):
            gradients = [
                torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in (mine, its)
            ]
            for a, b in zip(*gradients):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b)
    assert all(p.grad is None for p in target.parameters())


@pytest.mark.parametrize("share_memory", [False, True])
def test_each_side_has_its_own_gradients(share_memory):
    model = make(policy=dict(share_memory=share_memory))
    policy = model.policy
    losses = sac_losses(policy, model.critic_target, batch_for(policy, "box", 8, 3), torch.ones(1), 0, 1, 0.9)
    named = {id(p): name for name, p in policy.named_parameters()}
    assert len(policy.critic_parameters) + len(policy.actor_parameters) + 1 == len(named)
    memories = {named[id(p)].partition(".")[0] for p in policy.actor_parameters}
    assert ("memory" in memories) is not share_memory
    for loss, own, other in (
        (losses.critic, policy.critic_parameters, policy.actor_parameters),
        (losses.actor, policy.actor_parameters, policy.critic_parameters),
    ):
        assert all(g is None for g in torch.autograd.grad(loss, other, retain_graph=True, allow_unused=True))
        assert all(g is not None for g in torch.autograd.grad(loss, own, retain_graph=True))
    assert model.replay.states is not None
    assert isinstance(policy.initial_state(1)[0], torch.Tensor) is share_memory


def test_burn_in_refreshes_the_states_of_actor_and_critics():
    model = make(normalize_observations=True)
    model.learn(60)
    batch = model.replay.sample(5, np.random.default_rng(0))
    obs, start = batch.observations, batch.memory_start
    with torch.no_grad():
        state = model.policy.state_after(obs[:2], batch.state, start[:2])
        whole, _ = model.policy.latent(obs, batch.state, start)
        later, middle = model.policy.latent(obs[2:], state, start[2:], 2)
        critic = model.policy.critic_latent(obs, batch.state, start, 2)
    for a, b in zip(whole, later):
        torch.testing.assert_close(a[2:], b)
    torch.testing.assert_close(critic, later.critic)
    # that is also the state that an update stores again
    torch.testing.assert_close(middle, model.policy.state_after(obs[:4], batch.state, start[:4]))
    losses = sac_losses(model.policy, model.critic_target, batch, torch.ones(1), 2, 1, 0.9)
    torch.testing.assert_close(losses.state, middle)


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_call_of_the_policy_acts_and_tells_what_the_critics_judge(kind):
    model = make(kind, normalize_returns=True)
    policy, state = model.policy, model.policy.initial_state(20)
    policy.return_scale.std.fill_(3.0)
    obs = torch.randn(20, 2)
    with torch.no_grad():
        looked = policy.look(obs[None], state, torch.zeros(1, 20, dtype=torch.bool))
        likeliest, told, _, after = policy(obs, state, deterministic=True)
        torch.testing.assert_close(after, looked.state)
        judged = looked.judged[0]
        if kind == "discrete":
            judged = judged[range(20), likeliest]
        torch.testing.assert_close(told, judged)
        torch.testing.assert_close(policy.predict_values(obs, state), judged)
        torch.manual_seed(0)
        drawn, _, log_prob, _ = policy(obs, state)
        torch.manual_seed(0)
        expected, _ = policy.act(obs, state)
        torch.testing.assert_close(drawn.flatten(1) if kind == "box" else drawn, expected)
        assert drawn.shape[1:] == policy.action_space.shape
        torch.testing.assert_close(log_prob, looked.distribution.log_prob(expected), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="MemoryPPO's"):
        policy.evaluate_actions(obs[None], expected[None], state, torch.zeros(1, 20, dtype=torch.bool))


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_saved_model_acts_and_learns_on(kind, tmp_path):
    model = make(kind, ent_coef="auto_0.5", train_freq=(2, "step"), prioritized=True, learning_rate=1e-2)
    model.learn(70)
    before = [p.clone() for p in model.critic_target.parameters()]
    assert not torch.equal(model.policy.log_ent_coef.detach(), torch.tensor([0.5]).log())
    model.save(tmp_path / "model")
    loaded = MemorySAC.load(tmp_path / "model", env=worlds(kind), device="cpu")
    obs = np.random.default_rng(0).normal(size=(B, 2)).astype(np.float32)
    state = again = None
    for _ in range(4):
        actions, state = model.predict(obs, state, deterministic=True)
        others, again = loaded.predict(obs, again, deterministic=True)
        np.testing.assert_array_equal(actions, others)
        assert all(model.action_space.contains(action) for action in actions)
    torch.testing.assert_close(before, list(loaded.critic_target.parameters()), rtol=0, atol=0)
    assert loaded.target_entropy == model.target_entropy
    loaded.learn(40)
    assert loaded._n_updates > 0


def test_weights_that_are_given_reach_the_target_networks():
    source, model = make(), make(seed=1)
    model.set_parameters({"policy": source.get_parameters()["policy"]}, exact_match=False)
    for network in (model.policy, model.critic_target):
        torch.testing.assert_close(list(network.parameters()), list(source.policy.parameters()), rtol=0, atol=0)


def test_a_box_is_scaled_in_the_replay_and_not_in_the_environment():
    model = make(action_noise=NormalActionNoise(np.zeros((1, 2)), np.full((1, 2), 0.1)), learning_starts=0)
    model.learn(60)
    stored = model.replay.actions[: model.replay.pos]
    assert stored.shape[2:] == (1, 2)
    assert np.abs(stored).max() <= 1
    assert stored.min() < -0.3
    with torch.no_grad():
        model.policy.log_std.bias.fill_(-20)
        model.policy.action_net.bias.fill_(20)
    np.testing.assert_allclose(model.predict(np.zeros((1, 2), np.float32))[0], [[[1.0, 3.0]]], rtol=1e-5)


def test_each_row_has_noise_of_its_own_whenever_it_was_given():
    noise = OrnsteinUhlenbeckActionNoise(np.zeros((1, 2)), np.full((1, 2), 0.1))
    given, set_later, of_three = make(action_noise=noise), make(), make()
    set_later.action_noise, of_three.action_noise = noise, VectorizedActionNoise(noise, 3)
    for model in (given, set_later, of_three):
        model.learn(26)
        assert isinstance(model.action_noise, VectorizedActionNoise)
        assert model.action_noise.n_envs == B
        first, second = model.action_noise.noises
        assert not np.array_equal(first.noise_prev, second.noise_prev)
    alone = make(env=worlds(rows=1), action_noise=noise)
    alone.learn(30)
    assert alone.action_noise is noise


@pytest.mark.parametrize("rows", [1, B])
@pytest.mark.parametrize("shape", [(2,), (1, 1), (B, 1, 2)])
def test_noise_of_another_shape_than_actions_is_refused_before_a_step(rows, shape):
    env = worlds(rows=rows)
    env.step_async = None  # is not called
    model = make(env=env, action_noise=NormalActionNoise(np.zeros(shape), np.ones(shape)))
    said = f"action_noise must have the shape of an action, (1, 2); got {shape}: make it of"
    with pytest.raises(ValueError, match=re.escape(said)):
        model.learn(26)


def test_a_fixed_weight_of_the_entropy_stays():
    model = make(ent_coef=0.2)
    model.learn(60)
    assert model.logger.name_to_value["train/ent_coef"] == pytest.approx(0.2)
    assert "train/ent_coef_loss" not in model.logger.name_to_value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(use_sde=True), "use_sde"),
        (dict(ent_coef="automatic"), "ent_coef"),
        (dict(ent_coef=-1.0), "ent_coef"),
        (dict(target_entropy="low"), "target_entropy"),
        (dict(policy=dict(share_features_extractor=True)), "must be share_memory"),
        (dict(policy=dict(n_critics=0)), "n_critics must be an integer, 1 to .*; got 0"),
        (dict(policy=dict(n_critics=2.5)), "n_critics must be an integer, 1 to .*; got 2.5"),
        (dict(policy=dict(net_arch=dict(pi=[8], qf=[8], vf=[8]))), "'pi' and 'qf' or 'vf'"),
        (dict(policy=dict(lr_schedule=1)), "it is MemorySAC's learning_rate"),
        (dict(policy=dict(normalize_returns=True)), "it is an argument of MemorySAC"),
        (dict(policy=dict(use_sde=False)), "'use_sde': .* whose noise a replay does not store"),
        (dict(policy=dict(log_std_init=-3)), "'log_std_init': .* whose noise a replay does not store"),
        (dict(policy=dict(use_expln=True)), "'use_expln'"),
        (dict(policy=dict(squash_output=True)), "'squash_output'"),
        (dict(policy=dict(reconstruct=True)), "which MemoryPPO alone has"),
        (dict(policy=dict(clip_mean=2.0)), "has no argument 'clip_mean'"),
        (dict(policy=dict(shortcut=2)), "shortcut must be True or False"),
        (dict(env=DummyVecEnv([lambda: Spaces(OBSERVATIONS, spaces.MultiBinary(2))])), "must be Box or Discrete"),
    ],
)
def test_what_cannot_be_is_refused_in_words(given, said):
    with pytest.raises(ValueError, match=said):
        make(**given)


def test_the_critics_layers_have_sb3s_name_too(tmp_path):
    one, other = (make(policy=dict(net_arch={"pi": [5], name: [7, 6]})) for name in ("qf", "vf"))
    widths = [layer.out_features for layer in one.policy.value_net[0] if isinstance(layer, torch.nn.Linear)]
    assert widths == [7, 6, 1]
    assert one.policy.mlp_extractor.latent_dim_pi == 5
    torch.testing.assert_close(one.policy.state_dict(), other.policy.state_dict(), rtol=0, atol=0)
    one.save(tmp_path / "model")
    assert MemorySAC.load(tmp_path / "model", device="cpu").policy_kwargs["net_arch"] == {"pi": [5], "qf": [7, 6]}


def test_dicts_and_images_are_learned_from():
    space = spaces.Dict({"image": spaces.Box(0, 255, (3, 4, 4), np.uint8), "word": spaces.Discrete(3)})
    model = make("discrete", env=worlds("discrete", 1, space), policy_class="MultiInputMemoryPolicy")
    model.learn(40)
    assert model._n_updates > 0


@pytest.mark.parametrize("gradient_steps", [1, 3])
def test_the_targets_follow_after_so_many_updates_of_all_calls(gradient_steps, monkeypatch):
    followed, follow = [], sac.follow
    model = make(target_update_interval=4, gradient_steps=gradient_steps, learning_starts=20)

    def noted(*given):
        followed.append(len(drawn))
        follow(*given)

    drawn, sample = [], model._sample
    model._sample = lambda batch_size: drawn.append(1) or sample(batch_size)
    monkeypatch.setattr(sac, "follow", noted)
    model.learn(52)
    assert len(drawn) == model._n_updates >= 12
    assert followed == list(range(4, model._n_updates + 1, 4))


def test_a_policy_that_is_not_finite_is_named():
    model = make("discrete")
    with torch.no_grad():
        next(model.policy.memory.parameters()).fill_(np.nan)
    with pytest.raises(NotFinite, match=r"parameter memory\..* nan"):
        model.learn(20)


def test_kernels_learn_as_torch_does():
    """Not least: the actor's gradient goes through the critics' weights as they were before their step."""
    learned = []
    for compiled in (True, False):
        model = make(policy=dict(net_arch=[8]))
        model.policy.compiled = compiled
        learned.append(torch.cat([each.flatten() for each in model.learn(26).policy.parameters()]).detach())
    torch.testing.assert_close(*learned, rtol=0, atol=1e-5)
