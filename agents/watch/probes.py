"""Linear probes: is a fact of the world, shown at an event, in the memory's state; is an older one still there.

For every number of steps since an event a ridge classifier is trained on some histories and tested on others. A
history is the facts of all events of an episode so far. Each gives one sample, for a probe that has met a history could
name its facts by heart. Noise is added to what is read, for in a world without chance everything leaves a trace in the
last digits. The classifier is computed in closed form in its dual, with the penalty of least leave-one-out error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from palimpsest.agents.environments import declares, event_mask
from palimpsest.agents.masks import get_action_masks, is_masking_supported
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.agents.policy.spaces import greedy_strategy
from palimpsest.agents.tree import tree_map
from palimpsest.agents.watch.player import as_tensors

NO_FACTS = {"rng", "steps", "over"}
"""Fields of a hidden state that are no facts of the world."""
MOST_FACTS, MOST_KINDS = 4, 12
MOST_NUMBERS = 1024
"""Numbers of a state that probes read. Of a longer state, numbers drawn at random are added up with random signs."""
MOST_SAMPLES = 400
"""Samples that a probe is trained on, and as many that it is tested on."""
LEAST_SAMPLES = 20
NOISE = 0.1
"""Standard deviation of the noise, in those of the numbers that are read, over all of them."""
PENALTIES = (1e-4, 1e-2, 1.0, 100.0)
"""Of the mean eigenvalue."""


class Samples(NamedTuple):
    """One entry per step that follows an event, N in all."""

    states: np.ndarray
    """[N, d] float32, numbers of the actor's state after the step."""
    outputs: np.ndarray
    """[N, D] float32, what the actor's memory gave out."""
    lags: np.ndarray
    """[N] int64, steps since the last event."""
    histories: np.ndarray
    """[N] int64, equal where the facts at all events so far are equal."""
    number: np.ndarray
    """[N] int64, how many events the episode had before the last one."""
    facts: np.ndarray
    """[N, n] int64, the facts at the last event."""
    old_facts: np.ndarray
    """[N, n] int64, those at the event before; only where `number` is 1 or more."""
    names: list[str]
    """n names of facts."""


class Curve(NamedTuple):
    """A probe's accuracy over steps since the event. Steps with too few samples are left out."""

    lags: np.ndarray
    accuracy: np.ndarray
    error: np.ndarray
    """The standard error of the accuracy."""
    chance: np.ndarray
    """Accuracy of the best guess that does not look at the memory."""


class Probed(NamedTuple):
    """What was found of one fact."""

    name: str
    written: Curve
    """The last event's fact, from the state."""
    old: Curve
    """The fact of the event before it, from the state; chance is the best guess from the newer one."""
    read: Curve
    """The last event's fact, from what the memory gives out."""
    old_read: Curve
    """The fact of the event before it, from what the memory gives out; chance as for `old`."""


def can_probe(env: VecEnv) -> bool:
    """Whether the environment says where events are and what is hidden."""
    return declares(env, "event_mask") and declares(env, "hidden_state")


def collect(model: Any, env: VecEnv, episodes: int, seed: int, lags: int, deterministic: bool = True) -> Samples:
    """Play `episodes` episodes and keep what the memory held up to `lags` steps after events.

    An event is a step whose observation shows one, with facts that differ from those of the event before it.

    Args:
        model: a `MemoryPPO`, `MemoryDQN` or `MemorySAC`.
        env: rows with `event_mask` and `hidden_state`, and the observation wrappers of the training.
        episodes: 2 or more.
        seed: of the first episode.
        lags: 0 or more.
        deterministic: the likeliest action instead of a sample.
    """
    parts: list[tuple] = []
    for first in range(0, episodes, env.num_envs):
        env.seed(seed + first)
        B = min(env.num_envs, episodes - first)
        number, since, history = np.full(B, -1), np.zeros(B, np.int64), np.zeros(B, np.int64)
        now = before = np.zeros((B, 0), np.int64)
        for obs, playing, facts, state, output in _steps(model, env, B, deterministic):
            if now.shape != facts.shape:
                now, before = np.zeros_like(facts), np.zeros_like(facts)
            shown = event_mask(env, obs)[:B]
            new = shown & ((number < 0) | (facts != now).any(1))
            before, now = np.where(new[:, None], now, before), np.where(new[:, None], facts, now)
            number, since = number + new, np.where(new, 0, since + 1)
            history = np.array([crc32(row.tobytes(), h) if n else h for h, row, n in zip(history.tolist(), facts, new)])
            kept = np.flatnonzero(playing & (number >= 0) & (since <= lags))
            entry = (state, output, since, history, number, now, before)
            parts.append(tuple(each[kept].copy() for each in entry))
    columns = [np.concatenate(column) for column in zip(*parts)]
    return Samples(*columns, names=_facts(env)[0])  # type: ignore[misc, arg-type]


def _steps(model: Any, env: VecEnv, rows: int, deterministic: bool) -> Iterator[tuple]:
    """One wave of episodes, until the last of its first `rows` rows ends.

    Observations of all rows; of the first ones which are playing, the facts, numbers of the state, and the output.
    """
    policy: MemoryActorCriticPolicy = model.policy
    masking, B = is_masking_supported(env), env.num_envs
    obs: Any = env.reset()
    state, start, playing = None, np.ones(B, bool), np.ones(rows, bool)
    step = 0
    while playing.any():
        masks = get_action_masks(env, step) if masking else None
        _, facts = _facts(env)
        tensors = policy.obs_to_tensor(obs)[0]
        before = policy.initial_state(B) if state is None else as_tensors(state, policy.device)
        strategy = greedy_strategy(policy.memory, tensors, B)
        with torch.no_grad():
            look = policy.look(
                tree_map(lambda leaf: leaf.unsqueeze(0), tensors),
                before,
                torch.as_tensor(start).to(policy.device).unsqueeze(0),
                None if strategy is None else strategy.unsqueeze(0),
            )
        own = look.state if policy.shares_memory else look.state[0]
        taken = {} if masks is None else {"action_masks": masks}
        action, state = model.predict(obs, state, start, deterministic, **taken)
        yield obs, playing, facts[:rows], shortened(own, rows), look.latent.actor[0, :rows].cpu().numpy()
        obs, _, start, _ = env.step(action)
        playing = playing & ~start[:rows]
        step += 1


def _facts(env: VecEnv) -> tuple[list[str], np.ndarray]:
    """Names and values [B, n] of the integers of the hidden states."""
    rows = [
        {name: value for name, value in row.items() if name not in NO_FACTS and value.dtype.kind in "biu"}
        for row in env.env_method("hidden_state")
    ]
    names = [
        name if value[0].size == 1 else f"{name}[{i}]" for name, value in rows[0].items() for i in range(value[0].size)
    ]
    flat = [np.concatenate([np.ravel(value) for value in row.values()]) for row in rows]
    return names, np.stack(flat).astype(np.int64)


def shortened(state: tuple, rows: int) -> np.ndarray:
    """The floats of a state's first `rows` rows, [rows, d] with d at most `MOST_NUMBERS`; a 0 where it has none."""
    parts = [part[:rows].flatten(1).float().cpu() for part in state if part.is_floating_point()]
    numbers = torch.cat(parts, 1) if parts else torch.zeros(rows, 1)
    if numbers.shape[1] > MOST_NUMBERS:
        rng, d = np.random.default_rng(0), numbers.shape[1]
        signs, place = (
            torch.tensor(rng.choice([-1.0, 1.0], d)).float(),
            torch.tensor(rng.integers(MOST_NUMBERS, size=d)),
        )
        numbers = torch.zeros(rows, MOST_NUMBERS).index_add_(1, place, numbers * signs)
    return numbers.numpy()


def probe(samples: Samples) -> list[Probed]:
    """Probe the facts that take few values and are not told by the event's number, where there are enough samples."""
    found: list[Probed] = []
    for i, name in enumerate(samples.names):
        if len(found) == MOST_FACTS:
            break
        if not _is_open(samples, samples.facts[:, i]):
            continue
        late, new, old = samples.number > 0, samples.facts[:, i], samples.old_facts[:, i]
        curves = []
        for numbers in (samples.states, samples.outputs):
            curves.append(curve(numbers, new, samples.lags, samples.histories))
            curves.append(curve(numbers[late], old[late], samples.lags[late], samples.histories[late], new[late]))
        if any(len(each.lags) for each in curves):
            found.append(Probed(name, *curves))
    return found


def _is_open(samples: Samples, fact: np.ndarray) -> bool:
    at_event = samples.lags == 0
    values, numbers = fact[at_event], samples.number[at_event]
    if not 2 <= len(np.unique(values)) <= MOST_KINDS:
        return False
    return any(len(np.unique(values[numbers == number])) > 1 for number in np.unique(numbers))


def curve(
    features: np.ndarray, labels: np.ndarray, lags: np.ndarray, histories: np.ndarray, known: np.ndarray | None = None
) -> Curve:
    """Train and test a probe for every lag.

    Args:
        features: [N, d].
        labels: [N] int64, what is to be told from them.
        lags: [N] int64.
        histories: [N] int64; a probe is tested on other ones than it was trained on, with one sample of each.
        known: [N] int64, what the best guess without the memory may know; None for nothing.
    """
    rows = []
    for lag in np.unique(lags):
        here = np.flatnonzero(lags == lag)
        different, first = np.unique(histories[here], return_index=True)
        halves = np.random.default_rng(0).permutation(len(different)) % 2
        train, test = (here[np.sort(first[halves == half])][:MOST_SAMPLES] for half in (0, 1))
        if min(len(train), len(test)) < LEAST_SAMPLES or len(np.unique(labels[train])) < 2:
            continue
        right = predicted(features[train], labels[train], features[test]) == labels[test]
        accuracy = right.mean()
        guess = best_guess(labels[train], labels[test], None if known is None else (known[train], known[test]))
        rows.append((lag, accuracy, np.sqrt(accuracy * (1 - accuracy) / len(test)), guess))
    return Curve(*np.array(rows, float).reshape(-1, 4).T)


def best_guess(train: np.ndarray, test: np.ndarray, known: tuple[np.ndarray, np.ndarray] | None) -> float:
    """Accuracy of the commonest label, or of the commonest one for what is known, on the labels `test`."""
    right: np.ndarray = np.equal(test, _commonest(train))
    if known is not None:
        for value in np.unique(known[1]):
            same = train[known[0] == value]
            if len(same):
                right[known[1] == value] = test[known[1] == value] == _commonest(same)
    return float(right.mean())


def _commonest(labels: np.ndarray) -> int:
    values, counts = np.unique(labels, return_counts=True)
    return int(values[counts.argmax()])


def predicted(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The labels [M] that ridge regression on one-hots, fitted to `train` [N, d] and `labels` [N], gives to `test`."""
    kinds, target = np.unique(labels, return_inverse=True)
    Y = np.eye(len(kinds))[target]
    mean, offset, rng = train.mean(0, dtype=float), Y.mean(0), np.random.default_rng(0)
    scale = float(np.sqrt(train.var(0, dtype=float).mean())) or 1.0
    X, Z = ((each - mean) / scale + NOISE * rng.standard_normal(each.shape) for each in (train, test))
    X, Z = X - X.mean(0), Z - X.mean(0)
    eigenvalues, Q = np.linalg.eigh(X @ X.T)
    eigenvalues = eigenvalues.clip(min=0)
    turned = Q.T @ (Y - offset)
    unit = max(float(eigenvalues.mean()), 1e-12)

    def left_out(penalty: float) -> float:
        kept = eigenvalues / (eigenvalues + penalty * unit)
        residual = Y - offset - Q @ (kept[:, None] * turned)
        # the mean is fitted too, and takes 1 / N of each sample
        own = (np.square(Q) @ kept + 1 / len(Y)).clip(max=1 - 1e-9)
        return float(np.square(residual / (1 - own)[:, None]).sum())

    penalty = min(PENALTIES, key=left_out) * unit
    weights = Q @ (turned / (eigenvalues + penalty)[:, None])
    return kinds[(Z @ (X.T @ weights) + offset).argmax(1)]
