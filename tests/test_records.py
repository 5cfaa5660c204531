"""Our NamedTuple is used as typing's would be, our Value as a frozen dataclass; both answer the same."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import typing
from collections.abc import Callable

import pytest

from casemate import records


class Ours(records.NamedTuple):
    """A record."""

    first: int
    second: str = "two"
    third: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return self.first + sum(self.third)

    @classmethod
    def one(cls) -> typing.Self:
        return cls(1)


class Theirs(typing.NamedTuple):
    """A record."""

    first: int
    second: str = "two"
    third: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return self.first + sum(self.third)

    @classmethod
    def one(cls) -> typing.Self:
        return cls(1)


class Below(Ours):
    """Not a field more, but other behaviour."""

    __slots__ = ()

    def __new__(cls, first: int) -> typing.Self:
        return super().__new__(cls, first, "below")


@pytest.mark.parametrize(
    "use",
    [
        lambda record: tuple(record(1)),
        lambda record: tuple(record(1, third=(2,))),
        lambda record: tuple(record(second="x", first=3)),
        lambda record: record(1, "a", (2, 3)).total,
        lambda record: record.one().second,
        lambda record: record(1)._replace(second="b")._asdict(),
        lambda record: record._make([4, "c", ()]).first,
        lambda record: record._fields,
        lambda record: record._field_defaults,
        lambda record: record.__match_args__,
        lambda record: record.__doc__,
        lambda record: repr(record(1)).partition("(")[2],
        lambda record: (record(1) == record(1), record(1) == (1, "two", ()), hash(record(1))),
        lambda record: sorted([record(2), record(1)])[0].first,
        lambda record: copy.copy(record(5)).first,
        lambda record: pickle.loads(pickle.dumps(record(6))).first,
        lambda record: [*record(7)],
        lambda record: hasattr(record(8), "__dict__"),
    ],
)
def test_record_is_used_as_a_named_tuple(use: Callable[[type], object]) -> None:
    assert use(Ours) == use(Theirs)


@pytest.mark.parametrize(
    "arguments", [((), {}), ((1, "a", (), 4), {}), ((1,), {"first": 2}), ((1,), {"fourth": 2})]
)
def test_wrong_fields_are_refused(arguments: tuple[tuple[object, ...], dict[str, object]]) -> None:
    values, named = arguments
    for record in (Ours, Theirs):
        with pytest.raises(TypeError):
            record(*values, **named)  # type: ignore[arg-type]


def test_fields_cannot_be_set() -> None:
    for record in (Ours(1), Theirs(1)):
        with pytest.raises(AttributeError):
            record.first = 2  # type: ignore[misc]


def test_match_takes_fields_by_position() -> None:
    match Ours(1, "a"):
        case Ours(first, second):
            assert (first, second) == (1, "a")


def test_subclass_may_check_what_it_is_made_of() -> None:
    below = Below(1)
    assert (below.first, below.second, below.total) == (1, "below", 1)
    assert isinstance(below, Ours)


class OurValue(records.Value):
    """A value."""

    first: int
    second: str = "two"

    @property
    def twice(self) -> int:
        return 2 * self.first


class OtherValue(records.Value):
    """Has the same fields."""

    first: int
    second: str = "two"


class NoFields(records.Value):
    """Says all by what it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class TheirValue:
    """A value."""

    first: int
    second: str = "two"

    @property
    def twice(self) -> int:
        return 2 * self.first


@pytest.mark.parametrize(
    "use",
    [
        lambda value: value(1).second,
        lambda value: value(second="x", first=3).twice,
        lambda value: value.__match_args__,
        lambda value: value.__doc__,
        lambda value: repr(value(1)).partition("(")[2],
        lambda value: (
            value(1) == value(1),
            value(1) != value(1),
            value(1) == value(2),
            value(1) != value(2),
        ),
        lambda value: (value(1) == (1, "two"), value(1) == (1, "two"), value(1) != (1, "two")),
        lambda value: (value(1) == OtherValue(1), OtherValue(1) == value(1), value(1) == 1),
        lambda value: {value(1): "a"}[value(1)],
        lambda value: copy.copy(value(5)).first,
        lambda value: pickle.loads(pickle.dumps(value(6))).first,
        lambda value: hasattr(value(8), "__dict__"),
    ],
)
def test_value_is_used_as_a_frozen_dataclass(use: Callable[[type], object]) -> None:
    assert use(OurValue) == use(TheirValue)


@pytest.mark.parametrize(
    "arguments", [((), {}), ((1, "a", 4), {}), ((1,), {"first": 2}), ((1,), {"third": 2})]
)
def test_wrong_fields_of_a_value_are_refused(
    arguments: tuple[tuple[object, ...], dict[str, object]],
) -> None:
    values, named = arguments
    for value in (OurValue, TheirValue):
        with pytest.raises(TypeError):
            value(*values, **named)  # type: ignore[arg-type]


def test_fields_of_a_value_cannot_be_set() -> None:
    for value in (OurValue(1), TheirValue(1)):
        with pytest.raises(AttributeError):
            value.first = 2  # type: ignore[misc]


def test_value_without_fields_is_true_and_equals_its_own_kind() -> None:
    assert NoFields()
    assert NoFields() == NoFields()
    nothing: object = ()
    assert NoFields() != nothing
    match NoFields():
        case NoFields():
            pass


def test_changed_value_is_a_new_one() -> None:
    value = OurValue(1)
    assert (value._replace(second="b"), value) == (OurValue(1, "b"), OurValue(1))
