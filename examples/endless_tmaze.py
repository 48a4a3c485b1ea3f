"""Train a memory agent from Python, save it, load it, and test it on mazes that are twenty times as long.

python examples/endless_tmaze.py --memory lstm
"""

import argparse

from palimpsest import envs
from palimpsest.agents import MemoryPPO, evaluate

MAZE = "Palimpsest/EndlessTMaze-v0"


def main() -> None:
    """Train on 3 corridors of 5 cells, then test on 3 and on 60 corridors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="rewrite", help="any name of `palimpsest list`")
    parser.add_argument("--total-timesteps", type=int, default=300_000)
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    venv = envs.make_vec(MAZE, num_envs=64, seed=0, corridors=3, length=5)
    model = MemoryPPO(
        "MlpMemoryPolicy",
        venv,
        learning_rate=lambda remaining: 1e-3 * remaining,
        n_steps=128,
        batch_size=2048,
        n_epochs=4,
        ent_coef=0.02,
        memory_carry_over=0.9,
        policy_kwargs={"memory": arguments.memory},
        seed=0,
    )
    model.learn(arguments.total_timesteps)
    model.save("maze")
    # The schedule above is a function. A file holds only its name, so loading needs it as a custom object.
    loaded = MemoryPPO.load("maze", custom_objects={"learning_rate": 1e-3})
    for corridors in (3, 60):
        result = evaluate(loaded, MAZE, episodes=arguments.episodes, env_args={"corridors": corridors, "length": 5})
        print(f"{corridors} corridors: success {result['success']:.2f}, chance {result['chance']:.2g}")


if __name__ == "__main__":
    main()
