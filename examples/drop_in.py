"""A script of sb3-contrib's RecurrentPPO with `MemoryPPO` in its place. Everything of Stable-Baselines3 stays.

CartPole without velocities: positions alone must be remembered to balance the pole. 50,000 steps take about a minute.

    python examples/drop_in.py --total-timesteps 50000
"""

import argparse

from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from palimpsest.agents import MemoryPPO

ENV = "palimpsest:Palimpsest/CartPoleNoVel-v0"


def main() -> None:
    """Train with the settings of sb3-contrib's own performance test, then test on 20 episodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-timesteps", type=int, default=50_000)
    parser.add_argument("--memory", default="lstm", help="any name of `palimpsest list`")
    arguments = parser.parse_args()

    # was: RecurrentPPO("MlpLstmPolicy", make_vec_env(ENV, 8), ..., policy_kwargs=dict(lstm_hidden_size=64))
    model = MemoryPPO(
        "MlpMemoryPolicy",
        make_vec_env(ENV, 8, seed=0),
        learning_rate=7e-4,
        n_steps=128,
        batch_size=256,
        policy_kwargs=dict(
            memory=arguments.memory, memory_kwargs=dict(output_size=64), share_memory=False, encoder_arch=[]
        ),
        seed=0,
    )
    best = EvalCallback(make_vec_env(ENV, 1, seed=100), eval_freq=1250, n_eval_episodes=5, verbose=0)
    model.learn(arguments.total_timesteps, callback=best)
    mean, std = evaluate_policy(model, make_vec_env(ENV, 4, seed=200), n_eval_episodes=20)
    print(f"mean return {mean:.0f} ± {std:.0f}; 500 is the best possible")


if __name__ == "__main__":
    main()
