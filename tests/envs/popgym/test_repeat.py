"""RepeatPrevious, RepeatFirst and Autoencode: equal to the package, perfect play returns 1, guesses stay at chance."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same_episodes, assert_same_spaces, ours, presets, won

CASES = [*presets("RepeatPrevious"), *presets("RepeatFirst"), *presets("Autoencode")]


def copy(env):
    """Their deck is dealt from its end; in Autoencode the hand is a stack."""
    return {"deck": env.deck.suits_idx[env.deck.idx[::-1]]}


@pytest.mark.parametrize(("game", "level"), CASES)
def test_equals_the_package(game, level):
    assert_same_spaces(game, level)
    steps = ours(game, level).rules.limit
    returns = assert_same_episodes(game, level, copy, episodes=max(40, 24_000 // steps))
    assert np.allclose(returns[3::4], 1, rtol=0, atol=1e-12)
    assert np.mean(returns[::4]) == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize(("game", "level"), CASES)
def test_the_expert_is_perfect(game, level):
    assert won(ours(game, level), lambda world, obs: world.expert(), 16) == (1, pytest.approx(1))


def test_the_same_answer_all_along_wins_a_quarter_of_the_first_cards():
    world = ours("RepeatFirst", "Easy")
    success, mean = won(world, lambda world, obs: np.zeros(len(obs), int), 4000)
    assert success == pytest.approx(world.chance_level(), abs=0.03)
    assert mean == pytest.approx(-0.5, abs=0.05)


def test_guesses_win_nothing_where_answers_differ():
    rng = np.random.default_rng(0)
    for game in ("RepeatPrevious", "Autoencode"):
        world = ours(game, "Easy")
        assert world.chance_level() < 1e-20
        assert won(world, lambda world, obs: rng.integers(4, size=len(obs)), 500)[0] == 0


@pytest.mark.parametrize(("k", "chance"), [(51, 13 / 51), (50, 1 / 16)])
def test_another_suit_than_the_one_in_sight_is_likelier(k, chance):
    """Of a single answer that is the chance level; of two it is a little more than the guesses that are declared."""
    world, rng = ours("RepeatPrevious", "Easy", k=k), np.random.default_rng(0)
    assert world.chance_level() == pytest.approx(chance)
    another = won(world, lambda world, obs: (obs.argmax(1) + rng.integers(1, 4, len(obs))) % 4, 20_000, k=k)[0]
    assert another == pytest.approx((13 / 51) ** (52 - k), abs=0.01)


def test_one_input_back_needs_no_memory():
    world = ours("RepeatPrevious", "Easy", k=1)
    assert world.chance_level() == 1
    obs, _ = world.reset(seed=0)
    rewards, over = [], False
    while not over:
        obs, reward, over, _, info = world.step(obs.argmax())
        rewards.append(reward)
    assert len(rewards) == 51
    assert sum(rewards) == pytest.approx(1)
    assert info == {"success": True, "is_success": True}


@pytest.mark.parametrize("game", ["RepeatPrevious", "RepeatFirst", "Autoencode"])
def test_horizons_are_the_distances_from_cards_to_answers(game):
    world = ours(game, "Easy")
    world.reset(seed=0)
    found, over = set(), False
    while not over:
        asked = int(world.asked()[0])
        if asked >= 0:
            found.add(int(world.state.steps[0]) - asked + 1)
        *_, over, _, _ = world.step(world.expert_action())
    assert world.memory_horizons() == tuple(sorted(found))


def test_every_order_of_cards_is_equally_likely():
    world = ours("RepeatFirst", "Easy")
    world.allocate(20_000)
    world.begin(np.ones(20_000, bool), range(20_000), lambda: np.random.default_rng(0), None)
    deck = world.state.deck
    for suit in range(4):
        assert ((deck == suit).sum(1) == 13).all()
        assert np.abs((deck == suit).mean(0) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 20_000)
    # neighbours, the first and the last card: of one suit with 12 chances in 51
    for a, b in [(k, k + 1) for k in range(51)] + [(0, 51), (25, 51)]:
        assert (deck[:, a] == deck[:, b]).mean() == pytest.approx(12 / 51, abs=5 * np.sqrt(0.18 / 20_000))
