"""The machine on the computer's own KVM: protection, endings, signals, resets; skipped where there is none."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.hosts import kvm_or_skip

from casemate.devices.flash.sync import Sync
from casemate.errors import UnsupportedError
from casemate.events import AccessPath
from casemate.guests.entry import IMAGE_SIZE, Bits, make_image
from casemate.guests.user_mode import in_user_mode
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.kvm.modules import loaded_vendor_module
from casemate.host.kvm.userfault import open_userfaultfd
from casemate.host.kvm.vcpu import KvmVcpu
from casemate.host.kvm.vm import KvmVm
from casemate.machine.boot import Attachments, boot
from casemate.machine.machine import Machine
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.spec import MachineSpec
from casemate.memory.protection import OnWrite

UNIT1 = (1 << 32) - 2 * IMAGE_SIZE
TARGET = UNIT1 + 0x1234
STORE = f"bb{TARGET.to_bytes(4, 'little').hex()} c60341"  # mov ebx, TARGET; mov byte [rbx], 0x41
EXIT = "b007 e6f4 ebfe"  # mov al, 7; out 0xf4, al; jmp $


def _word(number: int) -> str:
    return number.to_bytes(4, "little").hex()


protections = pytest.mark.parametrize("protection", ["vma", "view", "uffd"])


@pytest.fixture(autouse=True)
def _kvm() -> None:
    kvm_or_skip()


def run(
    folder: Path,
    code: str,
    bits: Bits = 32,
    *,
    user: bool = False,
    machine: str = "bare",
    timeout: float = 20,
    attachments: Attachments | None = None,
    **options: object,
) -> Outcome:
    payload = bytes.fromhex(code)
    (folder / "code.fd").write_bytes(make_image(in_user_mode(payload) if user else payload, bits))
    (folder / "vars.fd").write_bytes(b"\xee" * IMAGE_SIZE)
    if options.get("protection") == "uffd":
        try:
            os.close(open_userfaultfd())
        except UnsupportedError as reason:
            pytest.skip(str(reason))
    spec = MachineSpec(
        code=folder / "code.fd",
        variables=folder / "vars.fd",
        machine=machine,  # type: ignore[arg-type]
        memory=4 << 20,
        **options,  # type: ignore[arg-type]
    )
    return boot(spec, timeout=timeout, attachments=attachments, hypervisor=lambda clock: KvmHypervisor())


@protections
def test_direct_store_to_protected_flash_is_killed_and_named(tmp_path: Path, protection: str) -> None:
    outcome = run(tmp_path, STORE + EXIT, 64, user=True, protection=protection, on_write=OnWrite.KILL)
    assert (outcome.ending, outcome.exit_code) == (Ending.VIOLATION, 1)
    event = outcome.report["writes"]["events"][0]
    assert (event["unit"], event["gpa"], event["size"]) == (1, TARGET, 1)
    assert event["instruction"] == "mov byte ptr [rbx],41h"
    assert f"{TARGET:#x} in flash unit 1 (offset 0x1234" in outcome.detail
    assert f"by mov byte ptr [rbx],41h at {event['rip']:#x}" in outcome.detail
    assert (tmp_path / "vars.fd").read_bytes() == b"\xee" * IMAGE_SIZE


@protections
def test_supervisor_store_is_killed_whoever_executes_it(tmp_path: Path, protection: str) -> None:
    outcome = run(tmp_path, STORE + EXIT, 64, protection=protection, on_write=OnWrite.KILL)
    assert outcome.ending is Ending.VIOLATION
    event = outcome.report["writes"]["events"][0]
    assert (event["unit"], event["gpa"], event["size"]) == (1, TARGET, 1)
    if loaded_vendor_module() == "kvm_pvm":
        assert "executed by the host's instruction emulator" in outcome.detail
    else:
        assert "by mov byte ptr [rbx],41h at" in outcome.detail


@protections
@pytest.mark.parametrize("user", [True, False], ids=["user", "supervisor"])
def test_dropped_store_changes_nothing_and_the_guest_goes_on(
    tmp_path: Path, protection: str, user: bool
) -> None:
    outcome = run(tmp_path, STORE + EXIT, 64, user=user, protection=protection, on_write=OnWrite.DROP)
    assert outcome.ending is Ending.EXIT_PORT
    assert outcome.report["exit_port"] == 7
    assert outcome.report["writes"]["violations"] == 1
    assert (tmp_path / "vars.fd").read_bytes() == b"\xee" * IMAGE_SIZE


@protections
@pytest.mark.parametrize("user", [True, False], ids=["user", "supervisor"])
def test_allow_once_lets_exactly_one_store_through(tmp_path: Path, protection: str, user: bool) -> None:
    # mov rax, 0x1122334455667788; mov ebx, TARGET + 8; mov [rbx], rax
    code = f"{STORE} 48b8 8877665544332211 bb{_word(TARGET + 8)} 488903 {EXIT}"
    outcome = run(tmp_path, code, 64, user=user, protection=protection, on_write=OnWrite.ALLOW_ONCE)
    assert outcome.ending is Ending.VIOLATION
    assert outcome.report["writes"]["violations"] == 2
    assert outcome.report["writes"]["events"][1]["value"] == 0x1122334455667788
    expected = bytearray(b"\xee" * IMAGE_SIZE)
    expected[0x1234] = 0x41
    assert outcome.report["flash"][1]["sha256"] == hashlib.sha256(expected).hexdigest()
    assert (tmp_path / "vars.fd").read_bytes() == b"\xee" * IMAGE_SIZE


def test_userfaultfd_names_the_page_and_the_way(tmp_path: Path) -> None:
    outcome = run(tmp_path, STORE + EXIT, 64, user=True, protection="uffd", on_write=OnWrite.KILL)
    event = outcome.report["writes"]["events"][0]
    assert (event["path"], event["gpa"], event["value"]) == ("userfaultfd", TARGET, 0x41)
    assert event["vcpu"] == 0
    assert outcome.report["flash"][1]["protection"] == "userfault"


def test_userfaultfd_is_refused_by_name_without_privilege() -> None:
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1":
        pytest.skip("vm.unprivileged_userfaultfd is 1: everybody may")
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(UnsupportedError, match=r"vm\.unprivileged_userfaultfd.*CAP_SYS_PTRACE"):
            os.close(open_userfaultfd())
    finally:
        os.seteuid(before)


@pytest.mark.parametrize(
    ("protection", "on_write"), [("slot", None), ("vma", OnWrite.DROP), ("uffd", OnWrite.DROP)]
)
def test_ten_thousand_violations_neither_hang_nor_grow(
    tmp_path: Path, protection: str, on_write: OnWrite | None
) -> None:
    # mov ecx, 10000; 1: mov byte [rbx], 0x41; dec ecx; jnz 1b
    code = f"bb{_word(TARGET)} b910270000 c60341 ffc9 75f9 {EXIT}"
    outcome = run(tmp_path, code, 64, user=True, timeout=200, protection=protection, on_write=on_write)
    assert outcome.ending is Ending.EXIT_PORT
    assert outcome.report["writes"]["violations"] == 10_000
    assert len(outcome.report["writes"]["events"]) == 1000
    assert (tmp_path / "vars.fd").read_bytes() == b"\xee" * IMAGE_SIZE


def test_flash_commands_program_a_byte(tmp_path: Path) -> None:
    program = "".join(f"c605{TARGET.to_bytes(4, 'little').hex()}{value:02x}" for value in (0x10, 0x41, 0xFF))
    outcome = run(tmp_path, program + EXIT)
    assert outcome.ending is Ending.EXIT_PORT
    assert (tmp_path / "vars.fd").read_bytes()[0x1234] == 0x41


PROGRAM_ALL = (  # mov edi, UNIT1; mov ecx, 4096; 1: mov byte [edi], 0x10; mov [edi], cl; inc edi; loop 1b
    f"bf {_word(UNIT1)} b9 {_word(4096)} c60710 880f 47 e2f8"
)
NO_COMMAND = "c60742"  # mov byte [edi], 0x42


@pytest.mark.parametrize(
    ("options", "late"),
    [
        ({}, True),
        ({"on_write": OnWrite.DROP}, True),
        ({"on_write": OnWrite.KILL}, False),
        ({"sync": Sync.IDLE}, True),
        ({"sync": Sync.ALWAYS}, False),
    ],
    ids=["default", "drop", "kill", "idle", "always"],
)
def test_programming_costs_few_exits_unless_each_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], late: bool
) -> None:
    made: list[KvmVcpu] = []
    create = KvmVm.create_vcpu

    def keep(vm: KvmVm, *arguments: Any, **more: Any) -> KvmVcpu:
        made.append(create(vm, *arguments, **more))
        return made[-1]

    monkeypatch.setattr(KvmVm, "create_vcpu", keep)
    outcome = run(tmp_path, f"{PROGRAM_ALL} c647ffff {EXIT}", timeout=60, **options)  # type: ignore[arg-type]
    assert outcome.ending is Ending.EXIT_PORT
    assert made[0].runs < 100 if late else made[0].runs > 8000
    report = outcome.report
    assert (report["writes"]["programs"], report["writes"]["violations"]) == (4096, 0)
    data = (tmp_path / "vars.fd").read_bytes()
    assert data[:4097] == bytes(-i & 0xFF for i in range(4096)) + b"\xee"
    assert report["flash"][1]["sha256"] == hashlib.sha256(data).hexdigest()


def test_programs_of_a_guest_without_other_accesses_reach_the_file(tmp_path: Path) -> None:
    machines: list[Machine] = []

    def end_when_all_is_there(finished: threading.Event, seconds: float) -> None:
        if (tmp_path / "vars.fd").read_bytes()[4094:4097] == b"\x02\x01\xee":
            machines[0].state.end(Ending.UNTIL)
        finished.wait(seconds)

    attachments = Attachments(on_start=machines.append, wait=end_when_all_is_there)
    outcome = run(tmp_path, f"{PROGRAM_ALL} ebfe", timeout=60, attachments=attachments)
    assert outcome.ending is Ending.UNTIL


def test_late_byte_that_is_no_command_is_told_without_the_instruction(tmp_path: Path) -> None:
    outcome = run(tmp_path, f"{PROGRAM_ALL} {NO_COMMAND} {EXIT}", timeout=60)
    (event,) = outcome.report["writes"]["events"]
    assert (event["kind"], event["gpa"]) == ("byte that is no flash command", UNIT1 + 4096)
    assert (event["size"], event["value"], event["unit"]) == (1, 0x42, 1)
    assert (event["path"], event["rip"], event["vcpu"]) == (AccessPath.COALESCED, None, None)


def test_killed_guest_is_told_with_the_instruction(tmp_path: Path) -> None:
    outcome = run(tmp_path, f"{PROGRAM_ALL} {NO_COMMAND} {EXIT}", timeout=60, on_write=OnWrite.KILL)
    assert outcome.ending is Ending.VIOLATION
    assert "mov byte ptr [edi],42h" in outcome.detail


def test_reset_goes_back_to_the_reset_vector(tmp_path: Path) -> None:
    # [0x1000] counts: the first two starts ask for a reset by port 0xCF9
    code = f"ff05 00100000 833d 00100000 03 7408 66baf90c b006 ee f4 {EXIT}"
    outcome = run(tmp_path, code, machine="q35")
    assert outcome.ending is Ending.EXIT_PORT
    assert outcome.report["guest"]["resets"] == 2


def test_triple_fault_ends_the_run(tmp_path: Path) -> None:
    outcome = run(tmp_path, "0f011c25 00100000 0f0b", 64)  # lidt of nothing, ud2
    assert (outcome.ending, outcome.exit_code) == (Ending.TRIPLE_FAULT, 1)


def test_instruction_that_the_host_cannot_execute_is_named(tmp_path: Path) -> None:
    # fninit; fld1; fstp dword [rbx], into a read-only slot: no KVM emulates x87 writes
    outcome = run(tmp_path, f"{STORE[:10]} dbe3 d9e8 d91b {EXIT}", 64)
    assert (outcome.ending, outcome.exit_code) == (Ending.HOST_LIMIT, 5)
    assert "KVM internal error EMULATION" in outcome.detail
    assert "(f" in outcome.detail


def test_halted_guest_times_out(tmp_path: Path) -> None:
    (tmp_path / "guest.bin").write_bytes(make_image(b"\xfa\xf4\xeb\xfc"))
    spec = MachineSpec(bios=tmp_path / "guest.bin", memory=4 << 20)
    outcome = boot(spec, timeout=0.3, hypervisor=lambda clock: KvmHypervisor())
    assert outcome.ending is Ending.TIMEOUT


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_busy_guest(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "guest.bin").write_bytes(make_image(bytes.fromhex("66baf803 b041 ee ebfe"), 32))
    arguments = ["boot", "--host", "kvm", "--bios", str(tmp_path / "guest.bin"), "--memory", "4M"]
    with subprocess.Popen(
        [sys.executable, "-m", "casemate", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"A"
        process.send_signal(number)
        assert process.wait() == code
