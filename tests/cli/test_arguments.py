"""KEY=VALUE texts become what the constructor's annotations say, or one line that tells what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Optional

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.agents.run.key_values import parse_key_values
from palimpsest.refusals import check_keys

if TYPE_CHECKING:
    from nowhere import Unknown


class World:
    def __init__(
        self,
        corridors: int = 5,
        rate: float = 0.5,
        regime: Literal["fixed", "uniform"] = "fixed",
        sizes: tuple[int, ...] = (),
        pair: tuple[int, float] = (1, 1.0),
        layers: list[int] | None = None,
        either: int | str = 1,
        limit: Optional[int] = None,  # noqa: UP045  the older spelling is read too
        flag: bool = False,
        mode: Literal[1, 2] | None = None,
        label: str = "",
        anything: Any = None,
        render_mode: str | None = None,
    ):
        pass


def foreign(size=8, gravity=10.0, slippery=True, name="a", shape=None, *rest, **others):
    pass


def half_known(known: int = 1, unknown: Unknown | None = None):
    pass


GOOD = [
    ("corridors=10", 10),
    ("corridors=-3", -3),
    ("corridors=1_000", 1000),
    ("corridors=1e3", 1000),
    ("corridors=2.5e3", 2500),
    ("rate=1", 1.0),
    ("rate=1e-3", 0.001),
    ("regime=uniform", "uniform"),
    ("sizes=1,2,3", (1, 2, 3)),
    ("sizes=[1, 2]", (1, 2)),
    ("sizes=(4,)", (4,)),
    ("sizes=", ()),
    ("pair=2,0.5", (2, 0.5)),
    ("layers=64,64", [64, 64]),
    ("layers=none", None),
    ("either=3", 3),
    ("either=x", "x"),
    ("limit=None", None),
    ("limit=7", 7),
    ("flag=true", True),
    ("flag=No", False),
    ("flag=1", True),
    ("flag=0", False),
    ("mode=2", 2),
    ("mode=null", None),
    ("label=a=b", "a=b"),
    ("label=none", "none"),
    ("label=1", "1"),
    ('anything={"a": [1]}', {"a": [1]}),
    ("anything=word", "word"),
    ("anything=True", True),
]


@pytest.mark.parametrize(("pair", "value"), GOOD, ids=[pair for pair, _ in GOOD])
def test_values_are_read_as_annotated(pair, value):
    ((_, found),) = parse_key_values([pair], World).items()
    assert found == value
    assert type(found) is type(value)


FOREIGN = [
    ("size=9", 9),
    ("size=9.5", 9.5),
    ("gravity=9", 9.0),
    ("slippery=no", False),
    ("name=5", "5"),
    ("shape=[1, 2]", [1, 2]),
    ("max_steps=5", 5),
    ("map=SFFG", "SFFG"),
    ("deep=false", False),
]


@pytest.mark.parametrize(("pair", "value"), FOREIGN, ids=[pair for pair, _ in FOREIGN])
def test_without_annotations_the_default_tells_the_type(pair, value):
    ((_, found),) = parse_key_values([pair], foreign).items()
    assert found == value
    assert type(found) is type(value)


def test_annotations_that_cannot_be_resolved_are_left_to_the_default():
    assert parse_key_values(["known=3", "unknown=4"], half_known) == {"known": 3, "unknown": 4}


def test_a_registration_may_name_further_keys():
    def made(**kwargs):
        pass

    assert parse_key_values(["size=5", "fast=no"], made, extra={"size": 13, "fast": True}) == {"size": 5, "fast": False}


BAD = [
    (["corridors"], "KEY=VALUE.*'corridors'"),
    (["=3"], "KEY=VALUE.*'=3'"),
    (["corridors =3"], "without spaces"),
    ([""], "KEY=VALUE"),
    (["corridors=1", "corridors=2"], "twice, as '1' and '2'"),
    (["coridors=1"], "no argument 'coridors' .did you mean 'corridors'.*allowed: corridors, rate"),
    (["CORRIDORS=1"], "did you mean 'corridors'"),
    (["zzz=1"], "no argument 'zzz'; allowed"),
    (["render_mode=human"], "no argument 'render_mode'"),
    (["self=1"], "no argument 'self'"),
    (["corridors=ten"], "'corridors' of World must be an integer; got 'ten'"),
    (["corridors=1.5"], "must be an integer; got '1.5'"),
    (["corridors=1.55e1"], "must be an integer; got '1.55e1'"),
    (["corridors=1e999"], "must be an integer; got '1e999'"),
    (["corridors="], "must be an integer; got ''"),
    (["corridors=true"], "must be an integer"),
    (["rate=fast"], "must be a number; got 'fast'"),
    (["flag=2"], "must be True or False; got '2'"),
    (["regime=unifrom"], "one of 'fixed', 'uniform'; got 'unifrom' .did you mean 'uniform'"),
    (["mode=3"], "one of 1, 2 or None; got '3'"),
    (["limit=x"], "an integer or None; got 'x'"),
    (["sizes=1,x"], "separated by commas, each an integer; got '1,x'"),
    (["pair=1"], "2 values separated by commas; got '1'"),
    (["corridors=__import__('os')"], "must be an integer"),
]


@pytest.mark.parametrize(("pairs", "message"), BAD, ids=[" ".join(pairs) for pairs, _ in BAD])
def test_what_does_not_fit_is_refused_in_one_line(pairs, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_key_values(pairs, World, skip={"render_mode"})
    assert "\n" not in str(caught.value)


def test_skipped_keys_are_refused_where_others_are_taken_unseen():
    with pytest.raises(ValueError, match="'render_mode'"):
        parse_key_values(["render_mode=x"], foreign, skip={"render_mode"})


def test_keys_that_come_from_a_file_are_checked_alike():
    check_keys("world 7", ["corridors", "rate"], World)
    with pytest.raises(ValueError, match=r"world 7 has no argument 'rat' .did you mean 'rate'"):
        check_keys("world 7", ["corridors", "rat"], World)


@given(st.integers(), st.floats(allow_nan=False), st.booleans(), st.text().filter(lambda text: text.strip() == text))
def test_what_python_prints_is_read_back(number, rate, flag, label):
    pairs = [f"corridors={number}", f"rate={rate!r}", f"flag={flag}", f"label={label}", f"sizes={(number, 2)}"]
    expected = {"corridors": number, "rate": rate, "flag": flag, "label": label, "sizes": (number, 2)}
    assert parse_key_values(pairs, World) == expected


@given(st.lists(st.text(), max_size=3))
def test_any_texts_are_read_or_refused(pairs):
    try:
        assert set(parse_key_values(pairs, World)) <= {pair.partition("=")[0] for pair in pairs}
    except ValueError as error:
        assert str(error)  # noqa: PT017


def test_a_gymnasium_environment_of_others():
    spec = gymnasium.spec("FrozenLake-v1")
    creator = gymnasium.envs.registration.load_env_creator(spec.entry_point)
    assert parse_key_values(["is_slippery=no", "map_name=8x8"], creator) == {"is_slippery": False, "map_name": "8x8"}
