"""Where two launches part, and why, in words (AMD 55766, LAUNCH_UPDATE_DATA; AMD APM volume 2, table B-4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from casemate.abi.sev.vmsa import SaveArea, VmcbSegment
from casemate.digest.hypotheses import FEATURES, PROCESSORS, Registers, feature_words
from casemate.digest.kernel_hashes import TABLE_SIZE, KernelHashes
from casemate.digest.plan import LaunchPlan, TdxOperation
from casemate.digest.plan_json import plan_from_json, reason_of
from casemate.digest.trace import step_kind
from casemate.digest.vmm_flavours import Launcher, launcher_page
from casemate.digest.vmsa_pages import RESET_VECTOR
from casemate.errors import SpecError

_FPU = frozenset({"mxcsr", "x87_fcw"})
_RESET = frozenset({"cs", "rip"})
_FIRST_HASH, _ENTRY, _NAME = 18, 50, 18


class Step(NamedTuple):
    """One measured step of either launch; ``data`` is None where only the hash is known.

    ``kind`` is the type of an SNP guest's pages or the operation on a TD's; ``gpa`` is measured where there is one.
    """

    what: str
    length: int
    sha256: bytes
    data: bytes | None
    gpa: int | None = None
    kind: str | None = None

    @property
    def is_registers(self) -> bool:
        """Whether this is a save area."""
        return self.what.startswith("VMSA")

    @property
    def measured(self) -> tuple[object, ...]:
        """What the digest has of it."""
        if self.kind is None:
            return (self.sha256,)
        return self.sha256, self.length, self.gpa, self.kind


class Difference(NamedTuple):
    """The first step that differs (from 0), its name in either launch (None: it has no such step), and causes."""

    position: int
    first: str | None
    second: str | None
    causes: tuple[str, ...]


def parse_launch(text: str, name: str = "launch") -> list[Step]:
    """The steps of a plan (its JSON) or a trace (``casemate measure --json``); ``name`` is the file's, for errors.

    Raises SpecError if it is neither.
    """
    try:
        document = json.loads(text)
        if "contents" in document:
            return steps_of_plan(plan_from_json(text, name))
        return [
            Step(
                _text(step["what"]),
                int(step["length"]),
                bytes.fromhex(step["sha256"]),
                None,
                None if step.get("gpa") is None else int(step["gpa"], 16),
                None if step.get("kind") is None else _text(step["kind"]),
            )
            for step in document["steps"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        cause = f"{name}: this is neither a launch plan nor a trace ({reason_of(error)})"
        raise SpecError(cause, "give what casemate measure --json printed, or a plan") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text is expected")
    return value


def steps_of_plan(plan: LaunchPlan) -> list[Step]:
    """The steps of a plan, contents and all."""
    return [
        Step(step.what, step.size, hashlib.sha256(step.data).digest(), step.data, step.gpa, step_kind(step))
        for step in plan.steps
    ]


def find_difference(first: list[Step], second: list[Step]) -> Difference | None:
    """The first step in which two launches differ, None if they give one digest."""
    for index in range(max(len(first), len(second))):
        one = first[index] if index < len(first) else None
        other = second[index] if index < len(second) else None
        if one is None or other is None:
            return Difference(index, one and one.what, other and other.what, (_missing(first, second),))
        if one.measured != other.measured:
            return Difference(index, one.what, other.what, tuple(_causes(one, other)))
    return None


def _missing(first: list[Step], second: list[Step]) -> str:
    counts = [sum(step.is_registers for step in steps) for steps in (first, second)]
    if 0 in counts and counts != [0, 0]:
        return f"one guest is SEV-ES, the other SEV: {counts[0]} and {counts[1]} save areas"
    if counts[0] != counts[1]:
        return f"the number of vCPUs differs: {counts[0]} and {counts[1]}"
    return f"one launch has more steps: {len(first)} and {len(second)}"


def _causes(one: Step, other: Step) -> Iterable[str]:
    if one.kind != other.kind:
        return [_kind_cause(one, other)]
    if one.kind is not None and (one.gpa, one.length) != (other.gpa, other.length):
        return [_place_cause(one, other)]
    if one.is_registers != other.is_registers or (one.what != other.what and not one.is_registers):
        return [f"{one.what} against {other.what}: one launch measures something that the other does not"]
    if one.is_registers:
        return _register_causes(one, other)
    if TABLE_SIZE == one.length == other.length or one.what == "kernel hashes":
        return _hash_causes(one, other)
    return [_firmware_cause(one, other)]


def _kind_cause(one: Step, other: Step) -> str:
    kinds = {one.kind, other.kind}
    if None in kinds:
        names = [
            "SNP" if step.kind and step.kind.isupper() else "TDX" if step.kind else "SEV"
            for step in (one, other)
        ]
        return f"the guests are of different kinds: {names[0]} and {names[1]}"
    if "kernel hashes" in (one.what, other.what):
        which = "first" if one.what == "kernel hashes" else "second"
        return f"the {which} launch measures a kernel, the other does not (kernel-hashes=on)"
    if kinds == {TdxOperation.ADD_EXTEND, TdxOperation.ADD} and one.what == other.what:
        which = "first" if one.kind == TdxOperation.ADD_EXTEND else "second"
        return f"page order: the {which} launch measures page by page, the other section by section or not at all"
    return f"{one.what} ({one.kind}) against {other.what} ({other.kind}): the pages are of different types"


def _place_cause(one: Step, other: Step) -> str:
    places = [f"{step.length:#x} bytes at {step.gpa or 0:#x}" for step in (one, other)]
    return f"{one.what}: {places[0]} and {places[1]}; another build of the firmware lays its memory out so"


def _firmware_cause(one: Step, other: Step) -> str:
    if one.length != other.length:
        text = f"the sizes differ: {one.length:#x} and {other.length:#x} bytes"
        if one.data and other.data and (one.data.endswith(other.data) or other.data.endswith(one.data)):
            return f"{text}; the longer ends with the shorter: variables and code, against code alone"
        return text
    if one.data and other.data:
        pairs = zip(one.data, other.data, strict=True)
        offset = next(index for index, (left, right) in enumerate(pairs) if left != right)
        return f"the contents differ, first at offset {offset:#x}"
    return "the contents differ: another file"


def _hash_causes(one: Step, other: Step) -> list[str]:
    if one.data is None or other.data is None:
        return ["one of kernel, initrd and command line differs"]
    names, causes = ("command line", "initrd", "kernel"), []
    nothing = KernelHashes.of(b"")
    tables = [
        data.lstrip(b"\0") for data in (one.data, other.data)
    ]  # an SNP guest's lies somewhere in its page
    for index, (name, empty) in enumerate(zip(names, (nothing.cmdline, nothing.initrd, b""), strict=True)):
        start = _FIRST_HASH + index * _ENTRY
        left, right = (data[start + _NAME : start + _ENTRY] for data in tables)
        if left != right:
            missing = ": one launch has none" if empty in (left, right) else ""
            causes.append(f"the {name} differs{missing}")
    return causes or ["the table of kernel hashes is built another way"]


def _register_causes(one: Step, other: Step) -> list[str]:
    if one.data is not None and other.data is not None:
        return _field_causes(one.data, other.data)
    known = _known_pages()
    left, right = known.get(one.sha256), known.get(other.sha256)
    if left is None or right is None:
        return ["the registers differ; give plans, or traces of guests that this knows, to see in what"]
    return _field_causes(_page(left), _page(right))


def _known_pages() -> dict[bytes, Registers]:
    """The first vCPU of every launch that can be told by its hash alone."""
    found: dict[bytes, Registers] = {}
    for launcher in Launcher:
        for signature in set(PROCESSORS.values()):
            for features in FEATURES:
                registers = Registers(launcher, signature, features)
                found.setdefault(hashlib.sha256(_page(registers)).digest(), registers)
    return found


def _page(registers: Registers) -> bytes:
    return launcher_page(registers.launcher, RESET_VECTOR, registers.signature, registers.features)


def _field_causes(one: bytes, other: bytes) -> list[str]:
    areas = [SaveArea.from_buffer_copy(data.ljust(SaveArea.SIZE, b"\0")) for data in (one, other)]
    names = [name for name, *_ in SaveArea._fields_]
    changed = {name for name in names if _value(areas[0], name) != _value(areas[1], name)}
    left, right = areas
    causes = []
    if changed & _FPU:
        which = "first" if left.mxcsr or left.x87_fcw else "second"
        causes.append(
            f"FPU state (MXCSR, x87 control word): the {which} launch used KVM_SEV_INIT2, which saves it,"
            " the other KVM_SEV_ES_INIT, which leaves it zero"
        )
    if "rdx" in changed:
        causes.append(f"the vCPUs' signatures differ: {left.rdx:#x} and {right.rdx:#x}")
    if "sev_features" in changed:
        words = f"{feature_words(left.sev_features)} and {feature_words(right.sev_features)}"
        causes.append(f"the VMSA features differ: {words}")
    if changed & _RESET:
        causes.append("the vCPUs start elsewhere: another reset block in the firmware, or another monitor")
    rest = [name for name in names if name in changed - _FPU - _RESET - {"rdx", "sev_features"}]
    if rest:
        causes.append(f"these fields of the save area differ: {', '.join(rest)}")
    return causes or ["the page differs behind the save area"]


def _value(area: SaveArea, name: str) -> object:
    value = getattr(area, name)
    return bytes(value) if isinstance(value, VmcbSegment) or not isinstance(value, int) else value
