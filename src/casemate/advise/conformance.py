"""Which rules of KVM's interface, and of the mail, a VMM kept when it launched its guest (docs/guide/conform.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from casemate.address import PAGE_SIZE
from casemate.evidence.kvm_trace import KvmStep, StepKind

READONLY_MEM = "KVM_CAP_READONLY_MEM"
_FIRMWARE_AREA, _FOUR_GIB = 0xFF00_0000, 1 << 32
"""Flash and ``-bios`` images end at 4 GiB, and none is larger than 16 MiB."""
_INIT = ("KVM_SEV_INIT", "KVM_SEV_ES_INIT", "KVM_SEV_INIT2")
_ORDER = (
    (*_INIT,),
    ("KVM_SEV_LAUNCH_START", "KVM_SEV_SNP_LAUNCH_START"),
    ("KVM_SEV_LAUNCH_UPDATE_DATA", "KVM_SEV_SNP_LAUNCH_UPDATE", "KVM_SEV_LAUNCH_UPDATE_VMSA"),
    ("KVM_SEV_LAUNCH_MEASURE",),
    ("KVM_SEV_LAUNCH_SECRET",),
    ("KVM_SEV_LAUNCH_FINISH", "KVM_SEV_SNP_LAUNCH_FINISH"),
)
_STAGE = {name: number for number, names in enumerate(_ORDER) for name in names}
_PINNED = ("KVM_SEV_LAUNCH_UPDATE_DATA", "KVM_SEV_LAUNCH_SECRET")


class Verdict(StrEnum):
    """About one rule."""

    KEPT = "kept"
    BROKEN = "broken"
    UNSEEN = "unseen"
    """Nothing happened that the rule is about."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, and where it comes from."""

    id: str
    title: str
    source: str


RULES = tuple(
    Rule(*row)
    for row in (
        (
            "capability-of-vm",
            "read-only memory is used only after the VM itself was asked for it",
            "Linux api.rst 4.4: VMs of different types answer differently; QEMU asks the VM since 9.2",
        ),
        (
            "readonly-where-offered",
            "no read-only slot for a VM that does not offer them",
            "Linux 66155de93bcf, since 6.11: SEV-ES and SNP VMs refuse them",
        ),
        (
            "slot-changed-by-deletion",
            "a live slot is deleted before it comes back with another size, mapping or read-only flag",
            "Linux api.rst 4.35",
        ),
        (
            "launch-order",
            "launch commands come in their order, and the guest runs after the last",
            "Linux amd-memory-encryption.rst",
        ),
        (
            "update-writable",
            "memory is writable while KVM pins it: for launch updates, secrets and registered regions",
            "Linux sev_pin_memory: FOLL_WRITE; the mail: the protection is lifted for the update",
        ),
        (
            "vmsa-once",
            "the registers of a vCPU are measured once",
            "Linux sev_launch_update_vmsa: EINVAL for a second time",
        ),
        (
            "secret-after-measure",
            "secrets follow the measurement that they answer",
            "AMD 55766 SEV API, LAUNCH_SECRET: state LSECRET",
        ),
        (
            "flash-protected",
            "flash is protected, by its slot or its mapping, whenever the guest runs with it",
            "the mail: read-only when the slot is added",
        ),
        (
            "lifted-for-itself",
            "the protection of flash is lifted for the update of that flash alone",
            "the mail's second regression: kernel hashes touch no protection",
        ),
        (
            "writable-without-slot",
            "flash whose slot is gone is writable, for the guest's commands program it",
            "the mail: read-only when the slot is added, writable when it is torn down",
        ),
        (
            "bios-never-armed",
            "firmware that is RAM (-bios) is never protected",
            "the mail's first regression: guests of -bios no longer started",
        ),
        (
            "ram-never-armed",
            "guest RAM is never protected: kernel hashes and secrets lie in it",
            "the mail's second regression: kernel hashes",
        ),
        (
            "whole-slot",
            "protection starts and ends with pages, and with the memory of its slot",
            "Linux mprotect(2); the guest's other memory lies beside it",
        ),
        (
            "fault-is-final",
            "a vCPU whose KVM_RUN failed with EFAULT does not run again with the same protection",
            "the mail: a guest that writes its protected firmware is killed",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """About one rule in one VM; ``breaches`` say where it was broken."""

    rule: Rule
    verdict: Verdict
    breaches: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The documented form."""
        return {
            "rule": self.rule.id,
            "title": self.rule.title,
            "source": self.rule.source,
            "verdict": str(self.verdict),
            "breaches": list(self.breaches),
        }


@dataclass(slots=True)
class _Slot:
    number: int
    gpa: int
    hva: int
    size: int
    readonly: bool
    writable: bool | None

    @property
    def is_below_4_gib(self) -> bool:
        return self.gpa >= _FIRMWARE_AREA and self.gpa + self.size <= _FOUR_GIB

    @property
    def where(self) -> str:
        return f"slot {self.number} at [{self.gpa:#x}, {self.gpa + self.size:#x})"

    def overlaps(self, hva: int, size: int) -> bool:
        return self.hva < hva + size and hva < self.hva + self.size


@dataclass(slots=True)
class _Walk:
    """One pass over the steps; what is found by rule."""

    is_bios: bool
    slots: dict[int, _Slot] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    breaches: dict[str, list[str]] = field(default_factory=dict)
    asked_vm: int | None = None
    commands: list[str] = field(default_factory=list)
    has_run: bool = False
    fault_pending: bool = False
    firmware: list[_Slot] = field(default_factory=list)
    """Slots that are firmware, or were."""
    lifted: list[_Slot] = field(default_factory=list)
    """Flash whose protection was lifted for a launch command that did not come yet."""
    torn_down: list[_Slot] = field(default_factory=list)
    """Flash whose slot is gone, and whose mapping is still read-only."""

    def check(self, rule: str, ok: bool, breach: str) -> None:
        self.seen.add(rule)
        if not ok:
            self.breaches.setdefault(rule, []).append(breach)

    def take(self, step: KvmStep) -> None:
        match step.kind:
            case StepKind.CAPABILITY:
                if step.name == READONLY_MEM and step.of_vm:
                    self.asked_vm = step.value
            case StepKind.SLOT:
                self.slot(step)
            case StepKind.MAPPING:
                self.mapping(step)
            case StepKind.REGION:
                self.pinned("KVM_MEMORY_ENCRYPT_REG_REGION", step)
            case StepKind.COMMAND:
                self.command(step)
            case StepKind.RUN:
                self.run()
            case StepKind.FAULT:
                self.seen.add("fault-is-final")
                self.fault_pending = True

    def is_firmware(self, slot: _Slot) -> bool:
        """Its memory is that of a firmware image, which may show at a second address."""
        return any(each.overlaps(slot.hva, slot.size) for each in self.firmware)

    def slot(self, step: KvmStep) -> None:
        assert step.slot is not None
        live = self.slots.get(step.slot)
        if step.size == 0:
            if step.errno == 0:
                self.tear_down(self.slots.pop(step.slot, None))
                self.fault_pending = False
            return
        new = _Slot(step.slot, step.gpa, step.hva, step.size, step.readonly, step.writable)
        if live is not None:
            same = (live.hva, live.size, live.readonly) == (new.hva, new.size, new.readonly)
            self.check(
                "slot-changed-by-deletion", same, f"{new.where} replaces {live.where} while it is live"
            )
        if new.readonly:
            asked = self.asked_vm is not None
            self.check("capability-of-vm", asked, f"{new.where} is read-only, and only /dev/kvm was asked")
            offered = not (step.errno and self.asked_vm == 0)
            self.check("readonly-where-offered", offered, f"{new.where}: the VM answered 0, and refused it")
        if step.errno:
            return
        self.slots[step.slot] = new
        self.torn_down = [each for each in self.torn_down if not each.overlaps(new.hva, new.size)]
        if new.is_below_4_gib and not self.is_firmware(new):
            self.firmware.append(new)
        if not new.readonly and new.writable is False:
            self.armed(new)
        elif self.is_firmware(new) and self.is_bios:
            self.seen.add("bios-never-armed")
        elif not self.is_firmware(new):
            self.seen.add("ram-never-armed")

    def tear_down(self, slot: _Slot | None) -> None:
        if slot is None or self.is_bios or slot.readonly or not self.is_firmware(slot):
            return
        if slot.writable is False:
            self.torn_down.append(slot)

    def is_launching(self) -> bool:
        return bool(self.commands) and not self.has_run and _STAGE[self.commands[-1]] < len(_ORDER) - 1

    def mapping(self, step: KvmStep) -> None:
        gone = [slot for slot in self.torn_down if slot.overlaps(step.hva, step.size)]
        if gone and step.writable:
            self.seen.add("writable-without-slot")
            self.torn_down = [slot for slot in self.torn_down if slot not in gone]
        hit = [slot for slot in self.slots.values() if slot.overlaps(step.hva, step.size)]
        for slot in hit:
            if step.writable is False:
                whole = step.hva <= slot.hva and slot.hva + slot.size <= step.hva + step.size
                aligned = step.hva % PAGE_SIZE == 0
                if not slot.readonly:
                    what = f"[{step.hva:#x}, {step.hva + step.size:#x}) of {slot.where} was made read-only"
                    self.check("whole-slot", whole and aligned, what)
                slot.writable = False
                self.armed(slot)
                if slot in self.lifted:
                    self.lifted.remove(slot)
                    what = f"{slot.where} was made writable and read-only again, and not updated meanwhile"
                    self.check("lifted-for-itself", False, what)
            elif step.writable:
                if self.is_launching() and self.is_firmware(slot) and not self.is_bios:
                    self.lifted.append(slot)
                slot.writable = True
                self.fault_pending = False

    def armed(self, slot: _Slot) -> None:
        if slot.readonly:
            return
        if self.is_firmware(slot) and self.is_bios:
            self.check("bios-never-armed", False, f"{slot.where} is firmware in RAM, and was made read-only")
        elif self.is_firmware(slot):
            self.seen.add("whole-slot")
        else:
            self.check("ram-never-armed", False, f"memory of {slot.where} was made read-only")

    def command(self, step: KvmStep) -> None:
        name = step.name
        if name in _PINNED:
            self.pinned(name, step)
            self.beside_flash(name, step)
            self.lifted = [slot for slot in self.lifted if not slot.overlaps(step.hva, step.size)]
        if name == "KVM_SEV_LAUNCH_UPDATE_VMSA":
            self.check("vmsa-once", name not in self.commands, f"{name} came a second time")
        if name == "KVM_SEV_LAUNCH_SECRET":
            measured = "KVM_SEV_LAUNCH_MEASURE" in self.commands
            self.check("secret-after-measure", measured, f"{name} came before KVM_SEV_LAUNCH_MEASURE")
        stage = _STAGE.get(name)
        if stage is None:
            return
        late = [done for done in self.commands if _STAGE[done] > stage]
        self.check("launch-order", not late, f"{name} came after {late[-1] if late else ''}")
        if stage:
            begun = any(_STAGE[done] == 0 for done in self.commands)
            self.check("launch-order", begun, f"{name} came before any of {', '.join(_INIT)}")
        self.check("launch-order", not self.has_run, f"{name} came after the guest ran")
        if step.errno == 0:
            self.commands.append(name)

    def beside_flash(self, name: str, step: KvmStep) -> None:
        for slot in self.slots.values():
            if self.is_bios or slot.readonly or not self.is_firmware(slot):
                continue
            if not slot.overlaps(step.hva, step.size):
                what = f"{name} of other memory while {slot.where} is unprotected"
                self.check("lifted-for-itself", slot.writable is False, what)

    def pinned(self, name: str, step: KvmStep) -> None:
        where = f"[{step.hva:#x}, {step.hva + step.size:#x})"
        self.check(
            "update-writable", step.writable is not False, f"{name} of {where}: its mapping is read-only"
        )

    def look_at_torn_down(self) -> None:
        for slot in self.torn_down:
            what = f"{slot.where} was taken away, and its mapping stayed read-only"
            self.check("writable-without-slot", False, what)
        self.torn_down = []

    def run(self) -> None:
        if self.commands:
            finished = _STAGE[self.commands[-1]] == len(_ORDER) - 1
            self.check("launch-order", finished, f"the guest ran after {self.commands[-1]}")
        self.has_run = True
        for slot in self.slots.values():
            if self.is_firmware(slot) and not self.is_bios:
                protected = slot.readonly or slot.writable is False
                self.check("flash-protected", protected, f"the guest ran with {slot.where} unprotected")
        self.look_at_torn_down()
        if self.fault_pending:
            self.check("fault-is-final", False, "KVM_RUN came again after EFAULT")
            self.fault_pending = False


def judge(steps: Iterable[KvmStep], *, is_bios: bool) -> list[Judgement]:
    """All rules over one VM's steps; ``is_bios``: its firmware is RAM, and not flash."""
    walk = _Walk(is_bios)
    for step in steps:
        walk.take(step)
    walk.look_at_torn_down()
    return list(_judgements(walk))


def _judgements(walk: _Walk) -> Iterator[Judgement]:
    for rule in RULES:
        breaches = tuple(dict.fromkeys(walk.breaches.get(rule.id, ())))
        verdict = Verdict.BROKEN if breaches else Verdict.KEPT if rule.id in walk.seen else Verdict.UNSEEN
        yield Judgement(rule, verdict, breaches)
