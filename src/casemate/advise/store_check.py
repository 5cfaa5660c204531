"""Checks and repairs a variable store: what firmware trips over, loses or finishes itself (docs/guide/vars.md)."""

from __future__ import annotations

from bisect import bisect_right
from enum import StrEnum
from typing import NamedTuple

from casemate.errors import ImageError
from casemate.firmware import guids, variables
from casemate.firmware.fault_tolerant_write import parse_work_block
from casemate.firmware.variables import Record, RecordFault, Variable, parse_record
from casemate.firmware.varstore import (
    BLOCK_SIZE,
    FORMATTED,
    HEADER_SIZE,
    HEALTHY,
    SIZES,
    STORE_OFFSET,
    StoreLayout,
    build_volume,
)
from casemate.firmware.volume_header import build_volume_header, parse_volume_header

_COMBINED = {0x200000: 0x20000, 0x400000: 0x84000}
_LONGEST_PLAUSIBLE_NAME = 1024
_KNOWN_ATTRIBUTES = 0x7F


class Severity(StrEnum):
    """What a finding means for the guest."""

    ERROR = "error"
    """Firmware may lose variables, format the store, or not boot."""
    NOTE = "note"
    """A trace of an interruption that firmware copes with."""


class Finding(NamedTuple):
    """One thing that is not as it should be; ``offset`` in bytes from the start of the file."""

    severity: Severity
    offset: int
    what: str
    effect: str


class StoreCheck(NamedTuple):
    """What is in a store: all ``variables`` that are whole, and the ``findings``."""

    layout: StoreLayout
    authenticated: bool
    variables: tuple[Variable, ...]
    findings: tuple[Finding, ...]
    free: int
    """Bytes for new records before firmware has to clean up."""

    @property
    def is_healthy(self) -> bool:
        """Whether nothing found is an error."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)


def check_store(data: bytes, name: str) -> StoreCheck:
    """Check the store that a file begins with. Raises ImageError if nothing says that this is one."""
    layout = _find_layout(data, name)
    findings: list[Finding] = []
    if len(data) < layout.size:
        what = f"the file has {len(data):#x} bytes, the volume {layout.size:#x}: the end is missing"
        findings.append(Finding(Severity.ERROR, len(data), what, "the flash device would have another size"))
        data = data.ljust(layout.size, b"\xff")
    _check_volume(data, layout, findings)
    data = _finish_pending_write(data, layout, findings)
    authenticated = _check_header(data, layout, findings)
    walk = _Walk(data[STORE_OFFSET : layout.end], authenticated, findings)
    return StoreCheck(layout, authenticated, walk.effective(), tuple(findings), walk.free)


def repair_store(data: bytes, check: StoreCheck) -> bytes:
    """The file with its volume written anew from the variables that are whole; what follows the volume stays."""
    volume = build_volume(check.layout, check.variables, authenticated=check.authenticated)
    return volume + data[check.layout.size :]


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
    raise ImageError(name, "this is no variable store", remedy)


def _has_records(data: bytes) -> bool:
    store = data[STORE_OFFSET : max(SIZES)]
    return any(_plausible_offsets(store, authenticated) for authenticated in (True, False))


def _check_volume(data: bytes, layout: StoreLayout, findings: list[Finding]) -> None:
    if data[:STORE_OFFSET] != build_volume_header(layout.size, guids.NVRAM_VOLUME):
        what = "the header of the volume is damaged"
        findings.append(
            Finding(Severity.ERROR, 0, what, "firmware formats the store: all variables are lost")
        )


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
    signature = data[STORE_OFFSET : STORE_OFFSET + guids.GUID_SIZE]
    kinds = {guids.AUTHENTICATED_VARIABLE_STORE: True, guids.VARIABLE_STORE: False}
    return kinds.get(signature)


def _check_header(data: bytes, layout: StoreLayout, findings: list[Finding]) -> bool:
    header = data[STORE_OFFSET : STORE_OFFSET + HEADER_SIZE]
    kind, wrong = _store_kind(data), []
    if kind is None:
        wrong.append("its GUID")
    if int.from_bytes(header[16:20], "little") != layout.end - STORE_OFFSET:
        wrong.append("its size")
    if header[20] != FORMATTED:
        wrong.append("its format")
    if header[21] != HEALTHY:
        wrong.append("its state")
    if wrong:
        what = f"the header of the store is damaged: {', '.join(wrong)}"
        effect = "firmware formats the store, or stops: all variables are lost"
        findings.append(Finding(Severity.ERROR, STORE_OFFSET, what, effect))
    if kind is not None:
        return kind
    store = data[STORE_OFFSET : layout.end]
    return len(_plausible_offsets(store, True)) >= len(_plausible_offsets(store, False))


def _plausible_offsets(store: bytes, authenticated: bool) -> list[int]:
    """Where something lies that can hardly be anything but the start of a record."""
    found, position = [], HEADER_SIZE
    while (position := store.find(variables.START_ID, position)) >= 0:
        if position % variables.ALIGNMENT == 0 and _is_plausible(store, position, authenticated):
            found.append(position)
        position += 1
    return found


def _is_plausible(store: bytes, offset: int, authenticated: bool) -> bool:
    try:
        record = parse_record(store, offset, authenticated=authenticated)
    except RecordFault:
        return False
    name, attributes = record.variable.name, record.variable.attributes
    return (
        record.state != variables.UNWRITTEN
        and 0 < len(name) <= _LONGEST_PLAUSIBLE_NAME
        and 0 < attributes <= _KNOWN_ATTRIBUTES
    )


class _Walk:
    """One walk over the records of a store, as firmware does it, but not stopped by damage."""

    def __init__(self, store: bytes, authenticated: bool, findings: list[Finding]) -> None:
        self._store = store
        self._authenticated = authenticated
        self._findings = findings
        self._records: list[Record] = []
        self._plausible = _plausible_offsets(store, authenticated)
        self.free = 0
        self._walk()

    def effective(self) -> tuple[Variable, ...]:
        """The newest whole value of each variable, else one that was about to be replaced."""
        values: dict[tuple[bytes, str], Variable] = {}
        for record in self._records:
            key = (record.variable.guid, record.variable.name)
            if record.state != variables.ADDED:
                continue
            if key in values:
                what = f"{record.variable.label} is there twice"
                self._report(
                    Severity.ERROR, record.offset, what, "firmware takes the first; the last is the newer"
                )
            values[key] = record.variable
        for record in self._records:
            key = (record.variable.guid, record.variable.name)
            if record.state == variables.IN_DELETED_TRANSITION:
                effect = "firmware drops the old value" if key in values else "the old value counts"
                what = f"a change of {record.variable.label} was cut off"
                self._report(Severity.NOTE, record.offset, what, effect)
                values.setdefault(key, record.variable)
        return tuple(values.values())

    def _walk(self) -> None:
        offset: int | None = HEADER_SIZE
        while offset is not None:
            while self._store[offset : offset + 2] == variables.START_ID:
                offset = self._step(offset)
            rest = self._store[offset:]
            if rest.count(0xFF) == len(rest):
                self.free = len(rest)
                return
            what = "the list of records ends here, but what follows is not erased"
            effect = "firmware sees nothing behind this, and cannot write here"
            self._report(Severity.ERROR, offset, what, effect)
            offset = self._next_plausible(offset)

    def _step(self, offset: int) -> int:
        """Take the record at ``offset``; returns where the next should be."""
        behind_header = offset + variables.header_size(self._authenticated)
        if self._store[offset + 2] == variables.UNWRITTEN:
            what = "writing a record was cut off within its header (state 0xff)"
            effect = "debug builds of newer firmware stop at this for ever; others skip it"
            self._report(Severity.ERROR, offset, what, effect)
            return variables.align(behind_header)
        try:
            record = parse_record(self._store, offset, authenticated=self._authenticated)
        except RecordFault as fault:
            self._report(
                Severity.ERROR, offset, f"a record is damaged: {fault}", "firmware stops here, or formats"
            )
            following = self._next_plausible(offset)
            return len(self._store) if following is None else following
        inner = self._next_plausible(behind_header - 1)
        if inner is not None and inner < record.end:
            what = f"the sizes of {record.variable.label} are wrong: they take in the record at {inner:#x}"
            self._report(Severity.ERROR, offset, what, "firmware does not see the variables behind it")
            return inner
        if record.state == variables.HEADER_VALID:
            what = "writing a record was cut off within its name or data (state 0x7f)"
            self._report(Severity.NOTE, offset, what, "firmware skips it")
        self._records.append(record)
        return variables.align(record.end)

    def _next_plausible(self, offset: int) -> int | None:
        index = bisect_right(self._plausible, offset)
        return self._plausible[index] if index < len(self._plausible) else None

    def _report(self, severity: Severity, offset: int, what: str, effect: str) -> None:
        self._findings.append(Finding(severity, STORE_OFFSET + offset, what, effect))
