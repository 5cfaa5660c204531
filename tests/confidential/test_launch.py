from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from support.confidential_launches import (
    DEBUG_SWAP,
    MIB,
    UNIT0,
    Launch,
    readonly_bytes,
    sev_es,
    sev_es_bios,
    write_guest,
    write_kernel,
    write_variables,
)

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import find_era
from casemate.abi.sev.secret import SecretHeader, secret_mac_message
from casemate.abi.sev.status import SevStatus
from casemate.address import Hva
from casemate.confidential.dry_run import dry_run
from casemate.confidential.preparation import LaunchOptions, LaunchSecret, prepare
from casemate.confidential.stages import launch
from casemate.errors import (
    FirmwareStatusError,
    HostError,
    ImageError,
    InsecureError,
    InternalError,
    SpecError,
    UnsupportedError,
)
from casemate.guests.actions import store, tell, tell_memory
from casemate.guests.entry import IMAGE_SIZE
from casemate.host.clock import GuestClock
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.secure_processor import TransportKeys, VcpuReset
from casemate.machine.machine import Machine, Stage
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec

KEYS = TransportKeys(tek=bytes(range(16)), tik=bytes(range(16, 32)))
SECRET_GPA = 0x9000


def test_launch_goes_in_the_documented_order(tmp_path: Path) -> None:
    path = write_guest(tmp_path, tell(7), hashes=True)
    spec = sev_es(path, write_variables(tmp_path), kernel=write_kernel(tmp_path))
    guest = Launch(spec, replace(DEBUG_SWAP, kernel_hashes=True))
    guest.run()
    assert guest.moments == [
        "LAUNCH_START",
        *["REG_REGION"] * 3,
        *["LAUNCH_UPDATE_DATA"] * 2,
        "LAUNCH_UPDATE_VMSA",
        "LAUNCH_MEASURE",
        "LAUNCH_FINISH",
        "READY",
        "END",
    ]


def test_launch_of_sev_has_no_save_areas(tmp_path: Path) -> None:
    spec = MachineSpec(code=write_guest(tmp_path, tell(7)), kind=GuestKind.SEV, memory=16 * MIB)
    guest = Launch(spec)
    guest.run()
    assert "LAUNCH_UPDATE_VMSA" not in guest.moments
    assert guest.moments.count("LAUNCH_UPDATE_DATA") == 1


def test_regions_are_registered_while_they_are_writable(tmp_path: Path) -> None:
    def look(moment: str, machine: Machine) -> None:
        if moment == "REG_REGION":
            newest = machine.platform.blocks[-1]
            registered.append(newest.name)
            assert readonly_bytes(machine, newest.name) == 0

    registered: list[str] = []
    Launch(sev_es(write_guest(tmp_path, tell(0)), write_variables(tmp_path)), DEBUG_SWAP, at=look).run()
    assert registered == ["casemate-ram", "casemate-flash0", "casemate-flash1"]


@pytest.mark.parametrize("pins", [True, False])
def test_launch_works_whether_or_not_registering_pins_for_writing(tmp_path: Path, pins: bool) -> None:
    era = find_era("linux-6.18")._replace(register_region_pins_for_writing=pins)
    outcome = Launch(sev_es(write_guest(tmp_path, tell(7)), write_variables(tmp_path)), DEBUG_SWAP, era).run()
    assert outcome.report["exit_port"] == 7


@pytest.mark.parametrize("pins", [True, False])
def test_registering_protected_memory_depends_on_the_pin(tmp_path: Path, pins: bool) -> None:
    era = find_era("linux-6.18")._replace(register_region_pins_for_writing=pins)
    guest = Launch(sev_es(write_guest(tmp_path, tell(7))), DEBUG_SWAP, era)
    with guest.assembled() as machine:
        mapping = machine.platform.flash[0].memory._backing.writable
        assert guest.host.watcher is not None
        if pins:
            with pytest.raises(HostError, match="cannot be written to"):
                guest.host.watcher.inner.register_region(mapping.hva, mapping.size)
        else:
            guest.host.watcher.inner.register_region(mapping.hva, mapping.size)


def test_update_of_protected_memory_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    seen: list[str] = []

    def update_too_early(moment: str, machine: Machine) -> None:
        if moment == "LAUNCH_UPDATE_VMSA":
            memory = machine.platform.flash[0].memory
            before = bytes(memory.view)
            assert guest.host.watcher is not None
            with pytest.raises(
                HostError, match=r"LAUNCH_UPDATE_DATA.*Cannot allocate memory.*cannot be written to"
            ):
                guest.host.watcher.inner.launch_update_data(Hva(memory._backing.writable.hva), 4096)
            assert bytes(memory.view) == before
            seen.append(moment)

    guest = Launch(sev_es(write_guest(tmp_path, tell(0))), DEBUG_SWAP, at=update_too_early)
    outcome = guest.run()
    assert seen
    assert guest.prepared is not None
    assert outcome.report["launch"]["digest"] == guest.prepared.digest.hex()


def test_stages_cannot_be_gone_through_twice_or_out_of_order(tmp_path: Path) -> None:
    host = ModelHypervisor(GuestClock())
    prepared = prepare(sev_es(write_guest(tmp_path, tell(0))), DEBUG_SWAP, host)
    guest = Launch(sev_es(write_guest(tmp_path, tell(0))), DEBUG_SWAP)
    with guest.assembled() as machine:
        with pytest.raises(FirmwareStatusError, match="LAUNCH_START") as refused:
            launch(machine, prepared)
        assert refused.value.status == SevStatus.INVALID_GUEST_STATE
        assert refused.value.exit_code == 5
        assert "running, not uninit" in str(refused.value)


def test_machine_is_not_ready_between_the_stages(tmp_path: Path) -> None:
    def look(moment: str, machine: Machine) -> None:
        stages.setdefault(moment, machine.stage)

    stages: dict[str, Stage] = {}
    Launch(sev_es(write_guest(tmp_path, tell(0))), DEBUG_SWAP, at=look).run()
    assert stages["LAUNCH_START"] is Stage.CREATED
    assert stages["LAUNCH_FINISH"] is Stage.FIRMWARE_PLACED
    assert stages["READY"] is Stage.READY


def test_plain_vm_cannot_be_launched(tmp_path: Path) -> None:
    path = write_guest(tmp_path, tell(0))
    prepared = prepare(sev_es(path), DEBUG_SWAP, ModelHypervisor(GuestClock()))
    with (
        Launch(MachineSpec(code=path, memory=16 * MIB)).assembled() as machine,
        pytest.raises(InternalError, match="no secure processor"),
    ):
        launch(machine, prepared)


@pytest.mark.parametrize(
    ("kind", "policy"), [(GuestKind.SEV, 0x5), (GuestKind.SEV_ES, 0x1), (GuestKind.SEV, 1 << 32)]
)
def test_policy_of_another_kind_is_refused_before_the_launch(
    tmp_path: Path, kind: GuestKind, policy: int
) -> None:
    spec = sev_es(write_guest(tmp_path, tell(0))).replace(kind=kind)
    with pytest.raises(SpecError, match=f"policy {policy:#x}") as refused:
        Launch(spec, LaunchOptions(policy=policy)).run()
    assert refused.value.exit_code == 4


def test_policy_that_needs_a_newer_firmware_is_refused_by_the_firmware(tmp_path: Path) -> None:
    with pytest.raises(FirmwareStatusError, match=r"LAUNCH_START.*policy") as refused:
        Launch(sev_es(write_guest(tmp_path, tell(0))), LaunchOptions(policy=0x00020005)).run()
    assert refused.value.status == SevStatus.POLICY_FAILURE


def test_unknown_feature_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'debugswap' is not known; .*debug-swap") as refused:
        Launch(sev_es(write_guest(tmp_path, tell(0))), LaunchOptions(features=("debugswap",))).run()
    assert refused.value.exit_code == 4


def test_feature_that_kvm_does_not_give_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"secure-tsc.*it offers debug-swap") as refused:
        Launch(sev_es(write_guest(tmp_path, tell(0))), LaunchOptions(features=("secure-tsc",))).run()
    assert refused.value.exit_code == 5


def test_lock_limit_that_is_too_small_is_named_with_its_remedy(tmp_path: Path) -> None:
    guest = Launch(sev_es(write_guest(tmp_path, tell(0))), DEBUG_SWAP, lock_limit=8 * MIB)
    with pytest.raises(HostError, match=r"REG_REGION.*RLIMIT_MEMLOCK.*ulimit -l") as refused:
        guest.run()
    assert refused.value.exit_code == 5
    assert guest.machine.stage < Stage.READY


def test_lock_limit_counts_all_regions_and_gives_updates_back(tmp_path: Path) -> None:
    path = write_guest(tmp_path, tell(7))
    enough = 16 * MIB + 2 * IMAGE_SIZE
    assert Launch(sev_es(path), DEBUG_SWAP, lock_limit=enough).run().report["exit_port"] == 7
    with pytest.raises(HostError, match=r"LAUNCH_UPDATE_DATA.*exceed the limit"):
        Launch(sev_es(path), DEBUG_SWAP, lock_limit=enough - 4096).run()


def test_digest_that_is_not_expected_is_refused_before_there_is_a_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelHypervisor, "create_vm", lambda *_: pytest.fail("a VM was made"))
    with pytest.raises(InsecureError, match="expected is 0000") as refused:
        Launch(sev_es(write_guest(tmp_path, tell(0))), replace(DEBUG_SWAP, expected_digest=bytes(32))).run()
    assert refused.value.exit_code == 3


def test_expected_digest_lets_the_guest_run(tmp_path: Path) -> None:
    spec = sev_es(write_guest(tmp_path, tell(7)))
    digest = prepare(spec, DEBUG_SWAP, ModelHypervisor(GuestClock())).digest
    assert Launch(spec, replace(DEBUG_SWAP, expected_digest=digest)).run().report["exit_port"] == 7


def test_measurement_is_verified_with_the_key_of_the_session(tmp_path: Path) -> None:
    guest = Launch(sev_es(write_guest(tmp_path, tell(0))), replace(DEBUG_SWAP, keys=KEYS))
    measurement = guest.run().report["measurement"]
    assert measurement["verified"] is True
    assert guest.prepared is not None
    version = bytes((measurement["api_major"], measurement["api_minor"], measurement["build_id"]))
    message = (
        b"\x04" + version + bytes((5, 0, 0, 0)) + guest.prepared.digest + bytes.fromhex(measurement["nonce"])
    )
    assert measurement["mac"] == hmac.new(KEYS.tik, message, hashlib.sha256).hexdigest()


def test_measurement_without_a_key_is_called_unverified(tmp_path: Path) -> None:
    measurement = Launch(sev_es(write_guest(tmp_path, tell(0))), DEBUG_SWAP).run().report["measurement"]
    assert measurement["verified"] is None
    assert measurement["note"] == "unverified: no TIK"


def test_every_launch_has_another_nonce_and_measurement(tmp_path: Path) -> None:
    spec, options = sev_es(write_guest(tmp_path, tell(0))), replace(DEBUG_SWAP, keys=KEYS)
    first, second = (Launch(spec, options).run().report["measurement"] for _ in range(2))
    assert first["nonce"] != second["nonce"]
    assert first["mac"] != second["mac"]


def test_host_that_measures_something_else_gets_no_running_guest(tmp_path: Path) -> None:
    def cheat(moment: str, machine: Machine) -> None:
        if moment == "LAUNCH_UPDATE_VMSA":
            region, offset = machine.platform.map.find(0x5000) or (None, 0)
            assert guest.host.watcher is not None
            hva = Hva(region.backing.writable.hva + offset)  # type: ignore[union-attr]
            guest.host.watcher.inner.launch_update_data(hva, 4096)

    guest = Launch(sev_es(write_guest(tmp_path, tell(0))), replace(DEBUG_SWAP, keys=KEYS), at=cheat)
    with pytest.raises(InsecureError, match="does not prove the digest") as refused:
        guest.run()
    assert refused.value.exit_code == 3
    assert "LAUNCH_FINISH" not in guest.moments


def test_firmware_that_changes_after_it_was_planned_is_refused(tmp_path: Path) -> None:
    path = write_guest(tmp_path, tell(0))

    def change(moment: str, machine: Machine) -> None:
        if moment == "REG_REGION" and machine.firmware[0].data == path.read_bytes():
            machine.firmware[0].data = bytes(IMAGE_SIZE)

    with pytest.raises(ImageError, match="changed between planning"):
        Launch(sev_es(path), DEBUG_SWAP, at=change).run()


def test_hashes_area_outside_of_ram_is_refused(tmp_path: Path) -> None:
    guest = write_guest(tmp_path, tell(0), hashes=True)
    spec = sev_es(guest, kernel=write_kernel(tmp_path)).replace(memory=4 * MIB)
    with pytest.raises(SpecError, match=r"kernel hashes belongs at 0x80cc00.*--memory"):
        Launch(spec, replace(DEBUG_SWAP, kernel_hashes=True)).run()


def test_hashes_without_a_kernel_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--kernel"):
        Launch(sev_es(write_guest(tmp_path, tell(0))), replace(DEBUG_SWAP, kernel_hashes=True)).run()


class Owner(Launch):
    """A guest whose owner sends a secret once the measurement is there, as one over a network would."""

    def send(self, tamper: bool = False) -> None:
        assert self.host.watcher is not None
        measure = self.host.watcher.inner.launch_measure

        def measure_and_send() -> object:
            measurement = measure()
            iv, plain = bytes(16), b"open sesame 1234"
            cipher = Cipher(algorithms.AES(KEYS.tek), modes.CTR(iv)).encryptor()
            data = cipher.update(plain)
            mac = hmac.new(
                KEYS.tik, secret_mac_message(0, iv, data, measurement.mac), hashlib.sha256
            ).digest()
            packet = SecretHeader(
                0, (type(SecretHeader().iv))(*iv), (type(SecretHeader().mac))(*mac)
            ).to_bytes()
            data = data[:-1] + bytes((data[-1] ^ tamper,))
            assert self.prepared is not None
            object.__setattr__(
                self.prepared,
                "options",
                replace(self.prepared.options, secret=LaunchSecret(packet, data, SECRET_GPA)),
            )
            return measurement

        self.host.watcher.inner.launch_measure = measure_and_send  # type: ignore[assignment, method-assign]


def test_secret_reaches_the_guest_and_not_the_host(tmp_path: Path) -> None:
    def send(moment: str, machine: Machine) -> None:
        if moment == "LAUNCH_START":
            guest.send()
        if moment == "READY":
            region, offset = machine.platform.map.find(SECRET_GPA) or (None, 0)
            host_view.append(bytes(region.backing.writable.view[offset : offset + 16]))  # type: ignore[union-attr]

    host_view: list[bytes] = []
    spec = sev_es(write_guest(tmp_path, tell_memory(SECRET_GPA)))
    guest = Owner(spec, replace(DEBUG_SWAP, keys=KEYS), at=send)
    assert guest.run().report["exit_port"] == ord("o")
    assert host_view
    assert b"sesame" not in host_view[0]
    assert host_view[0] != bytes(16)


def test_secret_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    guest = Owner(
        sev_es(write_guest(tmp_path, tell(0))),
        replace(DEBUG_SWAP, keys=KEYS),
        at=lambda moment, _: guest.send(tamper=True) if moment == "LAUNCH_START" else None,
    )
    with pytest.raises(FirmwareStatusError, match="LAUNCH_SECRET") as refused:
        guest.run()
    assert refused.value.status == SevStatus.BAD_MEASUREMENT
    assert "READY" not in guest.moments


def test_guest_with_more_vcpus_than_the_host_runs_stops_after_its_launch(tmp_path: Path) -> None:
    spec = sev_es(write_guest(tmp_path, tell(7), hashes=True))
    outcome = Launch(spec, replace(DEBUG_SWAP, vcpus=17)).run()
    assert outcome.ending is Ending.LAUNCHED
    assert "this host runs 16 vCPU of 17" in outcome.detail
    assert outcome.report["launch"]["vcpus"] == 17
    assert outcome.report["exit_port"] is None


def test_guest_stores_to_its_private_memory_and_reads_it_back(tmp_path: Path) -> None:
    payload = store(UNIT0 + 0x9000, 0x43) + tell_memory(UNIT0 + 0x9000)
    assert Launch(sev_es_bios(write_guest(tmp_path, payload))).run().report["exit_port"] == 0x43


@pytest.mark.parametrize("make", [sev_es, sev_es_bios], ids=["flash", "bios"])
@pytest.mark.parametrize("era", ["linux-6.18", "linux-6.10", "linux-6.6"])
def test_dry_run_says_what_the_boot_then_does(tmp_path: Path, make: object, era: str) -> None:
    path = write_guest(tmp_path, tell(7), hashes=True)
    more = {"variables": write_variables(tmp_path)} if make is sev_es else {}
    spec = make(path, kernel=write_kernel(tmp_path), **more)  # type: ignore[operator]
    options = replace(DEBUG_SWAP, kernel_hashes=True)
    host = ModelHypervisor(GuestClock(), era=era)
    planned = dry_run(prepare(spec, options, host), host)
    guest = Launch(spec, options, era)
    with guest.assembled() as machine:
        slots = {(slot.range.start, slot.range.size) for slot in machine.platform.map.slots}
    outcome = Launch(spec, options, era).run()
    assert planned["digest"] == outcome.report["launch"]["digest"]
    assert {(slot["gpa"], slot["size"]) for slot in planned["slots"]} == slots
    assert planned["warnings"] == outcome.report["warnings"]
    commands = [row["command"] for row in outcome.report["launch"]["commands"]]
    launch_rows = [row["command"] for row in planned["ioctls"]]
    ours = [name for name in launch_rows if "LAUNCH" in name or "REG_REGION" in name]
    assert ours == commands
    assert launch_rows[1] == outcome.report["launch"]["init"]
    assert launch_rows.count("mprotect") == len(outcome.report["protection_audit"])


def test_vcpu_signature_is_measured(tmp_path: Path) -> None:
    spec, host = sev_es(write_guest(tmp_path, tell(0))), ModelHypervisor(GuestClock())
    one, other = (prepare(spec, replace(DEBUG_SWAP, signature=signature), host) for signature in (1, 2))
    assert one.digest != other.digest
    assert one.vcpus == (VcpuReset(0xFFFFFFF0, 1),)
