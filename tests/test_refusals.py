"""Refusals of arguments: one wording, NumPy's scalars as Python's, and a truth value is never a number."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys

import numpy as np
import pytest

from palimpsest import refusals
from palimpsest.refusals import (
    FLAG,
    NAMED,
    STRING,
    above,
    check,
    check_above,
    check_choice,
    check_divides,
    check_flag,
    check_integer,
    check_keys,
    check_number,
    choice,
    closest,
    integer,
    is_integer,
    is_number,
    keywords,
    number,
    optional,
    shown,
)

NO_NUMBERS = [None, "1", b"1", [1], True, False, np.True_, math.nan, np.float64("nan"), 1j, np.complex64(1), object]
INTEGERS = [3, np.int8(3), np.int64(3), np.uint8(3)]
FLOATS = [0.5, np.float32(0.5), np.float64(0.5), np.float16(0.5)]


@pytest.mark.parametrize(
    "value", [*NO_NUMBERS, 3.0, np.float32(3), 0, 9, -(10**30), 10**5000, np.uint64(2**63)], ids=shown
)
def test_what_is_no_integer_from_1_to_8(value):
    assert not is_integer(value, 1, 8)
    with pytest.raises(ValueError, match=r"^size must be an integer, 1 to 8; got ") as caught:
        check_integer("size", value, 1, 8)
    assert str(caught.value).endswith(f"got {shown(value)}")


@pytest.mark.parametrize(
    "value", [*NO_NUMBERS, "0.5", -1e-9, 2, 10**400, -math.inf, math.inf, np.float32(1.5)], ids=shown
)
def test_what_is_no_number_from_0_to_1(value):
    assert not is_number(value, 0, 1)
    with pytest.raises(ValueError, match=r"^share must be a number, 0 to 1; got "):
        check_number("share", value, 0, 1)


@pytest.mark.parametrize("value", INTEGERS, ids=lambda value: type(value).__name__)
def test_integers_come_back_as_int(value):
    assert type(check_integer("n", value, 3, 3)) is int
    assert check_integer("n", value, 1) == 3
    assert type(check_number("n", value, 0)) is float
    assert check_number("n", value, 0) == 3.0


@pytest.mark.parametrize("value", [*FLOATS, 0, 1, np.int64(1)], ids=lambda value: type(value).__name__)
def test_numbers_come_back_as_float(value):
    assert type(check_number("x", value, 0, 1)) is float
    assert check_number("x", value, 0, 1) == float(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 10**400, -(10**400), np.float32("inf")], ids=shown)
def test_a_number_is_finite_whatever_its_range(value):
    assert not is_number(value)
    with pytest.raises(ValueError, match="x must be a number, 0 or more; got"):
        check_number("x", value, 0)


def test_above_leaves_out_its_bound():
    assert check_above("x", np.nextafter(1, 2), 1) > 1
    for value in (1, 1.0, 0.5, math.inf, math.nan, True, None):
        with pytest.raises(ValueError, match=r"x must be a number above 1; got"):
            check_above("x", value, 1)


@pytest.mark.parametrize(
    "value", [True, False, np.True_, np.False_], ids=lambda value: f"{type(value).__name__}-{value}"
)
def test_truth_values_come_back_as_bool(value):
    assert check_flag("on", value) is bool(value)


@pytest.mark.parametrize("value", [0, 1, None, "True", 1.0, [], np.int64(1)], ids=shown)
def test_what_is_no_truth_value(value):
    with pytest.raises(ValueError, match="on must be True or False; got"):
        check_flag("on", value)


def test_a_choice_names_the_closest():
    assert check_choice("regime", "fixed", ("fixed", "uniform")) == "fixed"
    with pytest.raises(
        ValueError, match=r"^regime must be one of 'fixed', 'uniform'; got 'Unifrom' \(did you mean 'uniform'\?\)$"
    ):
        check_choice("regime", "Unifrom", ("fixed", "uniform"))
    for value in (None, 3, ["fixed"], np.array(["fixed", "fixed"]), "zzz"):
        with pytest.raises(ValueError, match="one of 'fixed', 'uniform'; got ") as caught:
            check_choice("regime", value, iter(["fixed", "uniform"]))
        assert "did you mean" not in str(caught.value)


def test_what_does_not_divide_is_told_what_does():
    for part in (1, 2, 3, 6):
        check_divides("heads", part, "width", 6)
    with pytest.raises(ValueError, match=r"^heads must be a divisor of width=6, such as 1, 2, 3, 6; got 4$"):
        check_divides("heads", 4, "width", 6)
    with pytest.raises(
        ValueError, match=r"heads must be a divisor of width=1048576, such as 1, 2, 4, 8, 16, 32, 64; got 3"
    ):
        check_divides("heads", 3, "width", 1 << 20)


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (integer(0), "an integer, 0 to 1,048,576"),
        (integer(-1, math.inf), "an integer, -1 or more"),
        (number(0), "a number, 0 or more"),
        (number(0, 10**6), "a number, 0 to 1,000,000"),
        (number(-0.5, 1e-9), "a number, -0.5 to 1e-09"),
        (above(0), "a number above 0"),
        (choice(["a", "b"]), "one of 'a', 'b'"),
        (optional(integer(1, 3)), "an integer, 1 to 3, or None"),
        (optional(FLAG), "True or False, or None"),
        (STRING, "a string"),
        (NAMED, "a dict of arguments by name"),
    ],
)
def test_each_kind_has_one_wording(allowed, words):
    with pytest.raises(ValueError, match="name must be") as caught:
        check("name", b"", allowed)
    assert str(caught.value) == f"name must be {words}; got b''"


def test_what_may_be_left_out_may_be_none():
    check("n", None, optional(integer(1)))
    check("n", 1, optional(integer(1)))
    with pytest.raises(ValueError, match=r"one of 'gru', or None; got 'gur' \(did you mean 'gru'\?\)"):
        check("memory", "gur", optional(choice(["gru"])))


def test_names_are_strings():
    check("args", {"a": 1}, NAMED)
    check("args", {}, NAMED)
    for value in ({1: 2}, {None: 1}, [("a", 1)], "a=1", None):
        with pytest.raises(ValueError, match="args must be a dict of arguments by name; got"):
            check("args", value, NAMED)


class Broken:
    def __repr__(self):
        raise KeyError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb", "'a\\nb'"),
        (np.array([[1, 2], [3, 4]]), "array([[1, 2], [3, 4]])"),
        (10**5000, "something of type int"),
        (Broken(), "something of type Broken"),
        ("x" * 1000, "'" + "x" * 499 + "..."),
    ],
    ids=["newline", "array", "digits", "broken", "long"],
)
def test_a_value_is_shown_in_one_short_line(value, text):
    assert shown(value) == text


class Room:
    def __init__(self, width: int = 3, *rest: int, height: int = 4, render_mode: str | None = None) -> None:
        pass


def anything(width: int = 3, **others: int) -> None:
    pass


def test_keys_are_the_parameters_that_a_keyword_reaches():
    assert list(keywords(Room)) == ["width", "height", "render_mode"]
    assert list(keywords(Room, skip={"width"}, extra={"depth": 5})) == ["depth", "height", "render_mode"]
    assert keywords(Room, extra={"depth": 5})["depth"].default == 5
    assert keywords(anything)["width"] == inspect.signature(anything).parameters["width"]


def test_unknown_keys_are_refused_with_the_closest():
    check_keys("room", ["width", "height"], Room)
    check_keys("room", ["width", "depth"], Room, extra={"depth": 5})
    check_keys("room", ["width", "what"], anything)
    check_keys("room", [], print)
    with pytest.raises(
        ValueError,
        match=r"^room has no argument 'HEIHGT' \(did you mean 'height'\?\); allowed: width, height, render_mode$",
    ):
        check_keys("room", ["width", "HEIHGT"], Room)
    for target in (Room, anything):
        with pytest.raises(ValueError, match="room has no argument 'width'"):
            check_keys("room", ["width"], target, skip={"width"})
    with pytest.raises(ValueError, match="room has no argument 'rest'"):
        check_keys("room", ["rest"], Room)
    with pytest.raises(ValueError, match="nothing has no argument 'a'; allowed: none"):
        check_keys("nothing", ["a"], lambda: None)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lstn", " (did you mean 'LSTM'?)"), ("lstm", " (did you mean 'LSTM'?)"), ("xyzzy", ""), (3, ""), (None, "")],
)
def test_the_closest_name_is_found_in_any_case(name, hint):
    assert closest(name, ["LSTM", "GRU"]) == hint


def test_the_ground_imports_neither_torch_nor_gymnasium_nor_the_package():
    program = (
        f"import importlib.util as u, sys; spec = u.spec_from_file_location('refusals', {refusals.__file__!r}); "
        "spec.loader.exec_module(u.module_from_spec(spec)); "
        "print([m for m in ('torch', 'gymnasium', 'palimpsest', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
