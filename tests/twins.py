"""What tests of worlds share: the worlds' generator in plain Python, and worlds held against twins of it."""

import numpy as np

TWO_64 = 1 << 64


class SplitMix:
    """SplitMix64 on Python integers, and the bounded draw of arXiv 1805.10941."""

    def __init__(self, seed: int) -> None:
        self.state = seed % TWO_64
        self.state = self.bits()

    def bits(self) -> int:
        self.state = z = (self.state + 0x9E3779B97F4A7C15) % TWO_64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % TWO_64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % TWO_64
        return z ^ z >> 31

    def halves(self) -> tuple[int, int]:
        bits = self.bits()
        return bits >> 32, bits % 2**32

    def below(self, n: int, half: int | None = None) -> int:
        while True:
            product = (self.bits() >> 32 if half is None else half) * n
            if product % 2**32 >= 2**32 % n:
                return product >> 32
            half = None


def assert_follows(env, twin, seed: int, steps: int, skill: float) -> None:
    """A world whose observations are arrays does what its twin does, whose `reset` and `step` give plain values.

    A share `skill` of the actions are the expert's, the others any.
    """
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    assert obs.tolist() == twin.reset(seed)
    for _ in range(steps):
        action = env.expert_action() if rng.random() < skill else int(rng.integers(env.action_space.n))
        obs, reward, terminated, truncated, info = env.step(action)
        assert (obs.tolist(), reward, terminated, truncated, info.get("success", False)) == twin.step(action)
        assert env.observation_space.contains(obs)
        if terminated or truncated:
            assert env.reset()[0].tolist() == twin.reset()


def assert_rows_follow(vector, twins, steps: int, skill: float = 0.8) -> None:
    """So does every row of a batch, which begins anew by itself."""
    rows = len(twins)
    obs, _ = vector.reset(seed=100)
    assert obs.tolist() == [twin.reset(100 + i) for i, twin in enumerate(twins)]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        any_action = rng.integers(vector.single_action_space.n, size=rows)
        actions = np.where(rng.random(rows) < skill, vector.expert_action(), any_action)
        obs, rewards, terminated, truncated, infos = vector.step(actions)
        for i, twin in enumerate(twins):
            seen, *rest, won = twin.step(int(actions[i]))
            assert rest == [rewards[i], terminated[i], truncated[i]]
            if rest[1] or rest[2]:
                assert infos["final_obs"][i].tolist() == seen
                assert infos["final_info"]["success"][i] == won
                seen = twin.reset()
            assert obs[i].tolist() == seen


def first_success(vector, obs, act) -> float:
    """Success over the first episode of every row, `act` choosing all rows' actions from observations."""
    waiting, won = np.ones(vector.num_envs, bool), np.zeros(vector.num_envs, bool)
    fresh = np.ones(vector.num_envs, bool)
    while waiting.any():
        obs, _, terminated, truncated, infos = vector.step(act(obs, fresh))
        fresh = terminated | truncated
        if infos:
            won |= waiting & fresh & infos["final_info"]["success"]
        waiting &= ~fresh
    return won.mean()
