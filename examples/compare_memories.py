"""Compare memories honestly: several seeds each, unseen evaluation seeds, 95 % intervals.

python examples/compare_memories.py --memories gru ffm none --seeds 3 --total-timesteps 100000
"""

import argparse

from palimpsest import envs
from palimpsest.agents import MemoryPPO, evaluate, preset
from palimpsest.agents.evaluation.statistics import estimate_improvement, estimate_iqm

MAZE, SETTING = "Palimpsest/TMaze-v0", {"length": 5}


def success(memory: str, seed: int, total_timesteps: int, episodes: int) -> float:
    """Success of one training in episodes that it has not seen."""
    venv = envs.make_vec(MAZE, num_envs=16, seed=seed, **SETTING)
    model = MemoryPPO("MlpMemoryPolicy", venv, **preset(memory, num_envs=16), seed=seed)
    model.learn(total_timesteps)
    return evaluate(model, MAZE, episodes=episodes, env_args=SETTING)["success"]


def main() -> None:
    """Train every memory with every seed, then print interquartile means and who improves on whom."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", nargs="+", default=["gru", "ffm", "none"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--total-timesteps", type=int, default=100_000)
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    scores = {}
    for memory in arguments.memories:
        runs = [success(memory, seed, arguments.total_timesteps, arguments.episodes) for seed in range(arguments.seeds)]
        scores[memory] = {MAZE: runs}
        value, low, high = estimate_iqm(scores[memory])
        print(
            f"{memory}: {value:.2f}, 95 % interval {low:.2f} to {high:.2f}; runs {', '.join(f'{x:.2f}' for x in runs)}"
        )
    first, *others = arguments.memories
    for other in others:
        value, low, high = estimate_improvement(scores[first], scores[other])
        print(f"a run of {first} beats one of {other} with probability {value:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
