"""How firmware is protected from the guest: one pure choice over one table (docs/design/protection.md)."""

from collections.abc import Callable
from enum import StrEnum
from typing import Literal, NamedTuple

from casemate.abi.guest_kind import GuestKind
from casemate.errors import CasemateError, SpecError, UnsupportedError
from casemate.host.capabilities import VmCapabilities


class WriteProtection(StrEnum):
    """What keeps the guest from writing into its firmware."""

    READONLY_SLOT = "readonly-slot"
    """The memory slot is read-only: a write becomes an MMIO exit."""
    READONLY_VMA = "readonly-vma"
    """A normal slot over a mapping that mprotect made read-only: a write ends KVM_RUN with EFAULT."""
    READONLY_VIEW = "readonly-view"
    """A normal slot over a second, read-only mapping of the memory: as above, and nothing is ever lifted."""
    USERFAULT = "userfault"
    """As the view, but the second mapping is write-protected by userfaultfd, which names the page of a write."""
    WRITABLE = "writable"
    """Nothing: the firmware is ordinary RAM."""


class OnWrite(StrEnum):
    """What happens to a guest that writes into protected memory."""

    KILL = "kill"
    """The run ends."""
    DROP = "drop"
    """The write is skipped and counted."""
    ALLOW_ONCE = "allow-once"
    """The first write is made, and counted; the next one ends the run."""


Requested = Literal["auto", "slot", "vma", "view", "uffd"]
"""The words of ``--protection``."""


class Rejected(NamedTuple):
    """A protection that was not chosen, and why."""

    protection: WriteProtection
    reason: str


class ProtectionChoice(NamedTuple):
    """The protection for all flash units (or the ``--bios`` image) of one guest, with its reasons."""

    protection: WriteProtection
    reason: str
    rejected: tuple[Rejected, ...]
    warning: str | None = None


_SLOT, _VMA, _VIEW, _UFFD, _RAM = WriteProtection
_PLAIN = frozenset({GuestKind.PLAIN})
_OPEN = frozenset({GuestKind.PLAIN, GuestKind.SEV})
_ES = frozenset({GuestKind.SEV_ES})
_SEV = frozenset({GuestKind.SEV, GuestKind.SEV_ES})
_PRIVATE = frozenset({GuestKind.SNP, GuestKind.TDX})
_CONFIDENTIAL = _SEV | _PRIVATE
_ANY_KIND = frozenset(GuestKind)

_USE_BIOS = "boot it with --bios, which loads the firmware as RAM"
_NO_SLOTS = "this VM has no read-only memory slots"
_PROBE = "stock OVMF probes its flash by writing into it, which would end the run"
_SEALED = "the registers of a SEV-ES guest are sealed, so that no write of it can be decoded, made or skipped"
_UNSEEN = "has not been seen on SEV hardware yet"


class _Row:
    """If guest kind, flash, read-only slots (None: either) and request match, this is the verdict."""

    def __init__(
        self,
        kinds: frozenset[GuestKind],
        flash: bool,
        slots: bool | None,
        requested: str,
        verdict: WriteProtection | type[CasemateError],
        reason: str,
        remedy: str = "",
        warning: str | None = None,
        on_write: Callable[[OnWrite | None], bool] = lambda on_write: True,
    ) -> None:
        self.kinds, self.flash, self.slots, self.requested = kinds, flash, slots, requested
        self.verdict, self.reason, self.remedy, self.warning = verdict, reason, remedy, warning
        self.on_write = on_write

    def matches(
        self, kind: GuestKind, flash: bool, slots: bool, requested: str, on_write: OnWrite | None
    ) -> bool:
        return (
            kind in self.kinds
            and flash is self.flash
            and self.slots in (None, slots)
            and requested in self.requested.split("|")
            and self.on_write(on_write)
        )


def _is_unsaid(on_write: OnWrite | None) -> bool:
    return on_write is None


def _goes_on(on_write: OnWrite | None) -> bool:
    return on_write in (OnWrite.DROP, OnWrite.ALLOW_ONCE)


def _is_allow_once(on_write: OnWrite | None) -> bool:
    return on_write is OnWrite.ALLOW_ONCE


# The first row that matches decides.
_TABLE = (
    # Firmware by --bios.
    _Row(_CONFIDENTIAL, False, None, "auto", _RAM, "--bios firmware is ordinary RAM of a confidential guest"),
    _Row(
        _CONFIDENTIAL, False, None, "slot|vma|view|uffd", SpecError,
        "--protection: --bios firmware is ordinary RAM of a confidential guest, nothing can protect it",
        "leave --protection out, or put the firmware into flash with --code",
    ),
    _Row(
        _PLAIN, False, None, "vma|view|uffd", SpecError,
        "--protection vma, view and uffd protect flash, and this guest has none",
        "use --protection slot, or put the firmware into flash with --code",
    ),
    _Row(_PLAIN, False, True, "auto|slot", _SLOT, "the --bios image is a ROM behind a read-only memory slot"),
    _Row(
        _PLAIN, False, False, "auto|slot", UnsupportedError,
        f"the --bios image of a plain guest is a ROM, and {_NO_SLOTS}",
        "run on a host whose KVM answers KVM_CAP_READONLY_MEM, or on the model (--host model)",
    ),
    # Firmware in flash.
    _Row(
        _PRIVATE, True, None, "auto|slot|vma|view|uffd", SpecError,
        "this guest keeps its firmware in private memory, which cannot be flash",
        _USE_BIOS,
    ),
    _Row(
        _OPEN, True, None, "vma|view|uffd", SpecError,
        f"--protection vma, view and uffd without --on-write: {_PROBE}",
        "say --on-write drop or --on-write kill, or leave --protection out",
        on_write=_is_unsaid,
    ),
    _Row(
        _ES, True, None, "vma|view|uffd", SpecError, f"--on-write drop and allow-once: {_SEALED}",
        "use --on-write kill",
        on_write=_goes_on,
    ),
    _Row(
        _ES, True, None, "auto|slot", SpecError, f"--on-write allow-once: {_SEALED}", "use --on-write kill",
        on_write=_is_allow_once,
    ),
    _Row(
        _OPEN, True, None, "auto|slot", SpecError,
        "--on-write allow-once: a write to a read-only slot is a flash command, nothing holds it back",
        "use --protection vma, view or uffd",
        on_write=_is_allow_once,
    ),
    _Row(_OPEN, True, True, "auto|slot", _SLOT, "read-only memory slots turn a write into a flash command"),
    _Row(
        _OPEN, True, False, "auto|slot", UnsupportedError,
        f"flash needs read-only memory slots, and {_NO_SLOTS}",
        _USE_BIOS,
    ),
    _Row(
        _ES, True, True, "auto|slot", _SLOT,
        "this VM has read-only memory slots; a direct write of a SEV-ES guest then faults for ever (livelock)",
    ),
    _Row(
        _ES, True, False, "auto", _VMA, f"{_NO_SLOTS}, so the host mapping is made read-only instead",
        warning="KVM has no read-only memory for this SEV-ES guest: its flash is protected by read-only host"
        " mappings (mprotect), and a write into it ends the run; --bios is the way out",
    ),
    _Row(_ES, True, False, "slot", UnsupportedError, _NO_SLOTS, f"use --protection vma, or {_USE_BIOS}"),
    _Row(_ANY_KIND, True, None, "vma", _VMA, "asked for by --protection vma"),
    _Row(
        _SEV, True, None, "view", _VIEW, "asked for by --protection view",
        warning=f"--protection view {_UNSEEN}; without it casemate chooses what is known to work",
    ),
    _Row(_PLAIN, True, None, "view", _VIEW, "asked for by --protection view"),
    _Row(
        _SEV, True, None, "uffd", _UFFD, "asked for by --protection uffd",
        warning=f"--protection uffd {_UNSEEN}; without it casemate chooses what is known to work",
    ),
    _Row(_PLAIN, True, None, "uffd", _UFFD, "asked for by --protection uffd"),
)  # fmt: skip


class _WhyNot:
    """Why ``protection`` is not chosen by itself for these kinds; ``slots`` None is either answer."""

    def __init__(
        self,
        protection: WriteProtection,
        kinds: frozenset[GuestKind],
        flash: bool,
        slots: bool | None,
        reason: str,
    ) -> None:
        self.protection, self.kinds, self.flash = protection, kinds, flash
        self.slots, self.reason = slots, reason


# Again the first row that matches.
_WHY_NOT = (
    _WhyNot(
        _SLOT, _CONFIDENTIAL, False, None, "confidential firmware loaded by --bios must stay writable RAM"
    ),
    _WhyNot(_SLOT, _ANY_KIND, True, False, _NO_SLOTS),
    _WhyNot(_SLOT, _ANY_KIND, True, True, "another protection was asked for"),
    _WhyNot(_VMA, _ANY_KIND, False, None, "made for flash, which this guest has not"),
    _WhyNot(_VIEW, _ANY_KIND, False, None, "made for flash, which this guest has not"),
    _WhyNot(_UFFD, _ANY_KIND, False, None, "made for flash, which this guest has not"),
    _WhyNot(_VMA, _OPEN, True, None, _PROBE),
    _WhyNot(_VIEW, _PLAIN, True, None, _PROBE),
    _WhyNot(_UFFD, _PLAIN, True, None, f"{_PROBE}; needs privilege"),
    _WhyNot(_UFFD, _CONFIDENTIAL, True, None, f"needs privilege; {_UNSEEN}"),
    _WhyNot(_VIEW, frozenset({GuestKind.SEV}), True, None, f"{_PROBE}; {_UNSEEN}"),
    _WhyNot(_VMA, _ES, True, True, "read-only slots work; --protection vma ends a guest that writes instead"),
    _WhyNot(_VMA, _ES, True, False, "another protection was asked for"),
    _WhyNot(_VIEW, _ES, True, None, _UNSEEN),
    _WhyNot(_RAM, _ANY_KIND, True, None, "would leave the firmware open to every write of the guest"),
    _WhyNot(_RAM, _PLAIN, False, None, "a plain guest needs no writable firmware"),
)


def choose(
    kind: GuestKind,
    *,
    flash: bool,
    capabilities: VmCapabilities,
    requested: Requested = "auto",
    on_write: OnWrite | None = None,
) -> ProtectionChoice:
    """The protection for a guest whose firmware lies in ``flash``, or else was loaded by ``--bios``.

    ``capabilities`` must be the answers of the very VM. Raises SpecError for a request that makes no sense
    for this guest, UnsupportedError if the host cannot do it.
    """
    slots = capabilities.readonly_memory
    row = next(row for row in _TABLE if row.matches(kind, flash, slots, requested, on_write))
    if not isinstance(row.verdict, WriteProtection):
        raise row.verdict(f"{kind} guest: {row.reason}", row.remedy)
    return ProtectionChoice(row.verdict, row.reason, _rejected(row.verdict, kind, flash, slots), row.warning)


def _rejected(chosen: WriteProtection, kind: GuestKind, flash: bool, slots: bool) -> tuple[Rejected, ...]:
    found = []
    for protection in WriteProtection:
        if protection is not chosen:
            reasons = (
                row.reason
                for row in _WHY_NOT
                if row.protection is protection
                and kind in row.kinds
                and flash is row.flash
                and row.slots in (None, slots)
            )
            found.append(Rejected(protection, next(reasons)))
    return tuple(found)
