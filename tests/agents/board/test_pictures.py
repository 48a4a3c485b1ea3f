"""Pictures for TensorBoard show the numbers that they are given."""

from __future__ import annotations

import numpy as np

from palimpsest.agents.board.pictures import INNER, MARGIN, TITLE, WIDTH, Bars, Map, curve, drawn, heads, limits
from palimpsest.agents.drawing import FRAME, LINE_COLOUR, MARKED, colour_table


def painted(picture: np.ndarray, colour) -> np.ndarray:
    return (picture == np.array(colour)).all(-1)


def test_limits_hold_all_numbers():
    assert limits(np.array([0.0, 2.0])) == (0.0, 2.0)
    assert limits(np.array([-1.0, 3.0, np.nan])) == (-3.0, 3.0)
    assert limits(np.array([0.9, 1.0])) == (0.9, 1.0), "what differs little is shown"
    assert limits(np.array([5.0, 5.0])) == (5.0, 6.0)
    assert limits(np.full(3, np.nan)) == limits(np.zeros(2)) == (0.0, 1.0)


def test_a_map_has_a_cell_for_every_number_and_marks_columns():
    values = np.array([[0.0, 1.0], [np.nan, 0.5]])
    picture = drawn([Map("t", values, "steps", np.array([False, True]))])
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (WIDTH, 3)
    upper, lower, left, right = MARGIN + TITLE + 20, MARGIN + TITLE + 45, MARGIN + 50, MARGIN + INNER - 50
    assert (picture[upper, left] == colour_table(False)[0]).all()
    assert (picture[upper, right] == colour_table(False)[255]).all()
    assert (picture[lower, left] == FRAME).all()
    assert (picture[lower, right] == colour_table(False)[127]).all()
    rows, columns = np.nonzero(painted(picture, MARKED)[: MARGIN + TITLE])
    assert len(rows)
    assert columns.min() > MARGIN + INNER // 2


def test_bars_are_as_long_as_numbers():
    picture = drawn([Bars("t", np.array([1.0, 0.5, np.inf, 0.0]))])
    columns = painted(picture, LINE_COLOUR).sum(0)
    tall, short, none, zero = (columns[MARGIN + int((i + 0.5) * INNER / 4)] for i in range(4))
    assert tall > 80
    assert abs(short - tall / 2) < 3
    assert none == 0
    assert zero <= 1


def test_several_parts_are_under_each_other():
    part = Bars("t", np.arange(3.0))
    one, two = (drawn([part] * count) for count in (1, 2))
    assert two.shape[0] == 2 * one.shape[0] - MARGIN


def test_heads_have_a_map_each():
    weights = np.stack([np.tri(8) * sign for sign in (1, -2, 1, 1, 1)])
    picture = heads(weights, np.zeros(8, bool), "steps")
    assert picture.shape[1] == WIDTH
    assert painted(picture, colour_table(True)[255])[:200].any()
    assert painted(picture, colour_table(True)[0])[:200].any(), "a negative weight is blue"
    assert painted(picture, colour_table(True)[255])[260:].any(), "the fifth head is in the second line"


def test_a_curve_shows_the_last_evaluation_over_the_earlier_ones():
    def kinds(*successes):
        return {str(i): dict(success=value, success_se=0.05, answers=10) for i, value in enumerate(successes)}

    one = curve("overwrites", [(100, kinds(1.0, 1.0))])
    fell = curve("overwrites", [(100, kinds(1.0, 1.0)), (200, kinds(1.0, 0.0))])
    half = WIDTH // 2
    above, below = (np.nonzero(painted(picture, LINE_COLOUR)[:, half:])[0].max() for picture in (one, fell))
    assert below > above + 100
    assert painted(fell, (170, 170, 170)).sum() != painted(one, (170, 170, 170)).sum()
    many = curve("age", [(1, {str(i): dict(success=0.5, success_se=0.0, answers=1) for i in range(60)})])
    assert many.shape == one.shape
