"""The table of hostile guests in Markdown.

``python -m casemate.testing.hostile_page`` prints it as docs/design/hostile.md.
"""

from __future__ import annotations

from casemate.guests.hostile import COLUMNS, ENDINGS, HOSTILE

_HOSTS = ("kvm_amd", "kvm_pvm")


def render() -> str:
    """The page."""
    lines = [
        "# Hostile guests",
        "",
        "Tiny firmware that misbehaves (`guests/hostile.py`), and how each run ends. The test suite runs every one on",
        "every host that it finds (`pytest tests/guests`). None ever changes its code unit, and only erase-vars changes",
        "its variables, where it may. Made by `python -m casemate.testing.hostile_page`.",
        "",
        f"| guest | what it does | {' | '.join(COLUMNS)} | differs |",
        "|---|---|" + "---|" * len(COLUMNS) + "---|",
    ]
    for guest in HOSTILE:
        letters = []
        for column in COLUMNS:
            host = "kvm_amd" if column.startswith("uffd") else "model"
            letters.append(guest.ending(column, host) or "")
        differs = "; ".join(_difference(host, guest.kvm[host]) for host in _HOSTS if host in guest.kvm)
        lines.append(f"| {guest.name} | {guest.purpose} | {' | '.join(letters)} | {differs} |")
    lines += [
        "",
        "The endings are those of docs/guide/boot.md. `uffd` is run on KVM only; the rest is what the model does, and",
        "kvm_amd (seen on Linux 6.12 in an emulated processor) where nothing else is said. SEV-ES guests are run on the",
        "model: with a read-only slot as on Linux 6.1, where the model tells of the livelock at once, and behind a",
        "read-only mapping as on Linux 6.18. Empty cells are not run: the tiny #VC handler knows byte ports only.",
    ]
    return "\n".join(lines) + "\n"


def _difference(host: str, letters: str) -> str:
    return f"{host}: " + ", ".join(
        f"{column} {ENDINGS[letter]}"
        for column, letter in zip(COLUMNS, letters, strict=True)
        if letter in "hv"
    )


if __name__ == "__main__":
    print(render(), end="")
