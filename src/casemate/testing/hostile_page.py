"""The table of hostile guests in Markdown.

``python -m casemate.testing.hostile_page`` prints it as docs/design/hostile.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from casemate.guests.hostile import COLUMNS, HOSTILE, HostileGuest


def render() -> str:
    """The page."""
    lines = [
        "# Hostile guests",
        "",
        "Tiny firmware that misbehaves (`guests/hostile.py`), and how each run ends. The test suite runs",
        "each on every host that it finds (`pytest tests/hostile_guests`). None ever changes its code unit, and only",
        "erase-vars changes its variables, where it may. Made by `python -m casemate.testing.hostile_page`.",
        "",
        f"| guest | what it does | {' | '.join(COLUMNS)} | differs |",
        "|---|---|" + "---|" * len(COLUMNS) + "---|",
    ]
    for guest in HOSTILE:
        words = " | ".join(_shown(guest, column) for column in COLUMNS)
        lines.append(f"| {guest.name} | {guest.purpose} | {words} | {'; '.join(_differences(guest))} |")
    lines += [
        "",
        "The endings are those of docs/guide/boot.md. `uffd` is run on KVM only; the rest is what the model does, and",
        "kvm_amd (Linux 6.1, 6.12 and 7.3, emulated processor) where nothing else is said. SEV-ES guests are run on",
        "the model: with a read-only slot as on Linux 6.1, where the model tells of the livelock at once, and behind a",
        "read-only mapping as on Linux 6.18. Empty cells are not run: the tiny #VC handler knows byte ports only.",
    ]
    return "\n".join(lines) + "\n"


def _shown(guest: HostileGuest, column: str) -> str:
    on_model = guest.ending(column, "model")
    return on_model or (column.startswith("uffd") and guest.ending("vma drop", "model")) or ""


def _differences(guest: HostileGuest) -> Iterator[str]:
    for host in guest.kvm:
        found = {column: guest.ending(column, host) for column in COLUMNS}
        cells = [
            f"{column} {word}" for column, word in found.items() if word and word != _shown(guest, column)
        ]
        yield f"{host}: {', '.join(cells)}"


if __name__ == "__main__":
    print(render(), end="")
