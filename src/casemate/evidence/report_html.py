"""The report of a run as one HTML file without scripts or links to elsewhere (docs/guide/evidence.md)."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from casemate.evidence.timeline import make_timeline

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # control sequences: colours, movements, modes
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # commands to the terminal's system
    r"|\x1b[ -/]*[0-~]"  # other escapes
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
"""What ECMA-48 has beside text, and what of it is cut off."""
_BAD = ("violation", "triple-fault", "no-progress", "gave-up", "kernel-panic", "sev-termination")
_CURSOR = re.compile(r"\x1b\[(\d+);(\d+)H")
_LINES_SHOWN = 40
_ROWS_SHOWN = 100
_BLOCK = 0x1000


def render_html(document: dict[str, Any]) -> str:
    """The page for the JSON document of a run, as ``casemate boot --report`` writes it."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"hex": _hex, "size": _size, "count": lambda number: f"{number:,}"}
    text = files("casemate.evidence").joinpath("report.html.j2").read_text("utf-8")
    return environment.from_string(text).render(
        document,
        timeline=make_timeline(document),
        verdict=_verdict(document),
        blocks={unit["unit"]: _blocks(unit, document["flash"]) for unit in document["writes"]["units"]},
        console=_console(document["serial"]),
        rows_shown=_ROWS_SHOWN,
    )


def _verdict(document: dict[str, Any]) -> str:
    """``good``, ``bad`` or ``unsure``."""
    if document["writes"]["violations"] or document["outcome"] in _BAD:
        return "bad"
    return "good" if document["exit_code"] == 0 else "unsure"


def _blocks(unit: dict[str, Any], flash: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for every block of a unit; ``level`` from 0 (untouched) to 4."""
    size = next(entry["size"] for entry in flash if entry["unit"] == unit["unit"])
    touched = {block["offset"]: block for block in unit["blocks"]}
    most = max((block["programs"] for block in touched.values()), default=1) or 1
    found = []
    for offset in range(0, size, _BLOCK):
        block = touched.get(offset, {"offset": offset, "programs": 0, "erases": 0})
        level = 0 if offset not in touched else 1 + min(3, 4 * block["programs"] // most)
        found.append(block | {"level": level})
    return found


def _console(text: str) -> str:
    """The end of what the guest printed, without colours and cursor movements."""
    plain = _CONTROL.sub("", _CURSOR.sub(lambda found: "\n" if found[2] in ("1", "01") else "", text))
    shown = [line.rstrip() for line in plain.replace("\r", "").splitlines()]
    return "\n".join([line for line in shown if line][-_LINES_SHOWN:])


def _hex(number: int | None) -> str:
    return "unknown" if number is None else f"{number:#x}"


def _size(number: int) -> str:
    return f"{number >> 20} MiB" if number >= 1 << 20 and not number % (1 << 20) else f"{number >> 10} KiB"
