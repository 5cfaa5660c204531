"""QEMU's CPU models and its names of CPUID's features (QEMU 11.1's ``query-cpu-model-expansion``).

``cpu_models.json`` is what it said; ``python -m tools.cpu_models`` asks it anew.
``CpuChoice`` is the value of ``--cpu`` in QEMU's spelling.
"""

import difflib
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from casemate.abi.x86.signature import signature_of
from casemate.errors import SpecError

_TABLE = Path(__file__).with_name("cpu_models.json")
_OTHER_NAMES = {"sse3": "pni", "xd": "nx", "i64": "lm", "ffxsr": "fxsr-opt", "pclmuldq": "pclmulqdq"}
LEAST_PHYS_BITS, MOST_PHYS_BITS = 40, 52
MAX = "max"
"""The model that has all that can be executed; its name and numbers are those of ``MAX_LIKE``."""
MAX_LIKE = "Icelake-Server"


class FeatureBit(NamedTuple):
    """Where CPUID shows a feature: ``word`` is leaf, subleaf if not 0, and register, as ``7.ebx`` or ``d.1.eax``."""

    word: str
    bit: int


class CpuModel(NamedTuple):
    """A processor as QEMU describes it; ``level`` and ``xlevel`` are its highest leaves."""

    name: str
    vendor: str
    family: int
    model: int
    stepping: int
    model_id: str
    level: int
    xlevel: int
    features: frozenset[str]

    @property
    def signature(self) -> int:
        """CPUID leaf 1, EAX."""
        return signature_of(self.family, self.model, self.stepping)


class CpuChoice(NamedTuple):
    """A model, and the features that it is to have and not to have; ``enforce`` refuses to leave any out."""

    model: str
    added: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    enforce: bool = False
    phys_bits: int | None = None
    """Bits of guest-physical addresses, from 40 to 52; None is 40."""

    @classmethod
    def parse(cls, text: str) -> "CpuChoice":
        """``EPYC-Milan,+smap,-pku``, as QEMU's ``-cpu``. Raises SpecError with the nearest name that there is."""
        name, *words = text.split(",")
        find_model(name)
        wanted: dict[str, bool] = {}
        enforce, phys_bits = False, None
        for word in words:
            if word in ("enforce", "enforce=on"):
                enforce = True
            elif word.startswith("phys-bits="):
                phys_bits = _phys_bits(word.partition("=")[2])
            elif word not in ("check", "check=on", "enforce=off"):
                feature, is_on = _switch(word)
                wanted[_feature(feature)] = is_on
        added = frozenset(name for name, is_on in wanted.items() if is_on)
        return cls(name, added, frozenset(wanted) - added, enforce, phys_bits)

    def __str__(self) -> str:
        words = [self.model, *(f"+{name}" for name in sorted(self.added))]
        words += [f"-{name}" for name in sorted(self.removed)]
        words += ["enforce"] * self.enforce + ([f"phys-bits={self.phys_bits}"] if self.phys_bits else [])
        return ",".join(words)


def _phys_bits(text: str) -> int:
    if not text.isdecimal() or not LEAST_PHYS_BITS <= int(text) <= MOST_PHYS_BITS:
        raise SpecError(f"phys-bits={text}", f"give {LEAST_PHYS_BITS} to {MOST_PHYS_BITS}")
    return int(text)


def _switch(word: str) -> tuple[str, bool]:
    if word[:1] in ("+", "-"):
        return word[1:], word[0] == "+"
    name, separator, value = word.partition("=")
    if separator and value not in ("on", "off"):
        raise SpecError(f"{word!r} is no switch of a feature", "write +NAME, -NAME, NAME=on or NAME=off")
    return name, value != "off"


def _feature(word: str) -> str:
    name = word.replace("_", "-").replace("sse4-", "sse4.")
    name = _OTHER_NAMES.get(name, name)
    if name not in features():
        raise SpecError(f"no CPU feature {word!r}", _nearest(name, features()))
    return name


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_TABLE.read_text("utf-8"))
    return table


@functools.cache
def features() -> dict[str, FeatureBit]:
    """Every feature by QEMU's name, but those that only MSRs show."""
    return {name: FeatureBit(*where) for name, where in _table()["features"].items()}


def model_names() -> list[str]:
    """Every 64-bit model, without those of one name and ``-vN``."""
    return [MAX, *sorted(_table()["aliases"])]


@functools.cache
def find_model(name: str) -> CpuModel:
    """A model by its name, with or without ``-vN``; of ``max`` it is its namesake's. Raises SpecError."""
    if name == "host":
        raise SpecError("the modelled processor is not this computer's", f"use {MAX}")
    known = _table()["aliases"].get(MAX_LIKE if name == MAX else name, name)
    row = _table()["models"].get(known)
    if row is None:
        names = [*model_names(), *_table()["models"]]
        raise SpecError(f"no CPU model {name!r}", _nearest(name, names))
    words = {word: int(bits, 16) for word, bits in row["features"].items()}
    found = frozenset(feature for feature, (word, bit) in features().items() if words.get(word, 0) >> bit & 1)
    numbers = (row["family"], row["model"], row["stepping"], row["model-id"], row["level"], row["xlevel"])
    return CpuModel(name, row["vendor"], *numbers, found)


def _nearest(word: str, known: Any) -> str:
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, 1, 0.5)
    return (f"did you mean {lower[near[0]]}? " if near else "") + "casemate boot --cpu help lists them"
