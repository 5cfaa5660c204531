"""Checks and repairs a variable store: what firmware sees, what it trips over or finishes itself (docs/guide/vars.md).

The records are walked as edk2 walks them, by their sizes and from the first on, and nothing else in a store is a
variable: a value may hold bytes that look like a record (edk2 MdeModulePkg/Universal/Variable/RuntimeDxe).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from casemate.errors import ImageError
from casemate.firmware import guids, variables
from casemate.firmware.fault_tolerant_write import parse_work_block
from casemate.firmware.variables import Record, RecordFault, Variable, parse_record
from casemate.firmware.varstore import (
    BLOCK_SIZE,
    FORMATTED,
    HEADER_SIZE,
    HEALTHY,
    LARGEST_SIGNED_VARIABLE,
    SIZES,
    STORE_OFFSET,
    StoreLayout,
    build_volume,
)
from casemate.firmware.volume_header import parse_volume_header

_COMBINED = {0x200000: 0x20000, 0x400000: 0x84000}
_KINDS = {guids.AUTHENTICATED_VARIABLE_STORE: True, guids.VARIABLE_STORE: False}
_LONGEST_PLAUSIBLE_NAME = 1024
_KNOWN_ATTRIBUTES = 0x7F


class Severity(StrEnum):
    """What a finding means for the guest."""

    ERROR = "error"
    """Firmware may lose variables, format the store, or not boot."""
    NOTE = "note"
    """A trace of an interruption that firmware copes with, or what makes it slow."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be; ``offset`` in bytes from the start of the file."""

    severity: Severity
    offset: int
    what: str
    effect: str


@dataclass(frozen=True, slots=True)
class Stray:
    """What looks like a record and is none to firmware: it lies behind the list, at ``offset`` of the file."""

    offset: int
    variable: Variable

    @property
    def can_be_salvaged(self) -> bool:
        """Whether taking it for a variable gives nobody more than he had: what is trusted must not be forged."""
        return self.variable.is_ordinary

    @property
    def why_left(self) -> str:
        """Why a repair does not take it."""
        if self.can_be_salvaged:
            return "it may be part of another variable's value; repair --salvage takes it"
        return (
            "signed, Secure Boot's and boot-only variables are never made out of what firmware does not see"
        )


@dataclass(frozen=True, slots=True)
class StoreCheck:
    """What is in a store."""

    layout: StoreLayout
    authenticated: bool
    variables: tuple[Variable, ...]
    """Those that firmware sees, in their order; none if it would format the store."""
    whole: tuple[Variable, ...]
    """Those that it would see if the headers of volume and store were as they should be: what a repair keeps."""
    strays: tuple[Stray, ...]
    findings: tuple[Finding, ...]
    live: int
    """Bytes of the records that count."""
    free: int
    """Bytes for new records before firmware has to clean up."""

    @property
    def is_healthy(self) -> bool:
        """Whether nothing found is an error."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def capacity(self) -> int:
        """Bytes that records can take."""
        return self.layout.end - STORE_OFFSET - HEADER_SIZE

    @property
    def reclaimable(self) -> int:
        """Bytes of records that were deleted, replaced or cut off, which cleaning up gets back."""
        return self.capacity - self.live - self.free


def check_store(data: bytes, name: str) -> StoreCheck:
    """Check the store that a file begins with. Raises ImageError if nothing says that this is one."""
    layout = _find_layout(data, name)
    findings: list[Finding] = []
    if len(data) < layout.size:
        what = f"the file has {len(data):#x} bytes, the volume {layout.size:#x}: the end is missing"
        findings.append(Finding(Severity.ERROR, len(data), what, "the flash device would have another size"))
        data = data.ljust(layout.size, b"\xff")
    is_seen = _check_volume(data, layout, findings) and not _header_faults(data, layout)
    data = _finish_pending_write(data, layout, findings)
    authenticated = _check_header(data, layout, findings)
    walk = _Walk(data[STORE_OFFSET : layout.end], authenticated, findings)
    whole = walk.effective()
    live = sum(len(variable.encode(authenticated=authenticated)) for variable in whole)
    _check_room(layout, live, walk.free, findings)
    seen = whole if is_seen and not _header_faults(data, layout) else ()
    return StoreCheck(
        layout, authenticated, seen, whole, tuple(walk.strays()), tuple(findings), live, walk.free
    )


def repair_store(data: bytes, check: StoreCheck, *, salvage: bool = False) -> bytes:
    """The file with its volume written anew from ``check.whole``; what follows the volume stays.

    With ``salvage``, ordinary variables that firmware does not see are taken where they are the only ones of their
    name. Raises SpecError if all that does not fit.
    """
    kept = {variable.key: variable for variable in check.whole}
    for stray in check.strays:
        if salvage and stray.can_be_salvaged:
            kept.setdefault(stray.variable.key, stray.variable)
    return rewrite_store(data, check, kept.values())


def rewrite_store(data: bytes, check: StoreCheck, new: Iterable[Variable]) -> bytes:
    """The file with its volume written anew from the variables ``new``. Raises SpecError if they do not fit."""
    return build_volume(check.layout, new, authenticated=check.authenticated) + data[check.layout.size :]


def _find_layout(data: bytes, name: str) -> StoreLayout:
    header = parse_volume_header(data)
    if header and header.holds_variables and header.length in SIZES:
        return StoreLayout(header.length)
    for size in SIZES:
        layout = StoreLayout(size)
        has_work_block = parse_work_block(data[layout.work : layout.spare], BLOCK_SIZE).fault is None
        if has_work_block or (_store_kind(data) is not None and len(data) == size):
            return layout
    size = _COMBINED.get(len(data), len(data))
    if size in SIZES and (_store_kind(data) is not None or _has_records(data)):
        return StoreLayout(size)
    sizes = " or ".join(f"{size:#x} ({word})" for size, word in SIZES.items())
    remedy = f"give a raw OVMF variable store; its volume has {sizes} bytes"
    if data.startswith(b"QFI\xfb"):
        raise ImageError(name, "this is a qcow2 image", f"convert it: qemu-img convert -O raw {name} VARS.fd")
    raise ImageError(name, "this is no variable store", remedy)


def _has_records(data: bytes) -> bool:
    store = data[STORE_OFFSET : max(SIZES)]
    return any(True for authenticated in (True, False) for _ in _plausible(store, HEADER_SIZE, authenticated))


def _check_volume(data: bytes, layout: StoreLayout, findings: list[Finding]) -> bool:
    header = parse_volume_header(data)
    if (
        header is not None
        and header.holds_variables
        and header.checksum_ok
        and header.length == layout.size
        and header.header_length == STORE_OFFSET
    ):
        return True
    what = "the header of the volume is damaged"
    findings.append(Finding(Severity.ERROR, 0, what, "firmware formats the store: all variables are lost"))
    return False


def _finish_pending_write(data: bytes, layout: StoreLayout, findings: list[Finding]) -> bytes:
    work = parse_work_block(data[layout.work : layout.spare], BLOCK_SIZE)
    if work.fault:
        what = f"the work block cannot be used: {work.fault}"
        findings.append(Finding(Severity.NOTE, layout.work, what, "firmware makes a new one"))
    pending = work.pending
    if pending is None:
        return data
    where = layout.work + pending.offset
    start, length = pending.block * BLOCK_SIZE, pending.block_count * BLOCK_SIZE
    if not pending.in_spare:
        what = "a fault-tolerant write was cut off before the spare block was whole"
        findings.append(Finding(Severity.NOTE, where, what, "firmware drops it: the old contents count"))
    elif start + length > layout.work or length > layout.size - layout.spare:
        what = (
            f"a fault-tolerant write of blocks {pending.block} to {pending.block + pending.block_count - 1}"
        )
        findings.append(Finding(Severity.ERROR, where, what, "it would write outside of the variables"))
    else:
        what = f"a fault-tolerant write to {start:#x} was cut off; the spare block has all {length:#x} bytes"
        findings.append(
            Finding(Severity.ERROR, where, what, "firmware finishes it; until then the store is torn")
        )
        spare = data[layout.spare : layout.spare + length]
        return data[:start] + spare + data[start + length :]
    return data


def _store_kind(data: bytes) -> bool | None:
    return _KINDS.get(data[STORE_OFFSET : STORE_OFFSET + guids.GUID_SIZE])


def _header_faults(data: bytes, layout: StoreLayout) -> list[str]:
    header, wrong = data[STORE_OFFSET : STORE_OFFSET + HEADER_SIZE], []
    if _store_kind(data) is None:
        wrong.append("its GUID")
    if int.from_bytes(header[16:20], "little") != layout.end - STORE_OFFSET:
        wrong.append("its size")
    if header[20] != FORMATTED:
        wrong.append("its format")
    if header[21] != HEALTHY:
        wrong.append("its state")
    return wrong


def _check_header(data: bytes, layout: StoreLayout, findings: list[Finding]) -> bool:
    """Whether the records are authenticated ones, which the header says or, without it, the records do."""
    if wrong := _header_faults(data, layout):
        what = f"the header of the store is damaged: {', '.join(wrong)}"
        effect = "firmware formats the store, or stops: all variables are lost"
        findings.append(Finding(Severity.ERROR, STORE_OFFSET, what, effect))
    kind = _store_kind(data)
    if kind is not None:
        return kind
    store = data[STORE_OFFSET : layout.end]
    return len(_Walk(store, True, []).effective()) >= len(_Walk(store, False, []).effective())


def _check_room(layout: StoreLayout, live: int, free: int, findings: list[Finding]) -> None:
    """Whether firmware will clean up: it wants room for the largest variable at the end of each boot (ReclaimForOS)."""
    least, capacity = LARGEST_SIGNED_VARIABLE[layout.size], layout.end - STORE_OFFSET - HEADER_SIZE
    if free >= least:
        return
    if capacity - live >= least:
        what = (
            f"{free} bytes are free, {capacity - live - free} more are taken by deleted and replaced records"
        )
        effect = "firmware rewrites the whole store at the next boot, which takes many seconds; compact it"
    else:
        what = f"the variables leave {capacity - live} bytes"
        effect = f"firmware rewrites the whole store at every boot, for it wants {least} bytes; delete some"
    findings.append(Finding(Severity.NOTE, layout.end - free, what, effect))


def _plausible(store: bytes, position: int, authenticated: bool) -> Iterator[Record]:
    """What can hardly be anything but a record, from ``position`` on, each behind the end of the one before."""
    while (position := store.find(variables.START_ID, position)) >= 0:
        record = None if position % variables.ALIGNMENT else _plausible_record(store, position, authenticated)
        if record is not None and record.state in (variables.ADDED, variables.IN_DELETED_TRANSITION):
            yield record
        position = position + 1 if record is None else record.end


def _plausible_record(store: bytes, offset: int, authenticated: bool) -> Record | None:
    try:
        record = parse_record(store, offset, authenticated=authenticated)
    except RecordFault:
        return None
    name, attributes = record.variable.name, record.variable.attributes
    is_plausible = (
        record.state != variables.UNWRITTEN
        and 0 < len(name) <= _LONGEST_PLAUSIBLE_NAME
        and 0 < attributes <= _KNOWN_ATTRIBUTES
    )
    return record if is_plausible else None


@dataclass(slots=True)
class _Walk:
    """One walk over the records of a store, as firmware does it."""

    store: bytes
    authenticated: bool
    findings: list[Finding]
    records: list[Record] = field(default_factory=list)
    end: int = HEADER_SIZE
    """Where the list ends for firmware."""
    last: int = HEADER_SIZE
    """Where its last record begins."""
    free: int = 0

    def __post_init__(self) -> None:
        header = variables.header_size(self.authenticated)
        while self.store[self.end : self.end + 2] == variables.START_ID:
            self.last = offset = self.end
            if offset + header > len(self.store):
                self.report(Severity.ERROR, offset, "a record is cut off by the end", "firmware misreads it")
                self.end = len(self.store)
                break
            self.end = variables.next_offset(self.store, offset, authenticated=self.authenticated)
            self.take(offset)
        rest = self.store[self.end :]
        if rest.count(0xFF) == len(rest):
            self.free = len(rest)
            return
        what = "the list of records ends here, but what follows is not erased"
        effect = "firmware sees nothing behind this, and drops it when it rewrites the store"
        self.report(Severity.ERROR, self.end, what, effect)

    def take(self, offset: int) -> None:
        """Judge the record at ``offset``, and keep it if it is one."""
        if self.store[offset + 2] == variables.UNWRITTEN:
            what = "writing a record was cut off within its header (state 0xff)"
            effect = "debug builds of newer firmware stop at this for ever; others skip it"
            self.report(Severity.ERROR, offset, what, effect)
            return
        try:
            record = parse_record(self.store, offset, authenticated=self.authenticated)
        except RecordFault as fault:
            what = f"a record is damaged: {fault}"
            self.report(Severity.ERROR, offset, what, "firmware goes on where its sizes say, or stops here")
            return
        if record.state == variables.HEADER_VALID:
            what = "writing a record was cut off within its name or data (state 0x7f)"
            self.report(Severity.NOTE, offset, what, "firmware skips it")
        self.records.append(record)

    def effective(self) -> tuple[Variable, ...]:
        """What firmware takes for the value of each variable: the first, or else one that was about to be replaced."""
        values: dict[tuple[bytes, str], Variable] = {}
        for record in self.records:
            variable = record.variable
            if record.state != variables.ADDED:
                continue
            if variable.key in values:
                what = f"{variable.label} is there twice"
                self.report(Severity.ERROR, record.offset, what, "firmware takes the first")
            values.setdefault(variable.key, variable)
        replaced: dict[tuple[bytes, str], Variable] = {}
        for record in self.records:
            variable = record.variable
            if record.state == variables.IN_DELETED_TRANSITION:
                effect = "firmware drops the old value" if variable.key in values else "the old value counts"
                what = f"a change of {variable.label} was cut off"
                self.report(Severity.NOTE, record.offset, what, effect)
                replaced[variable.key] = variable
        return tuple((values | {key: old for key, old in replaced.items() if key not in values}).values())

    def strays(self) -> Iterator[Stray]:
        """What looks like records behind the end of the list, without what firmware sees of the same name."""
        seen = {record.variable.key for record in self.records if record.state == variables.ADDED}
        for record in _plausible(self.store, self._unclaimed(), self.authenticated):
            if record.variable.key not in seen:
                yield Stray(STORE_OFFSET + record.offset, record.variable)

    def _unclaimed(self) -> int:
        """The first byte behind the list that no header says to be part of its own record."""
        size = len(self.store)
        if self.end >= size:  # the last record claims more than there is, which says nothing
            return self.last + variables.header_size(self.authenticated)
        claim = variables.claimed_end(self.store, self.last, self.authenticated)
        mended = variables.START_ID + self.store[self.end + 2 :]
        if record := _plausible_record(mended, 0, self.authenticated):  # only its start is damaged
            claim = max(claim, self.end + record.end)
        return max(self.end, claim if claim <= size else 0)

    def report(self, severity: Severity, offset: int, what: str, effect: str) -> None:
        """Add a finding; ``offset`` counts from the start of the store."""
        self.findings.append(Finding(severity, STORE_OFFSET + offset, what, effect))
