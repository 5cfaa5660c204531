"""The file of a matrix, TOML 1.0, as cells to run and what is expected of them (docs/guide/matrix.md)."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casemate.errors import SpecError
from casemate.files import read_text
from casemate.matrix.settings import DEFAULTS, SETTINGS, absolute, check_settings, nearest

MAX_CELLS = 1_000_000
_TABLES = ("name", "settings", "axes", "exclude", "include", "expect")
_EXPECTED = {
    "outcome": "a text or a list of texts",
    "protection": "a text or a list of texts",
    "digest": "a text in hex",
    "warnings": "the number of warnings at most",
    "violations": "the number of violations at most",
    "findings": "a list of the lint rules that may be broken",
    "conformance": "'kept'",
    "seconds": "a number of seconds at most",
    "slower": "{ than = { AXIS = VALUE }, times = NUMBER }",
}

Value = str | int | float | bool
Place = dict[str, Value]
"""Where a cell is: its value on each axis, in the order of the file."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is expected of the cells at some values of some axes."""

    where: dict[str, list[Value]]
    wanted: dict[str, Any]

    def is_about(self, place: Place) -> bool:
        """Whether a cell is one of them."""
        return is_at(place, self.where)


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination: where it is, what is done, and what is expected."""

    place: Place
    settings: dict[str, Any]
    wanted: dict[str, Any] = field(default_factory=dict)
    extra: str = ""
    """What an include says beside its place."""

    @property
    def name(self) -> str:
        """Its values in the order of the axes; unique within a matrix."""
        return " ".join(str(value) for value in self.place.values()) + self.extra

    @property
    def is_timed(self) -> bool:
        """Whether somebody expects something of its duration."""
        return "seconds" in self.wanted or "slower" in self.wanted


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a file says."""

    name: str
    axes: dict[str, list[Value]]
    cells: list[Cell]


def is_at(place: Place, where: Mapping[str, list[Value]]) -> bool:
    """Whether a place has one of the values of each axis that ``where`` names."""
    return all(place[axis] in values for axis, values in where.items())


def load_matrix(path: Path) -> Matrix:
    """Read a matrix. Raises ImageError, or SpecError that names the file and what in it is wrong."""
    text = read_text(path, "name the TOML file of a matrix")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: {error}", "correct the TOML") from None
    return _Reader(path, document).read()


class _Reader:
    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self._path = path
        self._document = document
        self._folder = path.absolute().parent
        self._values: dict[str, dict[Value, dict[str, Any]]] = {}

    def read(self) -> Matrix:
        self._known(self._document, _TABLES, "table")
        name = self._document.get("name", self._path.stem)
        if not isinstance(name, str):
            raise SpecError(f"{self._path}: name = {name!r}", "give a text")
        always = DEFAULTS | self._settings(self._table("settings"), "[settings]")
        for axis, values in self._table("axes").items():
            self._values[axis] = self._axis(axis, values)
        if not self._values:
            raise SpecError(f"{self._path}: there are no axes", "give at least one in [axes]")
        expectations = list(self._expectations())
        cells: dict[str, Cell] = {}
        for cell in self._cells(always):
            wanted: dict[str, Any] = {}
            for each in expectations:
                if each.is_about(cell.place):
                    wanted |= each.wanted
            if cell.name in cells:
                raise SpecError(f"{self._path}: the cell {cell.name!r} is there twice", "drop the include")
            self._complete(cell)
            cells[cell.name] = Cell(cell.place, cell.settings, wanted, cell.extra)
        if not cells:
            raise SpecError(f"{self._path}: every cell is excluded", "exclude fewer")
        return Matrix(
            name, {axis: list(values) for axis, values in self._values.items()}, list(cells.values())
        )

    def _cells(self, always: dict[str, Any]) -> Iterator[Cell]:
        size = 1
        for values in self._values.values():
            size *= len(values)
        if size > MAX_CELLS:
            raise SpecError(f"{self._path}: {size:,} cells", f"{MAX_CELLS:,} are the most; split the matrix")
        excludes = [self._where(table, "[[exclude]]") for table in self._tables("exclude")]
        for chosen in itertools.product(*self._values.values()):
            place = dict(zip(self._values, chosen, strict=True))
            if not any(is_at(place, where) for where in excludes):
                yield Cell(place, always | self._at(place))
        for table in self._tables("include"):
            extra = table.pop("set", {})
            if not isinstance(extra, dict):
                raise SpecError(f"{self._path}: [[include]] set = {extra!r}", "give a table of settings")
            where = self._where(table, "[[include]]")
            if missing := self._values.keys() - where.keys():
                raise SpecError(
                    f"{self._path}: [[include]] without {min(missing)}", "name a value of every axis"
                )
            added = self._settings(extra, "[[include]] set")
            words = "".join(f" {name}={value}" for name, value in extra.items())
            for chosen in itertools.product(*(where[axis] for axis in self._values)):
                place = dict(zip(self._values, chosen, strict=True))
                yield Cell(place, always | self._at(place) | added, extra=words)

    def _at(self, place: Place) -> dict[str, Any]:
        return {
            name: setting
            for axis, value in place.items()
            for name, setting in self._values[axis][value].items()
        }

    def _axis(self, axis: str, values: Any) -> dict[Value, dict[str, Any]]:
        where = f"[axes] {axis}"
        if isinstance(values, dict) and values:
            found: dict[Value, dict[str, Any]] = {}
            for name, table in values.items():
                if not isinstance(table, dict):
                    raise SpecError(f"{self._path}: {where}.{name} = {table!r}", "give a table of settings")
                found[name] = self._settings(table, f"{where}.{name}")
            return found
        if not isinstance(values, list) or not values:
            raise SpecError(f"{self._path}: {where} has no values", "give a list, or tables of settings")
        if axis not in SETTINGS:
            raise SpecError(f"{self._path}: {where}: no such setting", nearest(axis, SETTINGS))
        for value in values:
            if not isinstance(value, (str, int, float, bool)):
                raise SpecError(
                    f"{self._path}: {where}: {value!r} has no name", f"give it one: [axes.{axis}.NAME]"
                )
        if len(set(values)) < len(values):
            raise SpecError(f"{self._path}: {where}: a value is there twice", "give each one once")
        return {value: self._settings({axis: value}, where) for value in values}

    def _expectations(self) -> Iterator[Expectation]:
        for table in self._tables("expect"):
            where = table.pop("where", {})
            if not isinstance(where, dict):
                raise SpecError(f"{self._path}: [[expect]] where = {where!r}", "give a table of axes")
            self._known(table, _EXPECTED, "expectation in [[expect]]")
            for name, value in table.items():
                if not self._is_expectation(name, value):
                    raise SpecError(
                        f"{self._path}: [[expect]] {name} = {value!r}", f"it must be {_EXPECTED[name]}"
                    )
            if "slower" in table:
                baseline = self._where(table["slower"]["than"], "[[expect]] slower.than")
                table["slower"] = {"than": baseline, "times": table["slower"]["times"]}
            yield Expectation(self._where(where, "[[expect]] where"), table)

    @staticmethod
    def _is_expectation(name: str, value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
        match name:
            case "outcome" | "protection" | "findings":
                texts = [value] if isinstance(value, str) and name != "findings" else value
                return isinstance(texts, list) and all(isinstance(text, str) for text in texts)
            case "digest":
                return isinstance(value, str) and value.strip("0123456789abcdef") == ""
            case "warnings" | "violations":
                return is_number and isinstance(value, int)
            case "conformance":
                return bool(value == "kept")
            case "seconds":
                return is_number
        if not isinstance(value, dict) or value.keys() != {"than", "times"}:
            return False
        return isinstance(value["than"], dict) and isinstance(value["times"], (int, float))

    def _where(self, table: Mapping[str, Any], what: str) -> dict[str, list[Value]]:
        found = {}
        for axis, value in table.items():
            if axis not in self._values:
                raise SpecError(f"{self._path}: {what}: no axis {axis!r}", nearest(axis, self._values))
            found[axis] = value if isinstance(value, list) else [value]
            for one in found[axis]:
                if isinstance(one, (list, dict)) or one not in self._values[axis]:
                    remedy = nearest(str(one), map(str, self._values[axis]))
                    raise SpecError(f"{self._path}: {what}: {axis} has no {one!r}", remedy)
        return found

    def _complete(self, cell: Cell) -> None:
        settings, works = cell.settings, cell.settings["work"]
        remedy, has_firmware = "", any(name in settings for name in ("code", "bios", "kernel", "vmm"))
        if {"boot", "conform"} & set(works) and not has_firmware:
            remedy = "give code, bios, kernel or vmm"
        elif "measure" in works and not {"code", "bios"} & settings.keys():
            remedy = "give the image to measure as code or bios"
        elif "lint" in works and "command" not in settings:
            remedy = "give QEMU's command line as command = [...]"
        elif "power-cuts" in works and not {"code", "variables"} <= settings.keys():
            remedy = "give code and variables, whose writes are cut"
        elif "power-cuts" in works and settings["kind"] != "plain":
            remedy = "power is cut for plain guests alone"
        elif "fuzz" in works and "fuzz" not in settings:
            remedy = "name a target: fuzz = 'flash'"
        if remedy:
            raise SpecError(f"{self._path}: the cell {cell.name!r} cannot do {', '.join(works)}", remedy)

    def _settings(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        return absolute(check_settings(table, f"{self._path}: {where}"), self._folder)

    def _known(self, table: Mapping[str, Any], names: Any, what: str) -> None:
        for name in table:
            if name not in names:
                raise SpecError(f"{self._path}: unknown {what} {name!r}", nearest(name, names))

    def _table(self, name: str) -> dict[str, Any]:
        table = self._document.get(name, {})
        if not isinstance(table, dict):
            raise SpecError(f"{self._path}: {name} = {table!r}", f"write a table: [{name}]")
        return table

    def _tables(self, name: str) -> list[dict[str, Any]]:
        tables = self._document.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise SpecError(f"{self._path}: {name} = {tables!r}", f"write tables: [[{name}]]")
        return [dict(table) for table in tables]
