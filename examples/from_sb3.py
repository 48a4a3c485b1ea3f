"""Convert an agent of stable-baselines3's PPO or sb3-contrib's RecurrentPPO. Its actions and values stay the same.

    python examples/from_sb3.py PPO theirs.zip CartPole-v1 ours.zip
    python examples/from_sb3.py RecurrentPPO theirs.zip CartPole-v1 ours.zip

Their files contain pickles, and loading a pickle runs code from the file: load only files that you trust. Our files run
no code. The policies "MlpPolicy" and "MlpLstmPolicy" can be converted. The optimiser's moments are not converted.
"""

import sys
from typing import Any

import gymnasium as gym
from stable_baselines3 import PPO
from torch import Tensor, nn

from palimpsest.agents import MemoryPPO

KEPT = (
    *("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm"),
    *("clip_range", "clip_range_vf", "normalize_advantage", "target_kl"),
)


def convert(theirs: Any, env: Any) -> MemoryPPO:
    """A `MemoryPPO` on `env` that acts like `theirs`.

    Raises:
        ValueError: a network that `MemoryPPO` does not support.
    """
    policy = theirs.policy
    weights = {name: tensor for name, tensor in policy.state_dict().items() if "features_extractor" not in name}
    if len(weights) < len(policy.state_dict()):
        raise ValueError(f"only policies without a learned features extractor can be converted; got {type(policy)}")
    kwargs, renamed = recurrent(policy, weights) if hasattr(policy, "lstm_actor") else feed_forward(policy, weights)
    # loading would ask for a class, because a file holds only its name; tanh is the default of both, so leave it out
    activation = {} if policy.activation_fn is nn.Tanh else {"activation_fn": policy.activation_fn}
    ours = MemoryPPO(
        "MlpMemoryPolicy",
        env,
        learning_rate=theirs.learning_rate,
        policy_kwargs={"encoder_arch": (), **activation, **kwargs},
        device="cpu",
        normalize_returns=False,  # their critics predict returns as they are
        **{name: getattr(theirs, name) for name in KEPT},
    )
    ours.policy.load_state_dict(renamed)  # strict: a wrong name or shape is an error
    return ours


def recurrent(policy: Any, weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """RecurrentPPO: an LSTM reads the observation. Actor and critic share one or have one each."""
    lstm = policy.lstm_actor
    if policy.lstm_critic is None and not policy.shared_lstm:
        raise ValueError("an actor with an LSTM and a critic without one cannot be converted")
    renamed = {
        name.replace("lstm_actor.", "memory.").replace("lstm_critic.", "memory_critic."): tensor
        for name, tensor in weights.items()
    }
    if policy.shared_lstm:  # then our critic's memory is the actor's, under a second name
        renamed |= {name.replace("lstm_actor.", "memory_critic."): t for name, t in weights.items() if "lstm_" in name}
    return {
        "memory": "lstm",
        "memory_kwargs": {"output_size": lstm.hidden_size, "num_layers": lstm.num_layers},
        "share_memory": policy.shared_lstm,
        "net_arch": {"pi": widths(policy.mlp_extractor.policy_net), "vf": widths(policy.mlp_extractor.value_net)},
    }, renamed


def feed_forward(policy: Any, weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PPO: our control without memory computes tanh(W x + b). It takes the first layer of each of PPO's networks."""
    pi, vf = widths(policy.mlp_extractor.policy_net), widths(policy.mlp_extractor.value_net)
    if not pi or not vf or pi[0] != vf[0] or policy.activation_fn is not nn.Tanh:
        raise ValueError(f"both networks must begin with a tanh layer of one width; got {policy.mlp_extractor}")
    renamed = {}
    for name, tensor in weights.items():
        for net, first in (("policy_net", "memory.layer"), ("value_net", "memory_critic.layer")):
            prefix = f"mlp_extractor.{net}."
            if name.startswith(prefix):
                place, kind = name.removeprefix(prefix).split(".")
                name = f"{first}.{kind}" if place == "0" else f"{prefix}{int(place) - 2}.{kind}"
        renamed[name] = tensor
    return {
        "memory": "none",
        "memory_kwargs": {"output_size": pi[0]},
        "share_memory": False,
        "net_arch": {"pi": pi[1:], "vf": vf[1:]},
    }, renamed


def widths(net: nn.Sequential) -> list[int]:
    """Number of units of each linear layer."""
    return [layer.out_features for layer in net if isinstance(layer, nn.Linear)]


def main(algorithm: str, theirs: str, env_id: str, ours: str) -> None:
    """Load their file, convert it, save ours."""
    if algorithm == "PPO":
        loader: Any = PPO
    else:
        from sb3_contrib import RecurrentPPO as loader
    convert(loader.load(theirs, device="cpu"), gym.make(env_id)).save(ours)


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[1] not in ("PPO", "RecurrentPPO"):
        sys.exit("usage: python examples/from_sb3.py PPO|RecurrentPPO THEIRS.zip ENV_ID OURS.zip")
    main(*sys.argv[1:])
