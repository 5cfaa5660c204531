from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.confidential_launches import (
    DEBUG_SWAP,
    HASHES,
    MIB,
    UNIT0,
    UNIT1,
    UNIT1_SIZE,
    Launch,
    audit,
    flash_slots,
    readonly_bytes,
    sev_es,
    sev_es_bios,
    write_guest,
    write_kernel,
    write_variables,
)

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import find_era
from casemate.confidential.preparation import LaunchOptions, prepare
from casemate.confidential.setup import InitRequest
from casemate.errors import HostError, SpecError, UnsupportedError
from casemate.events import ViolationKind
from casemate.guests.actions import ask_for_reset, store, store_all, tell, tell_memory
from casemate.guests.entry import IMAGE_SIZE
from casemate.host.clock import GuestClock
from casemate.host.exits import KvmInternalError
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.machine.machine import Machine, Stage
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec
from casemate.memory import flash_memory
from casemate.memory.flash_memory import FlashMode
from casemate.memory.protection import OnWrite, WriteProtection

ARMED_IN_LAUNCH = [
    (0, "armed", "slot added"),
    (1, "armed", "slot added"),
    (0, "lifted", "launch update"),
    (0, "armed", "launch update done"),
]
ATTACK = store(UNIT0 + 0x8000, 0x41) + tell_memory(UNIT0 + 0x8000)
ATTACK_UNIT1 = store(UNIT1 + 0x100, 0x41) + tell_memory(UNIT1 + 0x100)


@dataclass(frozen=True)
class Row:
    """What a guest with flash gets, by what the VM answers, and how its direct write ends there."""

    era: str
    features: tuple[str, ...]
    init: InitRequest
    vm_type: str
    protection: WriteProtection
    end: str


# One host today; each row names what the host's kernel decides, so that a second host only adds its own eras.
ROWS = [
    Row(
        "linux-6.18",
        ("debug-swap",),
        "auto",
        "KVM_X86_SEV_ES_VM",
        WriteProtection.READONLY_VMA,
        "write-protected",
    ),
    Row(
        "linux-6.16",
        ("debug-swap",),
        "auto",
        "KVM_X86_SEV_ES_VM",
        WriteProtection.READONLY_VMA,
        "write-protected",
    ),
    Row(
        "linux-6.11",
        ("debug-swap",),
        "auto",
        "KVM_X86_SEV_ES_VM",
        WriteProtection.READONLY_VMA,
        "write-protected",
    ),
    Row(
        "linux-6.10", ("debug-swap",), "auto", "KVM_X86_SEV_ES_VM", WriteProtection.READONLY_SLOT, "livelock"
    ),
    Row(
        "linux-6.6", ("debug-swap",), "auto", "KVM_X86_DEFAULT_VM", WriteProtection.READONLY_SLOT, "livelock"
    ),
    Row(
        "linux-6.6",
        ("debug-swap",),
        "legacy",
        "KVM_X86_DEFAULT_VM",
        WriteProtection.READONLY_SLOT,
        "livelock",
    ),
    Row("linux-6.18", (), "auto", "KVM_X86_DEFAULT_VM", WriteProtection.READONLY_SLOT, "livelock"),
    Row("linux-6.18", (), "init2", "KVM_X86_SEV_ES_VM", WriteProtection.READONLY_VMA, "write-protected"),
    Row("linux-6.10", (), "init2", "KVM_X86_SEV_ES_VM", WriteProtection.READONLY_SLOT, "livelock"),
    Row("linux-6.1", (), "auto", "KVM_X86_DEFAULT_VM", WriteProtection.READONLY_SLOT, "livelock"),
]


@pytest.mark.parametrize("attack", [ATTACK, ATTACK_UNIT1], ids=["unit 0", "unit 1"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.era} {','.join(row.features)} {row.init}")
def test_sev_es_flash_by_kernel(tmp_path: Path, row: Row, attack: bytes) -> None:
    spec = sev_es(write_guest(tmp_path, attack), write_variables(tmp_path))
    outcome = Launch(spec, LaunchOptions(features=row.features, init=row.init), row.era).run()
    report = outcome.report
    assert report["launch"]["vm_type"] == row.vm_type
    assert {unit["protection"] for unit in report["flash"]} == {row.protection}
    assert report["guest"]["features"] == list(row.features)
    vma = row.protection is WriteProtection.READONLY_VMA
    assert audit(outcome) == (ARMED_IN_LAUNCH if vma else [])
    assert outcome.ending is Ending.VIOLATION
    assert outcome.exit_code == 1
    assert row.end in outcome.detail
    assert report["exit_port"] is None, "the guest went on behind its write"


def test_vma_protection_warns_once_of_what_kvm_lacks_and_of_the_way_out(tmp_path: Path) -> None:
    outcome = Launch(sev_es(write_guest(tmp_path, tell(7))), DEBUG_SWAP).run()
    (warning,) = outcome.report["warnings"]
    assert "KVM has no read-only memory" in warning
    assert "--bios" in warning
    assert outcome.report["exit_port"] == 7


def test_readonly_slots_of_sev_es_name_the_livelock_before_it_happens(tmp_path: Path) -> None:
    outcome = Launch(sev_es(write_guest(tmp_path, tell(7))), DEBUG_SWAP, "linux-6.10").run()
    assert outcome.report["exit_port"] == 7
    assert outcome.report["warnings"] == []
    assert "livelock" in outcome.report["flash"][0]["reason"]


def test_livelock_is_reported_as_a_violation_of_its_own(tmp_path: Path) -> None:
    outcome = Launch(sev_es(write_guest(tmp_path, ATTACK)), era="linux-6.1").run()
    (event,) = outcome.report["writes"]["events"]
    assert event["kind"] == ViolationKind.LIVELOCK
    assert event["kind"].startswith("livelock")
    assert event["gpa"] is event["rip"] is None


def test_bios_guest_never_has_readonly_memory(tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def look(moment: str, machine: Machine) -> None:
        seen[moment] = readonly_bytes(machine)

    payload = store(UNIT0 + 0x8000, 0x41) + tell_memory(UNIT0 + 0x8000)
    guest = Launch(sev_es_bios(write_guest(tmp_path, payload)), DEBUG_SWAP, at=look)
    outcome = guest.run()
    assert set(seen) >= {"LAUNCH_UPDATE_DATA", "LAUNCH_UPDATE_VMSA", "LAUNCH_FINISH", "READY", "END"}
    assert set(seen.values()) == {0}
    assert audit(outcome) == []
    assert outcome.report["warnings"] == []
    assert outcome.report["bios"]["protection"] == WriteProtection.WRITABLE
    assert outcome.report["exit_port"] == 0x41, "--bios firmware of a confidential guest is RAM"
    assert outcome.report["launch"]["vm_type"] == "KVM_X86_SEV_ES_VM"


@pytest.mark.parametrize("make", [sev_es, sev_es_bios], ids=["flash", "bios"])
def test_kernel_hashes_touch_no_protection(tmp_path: Path, make: Callable[..., MachineSpec]) -> None:
    hashes_page: list[int] = []

    def look(moment: str, machine: Machine) -> None:
        hashes_page.append(readonly_bytes(machine, "ram"))

    payload = store(HASHES + 2, 0x41) + tell_memory(HASHES + 2)
    path = write_guest(tmp_path, payload, hashes=True)
    spec = make(path, kernel=write_kernel(tmp_path), append="console=ttyS0")
    guest = Launch(spec, replace(DEBUG_SWAP, kernel_hashes=True), at=look)
    outcome = guest.run()
    firmware, table = guest.host.watcher.updates if guest.host.watcher else (b"", b"")
    assert firmware == path.read_bytes()
    assert len(table) == 176
    assert guest.prepared is not None
    assert [step.data for step in guest.prepared.plan.steps[:2]] == [firmware, table]
    assert set(hashes_page) == {0}
    assert outcome.report["exit_port"] == 0x41, "the guest may write to the page of its hashes"
    windows = [change for change in audit(outcome) if change[2].startswith("launch")]
    lifted_once = [(0, "lifted", "launch update"), (0, "armed", "launch update done")]
    assert windows == ([] if make is sev_es_bios else lifted_once)


def test_kernel_hashes_are_measured_while_unit_0_is_protected(tmp_path: Path) -> None:
    protected: list[int] = []

    def look(moment: str, machine: Machine) -> None:
        if moment == "LAUNCH_UPDATE_DATA":
            protected.append(readonly_bytes(machine, "flash0"))

    path = write_guest(tmp_path, tell(0), hashes=True)
    Launch(
        sev_es(path, kernel=write_kernel(tmp_path)), replace(DEBUG_SWAP, kernel_hashes=True), at=look
    ).run()
    assert protected == [0, IMAGE_SIZE], "the first is the firmware, the second are the hashes"


def test_guest_reads_its_kernel_hashes_and_the_host_sees_ciphertext(tmp_path: Path) -> None:
    path = write_guest(tmp_path, tell_memory(HASHES), hashes=True)
    guest = Launch(sev_es(path, kernel=write_kernel(tmp_path)), replace(DEBUG_SWAP, kernel_hashes=True))
    with guest.assembled() as machine:
        found = machine.platform.map.find(HASHES)
        assert found is not None
        region, offset = found
        host_view = bytes(region.backing.writable.view[offset : offset + 176])  # type: ignore[union-attr]
        assert guest.host.watcher is not None
        assert host_view != guest.host.watcher.updates[1]
    outcome = Launch(
        sev_es(path, kernel=write_kernel(tmp_path)), replace(DEBUG_SWAP, kernel_hashes=True)
    ).run()
    assert outcome.report["exit_port"] == 0x06, "first byte of the table's GUID"


def test_store_of_a_sealed_guest_names_the_armed_units_and_no_address(tmp_path: Path) -> None:
    spec = sev_es(write_guest(tmp_path, ATTACK_UNIT1), write_variables(tmp_path))
    outcome = Launch(spec, DEBUG_SWAP).run()
    assert outcome.detail.endswith("address unknown (protected state); armed: unit 0, unit 1")
    (event,) = outcome.report["writes"]["events"]
    assert event["gpa"] is event["value"] is event["rip"] is event["unit"] is None


@pytest.mark.parametrize("kind", [GuestKind.PLAIN, GuestKind.SEV])
def test_store_of_an_open_guest_is_named_in_full(tmp_path: Path, kind: GuestKind) -> None:
    spec = MachineSpec(
        code=write_guest(tmp_path, ATTACK),
        kind=kind,
        memory=16 * MIB,
        protection="vma",
        on_write=OnWrite.KILL,
    )
    outcome = Launch(spec).run()
    (event,) = outcome.report["writes"]["events"]
    assert (event["unit"], event["gpa"], event["value"]) == (0, UNIT0 + 0x8000, 0x41)
    assert UNIT0 <= event["rip"] < UNIT0 + 0x100
    assert f"{UNIT0 + 0x8000:#x}" in outcome.detail
    assert outcome.exit_code == 1


@pytest.mark.parametrize("init", ["legacy", "init2"])
def test_plain_sev_has_slots_and_no_mprotect(tmp_path: Path, init: InitRequest) -> None:
    payload = store_all([(UNIT1 + 8, 0x10), (UNIT1 + 8, 0x42), (UNIT1 + 8, 0xFF)]) + tell_memory(UNIT1 + 8)
    spec = MachineSpec(
        code=write_guest(tmp_path, payload),
        variables=write_variables(tmp_path),
        kind=GuestKind.SEV,
        memory=16 * MIB,
    )
    outcome = Launch(spec, LaunchOptions(init=init), at=lambda _, machine: _expect_no_readonly(machine)).run()
    assert audit(outcome) == []
    assert outcome.report["exit_port"] == 0x42, "commands of an open guest reach the flash"
    assert {unit["protection"] for unit in outcome.report["flash"]} == {WriteProtection.READONLY_SLOT}


def _expect_no_readonly(machine: Machine) -> None:
    assert readonly_bytes(machine) == 0


@pytest.mark.parametrize("kind", [GuestKind.SNP, GuestKind.TDX])
def test_snp_and_tdx_with_flash_are_refused_before_any_file_is_read(tmp_path: Path, kind: GuestKind) -> None:
    spec = MachineSpec(code=tmp_path / "missing.fd", kind=kind)
    with pytest.raises(SpecError, match="--bios") as refused:
        prepare(spec, LaunchOptions(), ModelHypervisor(GuestClock()))
    assert refused.value.exit_code == 4


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "bios"])
def test_plain_guest_without_readonly_slots_is_refused(tmp_path: Path, flash: bool) -> None:
    path = write_guest(tmp_path, tell(0))
    spec = MachineSpec(code=path) if flash else MachineSpec(bios=path)
    era = find_era("linux-6.18")._replace(open_readonly_memory=False)
    with pytest.raises(UnsupportedError, match="read-only memory slots") as refused:
        Launch(spec, era=era).run()
    assert refused.value.exit_code == 5


def test_features_on_plain_sev_are_refused(tmp_path: Path) -> None:
    spec = MachineSpec(code=write_guest(tmp_path, tell(0)), kind=GuestKind.SEV)
    with pytest.raises(SpecError, match="debug-swap") as refused:
        Launch(spec, DEBUG_SWAP).run()
    assert refused.value.exit_code == 4


class FailingLibc:
    """The n-th mprotect fails, the others are real."""

    def __init__(self, real: object, fails_at: int) -> None:
        self._real = real
        self._left = fails_at

    def mprotect(self, address: int, size: int, prot: int) -> int:
        import ctypes

        self._left -= 1
        if self._left == 0:
            ctypes.set_errno(13)
            return -1
        return int(self._real.mprotect(address, size, prot))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fails_at", "unit", "why"),
    [(1, 0, "slot added"), (2, 1, "slot added"), (3, 0, "launch update"), (4, 0, "launch update done")],
)
def test_failing_mprotect_is_fatal_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, unit: int, why: str
) -> None:
    monkeypatch.setattr(flash_memory, "_libc", FailingLibc(flash_memory._libc, fails_at))
    guest = Launch(sev_es(write_guest(tmp_path, tell(0)), write_variables(tmp_path)), DEBUG_SWAP)
    with pytest.raises(
        HostError, match=rf"mprotect failed: Permission denied.*flash unit {unit}.*, {why}$"
    ) as failed:
        guest.run()
    assert failed.value.exit_code == 5
    assert guest.machine.stage < Stage.READY
    assert "READY" not in guest.moments


def test_failing_update_inside_the_window_leaves_no_running_guest(tmp_path: Path) -> None:
    def fail(moment: str, machine: Machine) -> None:
        if moment == "LAUNCH_UPDATE_DATA":
            assert readonly_bytes(machine, "flash0") == 0
            machines.append(machine)
            raise HostError("KVM_SEV_LAUNCH_UPDATE_DATA", 12)

    machines: list[Machine] = []
    after: list[object] = []
    close = Machine.close

    def look_and_close(machine: Machine) -> None:
        if machines and not after:
            after.extend([readonly_bytes(machine, "flash0"), machine.vcpus.current.run()])
        close(machine)

    guest = Launch(sev_es(write_guest(tmp_path, tell(0))), DEBUG_SWAP, at=fail)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "close", look_and_close)
        with pytest.raises(HostError, match="LAUNCH_UPDATE_DATA"):
            guest.run()
    protected, vm_exit = after
    assert protected == IMAGE_SIZE, "armed again although the update failed"
    assert isinstance(vm_exit, KvmInternalError)
    assert "launch of this guest is not finished" in vm_exit.detail
    assert guest.moments[-1] == "LAUNCH_UPDATE_DATA"
    assert guest.machine.stage is Stage.FIRMWARE_PLACED


def test_unit_0_shows_in_one_slot_of_a_confidential_guest(tmp_path: Path) -> None:
    for kind in (GuestKind.SEV, GuestKind.SEV_ES):
        spec = sev_es(write_guest(tmp_path, tell(0))).replace(kind=kind)
        with Launch(spec).assembled() as machine:
            hvas = [slot.hva for slot in machine.platform.map.slots]
            unit0 = machine.platform.flash[0].memory._backing.writable
            assert sum(unit0.hva <= hva < unit0.hva + unit0.size for hva in hvas) == 1
            assert flash_slots(machine, 0) == 1


def test_units_are_armed_when_their_slots_are_added(tmp_path: Path) -> None:
    spec = sev_es(write_guest(tmp_path, tell(0)), write_variables(tmp_path))
    with Launch(spec, DEBUG_SWAP).assembled() as machine:
        assert readonly_bytes(machine, "flash0") == IMAGE_SIZE
        assert readonly_bytes(machine, "flash1") == UNIT1_SIZE
        assert readonly_bytes(machine, "ram") == 0
        assert [unit.memory.mode for unit in machine.platform.flash] == [FlashMode.ARRAY] * 2


def test_unit_1_is_neither_measured_nor_lifted_nor_encrypted(tmp_path: Path) -> None:
    lifted: list[int] = []

    def look(moment: str, machine: Machine) -> None:
        if moment.startswith("LAUNCH") and len(machine.platform.flash) == 2:
            lifted.append(UNIT1_SIZE - readonly_bytes(machine, "flash1"))

    guest = Launch(sev_es(write_guest(tmp_path, tell(0)), write_variables(tmp_path)), DEBUG_SWAP, at=look)
    with guest.assembled() as machine:
        assert bytes(machine.platform.flash[1].memory.view) == b"\xff" * UNIT1_SIZE
        assert guest.host.watcher is not None
        assert [len(update) for update in guest.host.watcher.updates] == [IMAGE_SIZE]
    assert len(lifted) >= 4
    assert set(lifted) == {0}


def test_unit_0_is_ciphertext_to_the_host_and_its_file_stays_as_it_was(tmp_path: Path) -> None:
    # A combined image that anybody may write to, and a guest that gives every command to it, by a request (GHCB).
    path = write_guest(tmp_path, tell_memory(UNIT0 + 0x9000))
    path.chmod(0o666)
    before = hashlib.sha256(path.read_bytes()).hexdigest()

    def command(moment: str, machine: Machine) -> None:
        if moment == "READY":
            assert machine.platform.flash[0].memory.read(0, 4096) != path.read_bytes()[:4096]
            for value in (0x20, 0xD0, 0x10, 0x41, 0x40, 0x42, 0xE8, 0x00, 0x43, 0xD0, 0x50, 0xFF):
                machine.platform.bus.write_mmio(UNIT0 + 0x9000, 1, value)

    outcome = Launch(sev_es(path), DEBUG_SWAP, at=command).run()
    assert outcome.report["exit_port"] == 0xF4, (
        "the guest still reads the plaintext that it was launched with"
    )
    assert outcome.report["flash"][0]["readonly"] is True
    assert outcome.report["flash"][0]["sha256"] == before
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_reset_of_a_sealed_guest_ends_the_run_with_its_own_outcome(tmp_path: Path) -> None:
    outcome = Launch(sev_es(write_guest(tmp_path, ask_for_reset())), DEBUG_SWAP).run()
    assert outcome.ending is Ending.RESET
    assert "launch it anew" in outcome.detail
    assert outcome.report["guest"]["resets"] == 0


def test_reset_of_a_sev_guest_is_a_reset(tmp_path: Path) -> None:
    # The second time around, RAM tells that it was here before.
    once = b"\x80\x3d\x00\x70\x00\x00\x41\x74" + bytes((len(store(0x7000, 0x41) + ask_for_reset()),))
    payload = once + store(0x7000, 0x41) + ask_for_reset() + tell(9)
    spec = MachineSpec(code=write_guest(tmp_path, payload), kind=GuestKind.SEV, memory=16 * MIB)
    outcome = Launch(spec).run()
    assert outcome.report["exit_port"] == 9
    assert outcome.report["guest"]["resets"] == 1
