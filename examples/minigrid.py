"""The Memory maze of the package minigrid: an object in the first room says where to turn at the end of a hallway.

The environment is minigrid's own. Its observations are a dictionary with an image; texts are left out. Ours,
`Palimpsest/MiniGridMemory-S11-v0`, has the same rules and is more than a thousand times as fast.

    python examples/minigrid.py --total-timesteps 500000
"""

import argparse

from palimpsest import envs
from palimpsest.agents import MemoryPPO, evaluate, preset

THEIRS, OURS = "minigrid:MiniGrid-MemoryS11-v0", "Palimpsest/MiniGridMemory-S11-v0"


def main() -> None:
    """Train on one of the two and test it there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-timesteps", type=int, default=500_000)
    parser.add_argument("--ours", action="store_true", help="train in our fast copy of the maze")
    parser.add_argument("--memory", default="gru", help="any name of `palimpsest list`")
    arguments = parser.parse_args()
    env_id = OURS if arguments.ours else THEIRS
    model = MemoryPPO(
        "MultiInputMemoryPolicy",
        envs.make_vec(env_id, num_envs=16, seed=0),
        **preset(arguments.memory, num_envs=16),
        seed=0,
    )
    model.learn(arguments.total_timesteps)
    result = evaluate(model, env_id, episodes=20)
    print(f"{env_id}: mean return {result['return_mean']:.2f}, {result['length_mean']:.0f} steps an episode")


if __name__ == "__main__":
    main()
