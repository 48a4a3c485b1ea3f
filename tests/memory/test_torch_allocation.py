"""One step of allocation by torch's operations chooses the slots that the compiled loop chooses."""

import numpy as np
import pytest
import torch

from palimpsest.memory.parts.allocation import BY_ATTENTION, Slots, allocate, allocate_step

S, P, B, T = 6, 3, 4, 40


@pytest.mark.parametrize(
    ("strategy", "by_place"), [*((index, False) for index in range(BY_ATTENTION)), (0, True), (1, True)]
)
def test_a_step_is_one_of_the_loop(strategy, by_place):
    rng = np.random.default_rng(0)
    shape = (B, S)
    slots = Slots(
        np.full(shape, -1),
        np.zeros(shape, int),
        np.zeros((B, P), int),
        *(np.zeros(B, int) for _ in range(2)),
        *(np.zeros(shape, int) for _ in range(2)),
    )
    chosen = np.full((1, B), strategy)
    for _ in range(T):
        # not all places are visited alike
        place = rng.choice(P, size=(1, B), p=[0.6, 0.3, 0.1])
        given = tuple(torch.from_numpy(part.copy()) for part in slots[:5])
        found, slot, now = allocate_step(given, torch.from_numpy(place[0]), torch.from_numpy(chosen[0]), by_place)
        expected_slot, expected_now = allocate(slots, place, np.zeros((1, B), bool), chosen, by_place)
        np.testing.assert_array_equal(slot, expected_slot[0])
        np.testing.assert_array_equal(now, expected_now[0])
        for part, expected in zip(found, slots[:5], strict=True):
            np.testing.assert_array_equal(part, expected)
