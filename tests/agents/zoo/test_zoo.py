"""rl-zoo3's files: each key becomes a field of the training, or is refused by name. The files here are our own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from gymnasium import spaces

from palimpsest import train
from palimpsest.agents.launch import start
from palimpsest.agents.run import experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.zoo.hyperparameters import _POLICY_READERS, _READERS, REFUSED, load
from palimpsest.agents.zoo.texts import Activation, read_expression, read_schedule

pytest.importorskip("yaml")

FILE = """
CartPoleNoVel-v1: &pole
  normalize: "{'norm_obs': True, 'norm_reward': False}"
  n_envs: 4
  n_timesteps: !!float 2e4
  policy: 'MlpLstmPolicy'
  n_steps: 64
  batch_size: 128
  n_epochs: 5
  gamma: 0.9
  gae_lambda: 0.85
  ent_coef: 1e-3
  vf_coef: 0.25
  max_grad_norm: 1
  clip_range: lin_0.3
  learning_rate: lin_2e-3
  use_sde: False
  policy_kwargs: "dict(ortho_init=False, lstm_hidden_size=32, n_lstm_layers=2, enable_critic_lstm=True,
                       activation_fn=nn.ReLU, net_arch=dict(pi=[16, 8], vf=[16, 8]), log_std_init=-2)"

PendulumNoVel-v1:
  <<: *pole
  policy_kwargs: "dict(shared_lstm=True, enable_critic_lstm=False)"
  use_sde: True
  sde_sample_freq: 8
  learning_rate: 0.003
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.yml").write_text(FILE)
    return tmp_path / "zoo.yml"


def one(tmp_path, text):
    """The training of a file with one entry of these lines."""
    lines = "".join(f"  {line}\n" for line in text.splitlines())
    (tmp_path / "one.yml").write_text(f"CartPole-v1:\n  policy: MlpLstmPolicy\n{lines}")
    return load(tmp_path / "one.yml")


def test_every_key_becomes_a_field(path):
    assert load(path, "Palimpsest/CartPoleNoVel-v0") == TrainConfig(
        env="Palimpsest/CartPoleNoVel-v0",
        memory="lstm",
        memory_args={"output_size": 32, "num_layers": 2},
        share_memory=False,
        num_envs=4,
        total_timesteps=20_000,
        n_steps=64,
        batch_size=128,
        n_epochs=5,
        gamma=0.9,
        gae_lambda=0.85,
        min_gae_lambda=1.0,
        ent_coef=1e-3,
        anneal_entropy=False,
        vf_coef=0.25,
        max_grad_norm=1.0,
        clip_range=0.3,
        anneal_clip_range=True,
        learning_rate=2e-3,
        anneal=True,
        use_sde=False,
        sde_sample_freq=-1,
        target_kl=0.0,
        min_advantage_std=0.0,
        carry_over=0.0,
        normalize_observations=True,
        normalize_returns=False,
        encoder_arch=(),
        net_arch=(16, 8),
        activation="relu",
        ortho_init=False,
        log_std_init=-2.0,
    )


def test_an_entry_is_found_by_environment_or_name(path):
    assert load(path, key="PendulumNoVel-v1").env == "Palimpsest/PendulumNoVel-v0"
    pendulum = load(path, "Palimpsest/PendulumNoVel-v0")
    assert (pendulum.share_memory, pendulum.use_sde, pendulum.sde_sample_freq) == (True, True, 8)
    assert (pendulum.learning_rate, pendulum.anneal, pendulum.net_arch) == (0.003, False, (64, 64))
    assert load(path, "Acrobot-v1", "CartPoleNoVel-v1").env == "Acrobot-v1"
    assert load(path, "somebody.package:PendulumNoVel-v0").env == "somebody.package:PendulumNoVel-v0"
    with pytest.raises(
        ValueError, match="several entries; choose one by --zoo-key: CartPoleNoVel-v1, PendulumNoVel-v1"
    ):
        load(path)
    with pytest.raises(ValueError, match="no entry for 'Acrobot-v1'"):
        load(path, "Acrobot-v1")
    with pytest.raises(ValueError, match=r"no entry .CartPole. .did you mean"):
        load(path, key="CartPole")


def test_what_a_file_leaves_out_is_as_in_recurrent_ppo(tmp_path):
    config = one(tmp_path, "n_envs: 8")
    assert (config.n_steps, config.batch_size, config.n_epochs, config.learning_rate) == (128, 128, 10, 3e-4)
    assert (config.anneal, config.normalize_observations) == (False, False)
    assert config.normalize_returns  # RecurrentPPO's critic has no scale; MemoryPPO's has one, unless told otherwise
    assert (config.memory_args, config.net_arch, config.env) == ({"output_size": 256}, (64, 64), "CartPole-v1")
    assert one(tmp_path, "policy: CnnLstmPolicy").net_arch == ()
    assert one(tmp_path, "normalize: true").normalize_returns
    assert not one(tmp_path, "normalize: dict(norm_obs=False)").normalize_observations
    assert one(tmp_path, "target_kl: null\nclip_range_vf: -1\ncallback: null").target_kl == 0.0
    wrapped = one(tmp_path, "frame_stack: 4\nenv_wrapper:\n  - a.b.C\n  - a.D")
    assert wrapped.wrapper == ("a.b:C", "a:D", "frame-stack=4")
    assert one(tmp_path, "env_wrapper: a.C").wrapper == ("a:C",)
    assert one(tmp_path, "env_kwargs: {render_mode: null}").env_args == {"render_mode": None}


@pytest.mark.parametrize("name", REFUSED)
def test_a_key_without_counterpart_is_refused_by_name(name, tmp_path):
    with pytest.raises(
        ValueError, match=rf"one.yml: CartPole-v1: '{name}' is not taken: \w.*; leave it out of the file"
    ):
        one(tmp_path, f"{name}: something")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_step: 4", "unknown key 'n_step' .did you mean 'n_steps'"),
        ("n_envs: 1.5", "'n_envs': it must be an integer; got 1.5"),
        ("gamma: x", "'gamma': could not convert"),
        ("gamma: 1.5", "gamma must be a number, 0 to 1, or None; got 1.5"),
        ("clip_range: exp_0.2", "'clip_range': could not convert"),
        ("policy: MlpPolicy", "'policy': it must be one of MlpLstmPolicy"),
        ("normalize: dict(clip_obs=5)", "'normalize': it takes norm_obs and norm_reward; leave out 'clip_obs'"),
        ("normalize_advantage: false", "'normalize_advantage': the command line always"),
        (
            "env_wrapper:\n  - a.B:\n      skip: 2",
            "'env_wrapper': it must be module.Wrapper, or a list of them, without",
        ),
        ("use_sde: 1", "'use_sde': it must be true or false; got 1"),
        ("policy_kwargs: dict(lstm_size=3)", "'policy_kwargs': unknown key 'lstm_size'"),
        ("policy_kwargs: dict(enable_critic_lstm=False)", "a critic without a memory is not taken"),
        ("policy_kwargs: 'dict(net_arch=dict(pi=[8], vf=[4]))'", "'net_arch': the two heads must have equal layers"),
        ("policy_kwargs: dict(activation_fn=nn.Softmax)", "'activation_fn': it must be nn. and one of tanh, relu"),
        ("policy_kwargs: dict(optimizer_class=nn.Adam)", "'optimizer_class' is not taken: the optimiser is Adam"),
        ("policy_kwargs: dict(ortho_init=open('x'))", "is not a plain value"),
        ("policy_kwargs: dict(", "it is no expression"),
    ],
)
def test_a_value_without_counterpart_is_refused_by_name(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        one(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dict(a=1, b=-2.5, c='x', d=None, e=True)", {"a": 1, "b": -2.5, "c": "x", "d": None, "e": True}),
        ("{'a': [1, (2, 3)], 'b': dict()}", {"a": [1, [2, 3]], "b": {}}),
        ("  dict(a=th.nn.Tanh, b=nn.ReLU)\n", {"a": Activation("Tanh"), "b": Activation("ReLU")}),
    ],
)
def test_expressions_are_read(text, value):
    assert read_expression(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os')", "dict(a=os.system)", "dict(**{'a': 1})", "dict([('a', 1)])", "{**{}}", "{1: 2}", "nn"),
        *("{'a': 1, 'a': 2}", "lambda: 0", "[x for x in ()]", "f'{1}'", "1 + 1", "b''", "1j", "...", "-'a'", "nn.x()"),
        *("(" * 500 + ")" * 500, "[" * 9000, "1" * 20_000, "\0", ""),
    ],
)
def test_nothing_else_is_read(text):
    with pytest.raises(ValueError):  # noqa: PT011  each has words of its own
        read_expression(text)


def test_schedules_are_read():
    assert read_schedule("lin_0.2") == (0.2, True)
    assert read_schedule("1e6") == (1e6, False)
    assert read_schedule(3) == (3, False)
    for wrong in ("lin_", "lin_x", "nan", None, True, "inf"):
        with pytest.raises((ValueError, TypeError)):
            read_schedule(wrong)


def test_the_command_line_trains_as_the_file_says(path, monkeypatch, capsys):
    configs = []
    monkeypatch.setattr(start, "train", lambda config, engine: configs.append(config))
    zoo = ["train", "--zoo-config", "zoo.yml"]
    assert train.main([*zoo, "--env", "Palimpsest/CartPoleNoVel-v0", "--gamma", "0.5"]) == 0
    (config,) = configs
    expected = dataclasses.replace(load(path, key="CartPoleNoVel-v1"), gamma=0.5, run_dir=config.run_dir)
    assert config == expected
    assert train.main([*zoo, "--zoo-key", "PendulumNoVel-v1", "--num-envs", "2", "--memory", "rewrite"]) == 0
    assert (configs[1].num_envs, configs[1].memory, configs[1].memory_args) == (2, "rewrite", {})
    for words in (["--config", "zoo.yml"], ["--resume", "."]):
        assert train.main([*zoo, "--zoo-key", "PendulumNoVel-v1", *words]) == 2
    assert train.main(["--zoo-key", "PendulumNoVel-v1"]) == 2
    assert train.main([*zoo, "--env", "Acrobot-v1"]) == 2
    assert capsys.readouterr().err.count("\n") == 4


def test_the_agent_is_made_as_the_file_says(path):
    config = dataclasses.replace(load(path, key="CartPoleNoVel-v1"), device="cpu")
    env = experiment.make_env(config)
    model = experiment.make_model(config, env)
    env.close()
    assert isinstance(env.action_space, spaces.Discrete)
    assert (model.batch_size, model.n_steps, model.n_envs, model.target_kl) == (128, 64, 4, None)
    assert [model.clip_range(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([0.3, 0.15, 0.0])
    assert [model.lr_schedule(left) for left in (1.0, 0.5)] == pytest.approx([2e-3, 1e-3])
    assert model.policy.encoder_arch == []
    assert (model.policy.net_arch, model.policy.ortho_init) == ([16, 8], False)
    assert model.policy.activation_fn.__name__ == "ReLU"
    assert not model.policy.shares_memory


def test_the_page_names_every_key():
    page = (Path(__file__).resolve().parents[3] / "docs" / "tuning.md").read_text(encoding="utf-8")
    for name in (*_READERS, *_POLICY_READERS, *REFUSED, "shared_lstm", "enable_critic_lstm"):
        assert f"`{name}`" in page, name
