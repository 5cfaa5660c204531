"""What a guest's access to protected memory does on each host, as one table (observed; Linux api.rst, KVM_RUN).

``python -m casemate.testing.behaviours`` prints it as docs/design/kvm-behaviour.md. The contract suite holds every
row against whatever hosts it finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from casemate.guests.stores import BY_NAME, FILLER, VALUE, point_at

TARGET = 0x300020
"""Where the accesses go: into a page of its own, filled with ``FILLER``."""
PROLOGUE = point_at(TARGET)

SEEN_WORDS = ("kvm_amd 6.1, 6.12, 7.3", "kvm_amd 6.12", "kvm_pvm", "model", "source only")


class Protection(StrEnum):
    """How the page is protected."""

    SLOT = "read-only slot"
    MAPPING = "normal slot, mprotect(PROT_READ) of its host mapping"
    VIEW = "normal slot over a second, read-only mapping of a memfd"
    PRIVATE = "normal slot, mprotect(PROT_READ) of private anonymous memory"


class End(StrEnum):
    """What the host makes of the access."""

    MMIO = "MMIO exits; memory unchanged; the guest goes on behind it"
    FAULT = "KVM_RUN fails with EFAULT; memory unchanged; the guest stays on it"
    ERROR = "KVM_EXIT_INTERNAL_ERROR, emulation; memory unchanged"
    UNDEFINED = "#UD in the guest; memory unchanged"


Store = tuple[int, int, int]
"""Offset from ``TARGET``, bytes, value."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An end, and the MMIO writes on the way."""

    end: End
    stores: tuple[Store, ...] = ()


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One row: ``outcome`` wherever ``differs`` does not name the host, with the reason why it does."""

    name: str
    code: bytes
    protection: Protection
    outcome: Outcome
    seen: tuple[str, ...]
    user: bool = True
    differs: dict[str, tuple[Outcome, str]] = field(default_factory=dict)

    def on(self, host: str) -> Outcome:
        """The outcome on ``kvm_amd``, ``kvm_pvm``, ``model``, ..."""
        return self.differs[host][0] if host in self.differs else self.outcome


_STORES: dict[str, tuple[Store, ...]] = {
    "mov byte": ((0, 1, 0x77),),
    "mov qword": ((0, 8, VALUE),),
    "or byte": ((0, 1, 0x5B),),
    "xchg dword": ((0, 4, VALUE >> 32),),
    "lock cmpxchg dword": ((0, 4, VALUE >> 32),),
    "lock bts dword": ((0, 4, 0x5A5A5A5B),),
    "movups": ((0, 8, 0), (8, 8, 0)),
    "movnti qword": ((0, 8, VALUE),),
    "push": ((0, 8, VALUE),),
    "rep stosb, 4 bytes": tuple((at, 1, FILLER) for at in range(4)),
    "rep movsb from RAM, 4 bytes": tuple((at, 1, 0) for at in range(4)),
    "insb": ((0, 1, 0),),
    "rep insb, 4 bytes": ((0, 4, 0),),
    "movsb from MMIO": ((0, 1, 0),),
}
_MOV = BY_NAME["mov byte"].code
_MOV_STORES = ((0, 1, 0x77),)

_EVERYWHERE = ("kvm_amd 6.1, 6.12, 7.3", "kvm_pvm", "model")
_FAULT = Outcome(End.FAULT)


def _rows() -> Iterator[Behaviour]:
    for name, stores in _STORES.items():
        instruction = BY_NAME[name]
        code = instruction.code
        yield Behaviour(instruction.name, code, Protection.SLOT, Outcome(End.MMIO, stores), _EVERYWHERE)
        yield Behaviour(
            instruction.name, code, Protection.MAPPING,
            Outcome(End.MMIO, stores) if instruction.emulated else _FAULT, _EVERYWHERE,
        )  # fmt: skip
    x87 = BY_NAME["x87 fstp dword"].code
    yield Behaviour("x87 fstp dword", x87, Protection.SLOT, Outcome(End.ERROR), _EVERYWHERE, user=False)
    yield Behaviour(
        "x87 fstp dword", x87, Protection.SLOT, Outcome(End.UNDEFINED), _EVERYWHERE,
        differs={"kvm_pvm": (Outcome(End.ERROR), "it reports in either mode")},
    )  # fmt: skip
    yield Behaviour("x87 fstp dword", x87, Protection.MAPPING, _FAULT, _EVERYWHERE)
    yield Behaviour("mov byte", _MOV, Protection.VIEW, _FAULT, _EVERYWHERE)
    yield Behaviour("mov byte", _MOV, Protection.PRIVATE, _FAULT, _EVERYWHERE)
    yield Behaviour(
        "mov byte", _MOV, Protection.SLOT, Outcome(End.MMIO, _MOV_STORES), _EVERYWHERE, user=False
    )
    yield Behaviour(
        "mov byte", _MOV, Protection.MAPPING, _FAULT, _EVERYWHERE, user=False,
        differs={"kvm_pvm": (Outcome(End.MMIO, _MOV_STORES), "supervisor code is interpreted there")},
    )  # fmt: skip


BEHAVIOURS = tuple(_rows())


def render() -> str:
    """The table in Markdown."""
    lines = [
        "# What a write to protected memory does",
        "",
        "Made by `python -m casemate.testing.behaviours`; the contract suite (`pytest tests/contract`) holds each row",
        "against the hosts that it finds. *kvm_amd* is that of Debian's kernels 6.1, 6.12 and 7.3 with emulated SVM",
        "and nested paging; *kvm_pvm* runs user code on the processor and interprets the rest; *model* is casemate's.",
        "",
        "| instruction | mode | protection | what happens | MMIO writes (bytes) | seen on | differs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in BEHAVIOURS:
        sizes = ", ".join(str(size) for _, size, _ in row.outcome.stores)
        differs = "; ".join(
            f"{host}: {outcome.end.name}, for {why}" for host, (outcome, why) in row.differs.items()
        )
        mode = "user" if row.user else "supervisor"
        lines.append(
            f"| {row.name} | {mode} | {row.protection} | {row.outcome.end.name} | {sizes} | {'; '.join(row.seen)}"
            f" | {differs} |"
        )
    lines += ["", *(f"- {end.name}: {end}." for end in End)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
