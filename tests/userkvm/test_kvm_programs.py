"""Small VMMs on the modelled KVM: coherence, faults, errors, and what is left of VMs (Linux api.rst)."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from support.vmm_programs import Vmm

from casemate.cli import vmm_child
from casemate.errors import UnsupportedError
from casemate.userkvm.options import OPTIONS, Options

CODE = "rewritten_code"


def sees_writes_into_code() -> bool:
    """Whether this process may handle the kernel's own faults (Linux userfaultfd(2))."""
    allowed = Path("/proc/sys/vm/unprivileged_userfaultfd")
    return os.geteuid() == 0 or (allowed.exists() and allowed.read_text().strip() == "1")


@pytest.mark.skipif(not sees_writes_into_code(), reason="userfaultfd(2) serves no faults of the kernel here")
def test_code_that_a_vmm_rewrites_is_what_its_guest_executes(run_vmm: Vmm) -> None:
    values = [line.split()[6] for line in run_vmm(CODE).stdout.splitlines() if "exit" in line]
    # Step 1 writes 0x22; step 3 has the kernel write 0 into the same page, by read(2).
    assert values[:5] == ["11", "11", "22", "22", "0"]


def test_store_to_a_mapping_that_was_made_readonly_is_efault_until_it_is_lifted(run_vmm: Vmm) -> None:
    ran = run_vmm(CODE)
    lines = ran.stdout.splitlines()
    assert lines[5] == f"5 errno {errno.EFAULT} stored 55"
    assert lines[6].endswith("stored 55")
    assert "1 bytes at 0x1000 by the instruction at 0xfff4" in ran.stderr
    assert "armed (read-only)" in ran.stderr
    assert "lifted" in ran.stderr


def test_random_ioctls_give_an_errno_and_never_a_crash(run_vmm: Vmm) -> None:
    ran = run_vmm("random_ioctls", "50000", options=("--quiet",))
    assert (ran.returncode, ran.stdout) == (0, "survived\n")
    assert "Traceback" not in ran.stderr
    assert "internal error" not in ran.stderr


def test_vms_that_are_gone_leave_no_descriptor_thread_or_mapping(run_vmm: Vmm) -> None:
    ran = run_vmm("lives_and_deaths", "40")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == "version of the copy 12"
    assert lines[1] == "more descriptors 0 threads 0 mappings few"
    assert lines[2] == "child -1 Input/output error"


def test_thread_that_ends_in_the_middle_of_kvm_run_stops_no_other_vcpu(run_vmm: Vmm) -> None:
    assert run_vmm("ended_threads").stdout.splitlines() == [
        "pthread_cancel: ended cancelled, 100 and 100 writes",
        "pthread_cancel, deferred: ended cancelled, 100 and 100 writes",
        "pthread_exit in a handler: ended by its handler, 100 and 100 writes",
        "siglongjmp in a handler: ended by a jump, 100 and 100 writes",
    ]


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        ("KVM_RUN:3=EAGAIN", f"2 errno {errno.EAGAIN} stored 55"),
        ("KVM_RUN:1=ENOMEM", f"0 errno {errno.ENOMEM} stored 0"),
    ],
)
def test_planned_fault_meets_the_call_that_it_is_for(run_vmm: Vmm, rule: str, shown: str) -> None:
    ran = run_vmm(CODE, options=("--fault", rule))
    assert shown in ran.stdout.splitlines()
    assert rule.partition("=")[0] in ran.stderr


def test_log_has_every_ioctl_with_its_argument_and_result(run_vmm: Vmm, tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    run_vmm(CODE, options=("--log", str(log)))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    regions = [row for row in rows if row["ioctl"] == "KVM_SET_USER_MEMORY_REGION"]
    assert [row["argument"]["guest_phys_addr"] for row in regions] == [0xFFFF0000, 0x1000]
    runs = [row for row in rows if row["ioctl"] == "KVM_RUN"]
    assert [row["errno"] for row in runs] == [None] * 5 + ["EFAULT"] + [None] * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_log_that_cannot_be_written_ends_and_the_guest_goes_on(run_vmm: Vmm) -> None:
    logged, plain = run_vmm(CODE, options=("--log", "/dev/full")), run_vmm(CODE)
    assert (logged.returncode, logged.stdout) == (plain.returncode, plain.stdout)
    told = [line for line in logged.stderr.splitlines() if "/dev/full" in line]
    assert told == [
        "casemate: the log /dev/full cannot be written, and ends here: No space left on device"
    ], logged.stderr
    assert "Traceback" not in logged.stderr


def test_summary_counts_exits_and_names_the_era(run_vmm: Vmm) -> None:
    ran = run_vmm(CODE, options=("--json", "--era", "linux-6.8"))
    summary = json.loads(ran.stderr[ran.stderr.index("\n{") :])
    assert (summary["host"], summary["era"]) == ("modelled", "linux-6.8")
    (vm,) = summary["vms"]
    assert (vm["exits"]["KVM_RUN"], vm["exits"]["KVM_EXIT_IO"]) == (8, 7)
    assert len(vm["violations"]) == 1


def test_guest_that_never_stops_erring_fills_neither_the_terminal_nor_the_summary(run_vmm: Vmm) -> None:
    ran = run_vmm("many_messages", "1000", options=("--json",))
    assert ran.stdout == "internal errors 1000\n"
    messages = json.loads(ran.stderr[ran.stderr.index("\n{") :])["messages"]
    assert len(messages) == 21
    assert len(set(messages[:20])) == 1
    assert messages[20] == "further messages are not shown"
    shown = ran.stderr[: ran.stderr.index("\n{")].splitlines()
    assert shown[1:] == [f"casemate: {message}" for message in messages]


def test_vector_that_waits_is_told_even_where_kvm_run_returns_at_once(run_vmm: Vmm) -> None:
    assert run_vmm("queued_interrupt").stdout.split("\n") == [
        "port 0x80: ready 1",
        "at once: Interrupted system call, ready 0",
        "once more: File exists",
        "port 0x90: ready 0",
        "hlt: ready 1",
        "",
    ]


def test_memory_of_a_guest_is_read_and_written_for_a_debugger_where_its_policy_allows_it(
    run_vmm: Vmm,
) -> None:
    allowed, forbidden = run_vmm("sev_debug").stdout.split("policy ")[1:]
    assert allowed.splitlines() == [
        "0x0",
        "too early Input/output error 2",
        "write ok 0",
        "read ok 0",
        "nowhere Cannot allocate memory 0",
        "to nowhere Bad address 0",
        "nothing Invalid argument 0",
        "right all, hidden from the host yes",
    ]
    assert forbidden.splitlines() == [
        "0x1",
        *(f"{what} Input/output error 7" for what in ("too early", "write", "read", "nowhere", "to nowhere")),
        "nothing Invalid argument 0",
        "right not all, hidden from the host yes",
    ]


def test_debug_and_migration_commands_fail_as_kernel_and_firmware_refuse_them(run_vmm: Vmm) -> None:
    lines = run_vmm("refused_commands").stdout.splitlines()
    assert lines == [
        "plain: debug Inappropriate ioctl for device 0, send Inappropriate ioctl for device 0",
        "policy 0x9: no length Invalid argument 0",
        "policy 0x9: debug Input/output error 7, send Input/output error 7, receive Input/output error 21",
        "policy 0x0: debug Input/output error 2, send Input/output error 21, receive Input/output error 21",
    ]


def test_snp_launch_refuses_what_the_kernel_refuses_and_waits_for_a_vcpu_that_is_being_made(
    run_vmm: Vmm,
) -> None:
    ran = run_vmm("snp_launch")
    assert ran.stdout.splitlines() == [
        "no slot: Invalid argument, 4096 bytes left",
        "a slot of shared memory alone: Invalid argument, 4096 bytes left",
        "a shared page: Invalid argument, 4096 bytes left",
        "no source: Bad address, 4096 bytes left",
        "no length: Invalid argument, 0 bytes left",
        "beyond the slot: ok, 4096 bytes left",
        "again: File exists, 4096 bytes left",
        *["meanwhile: ok, 0 bytes left"] * 5,
    ], ran.stderr
    assert "internal error" not in ran.stderr


def test_no_summary_is_lost_of_processes_that_end_with_the_command(tmp_path: Path) -> None:
    # Sixty processes' worth of connections, with lines that are no summaries, just before the command ends.
    command = tmp_path / "command"
    command.write_text(
        f"#!{sys.executable}\n"
        "import json, os, socket\n"
        f"path = json.loads(os.environ[{OPTIONS!r}])['socket']\n"
        "for number in range(60):\n"
        "    connection = socket.socket(socket.AF_UNIX)\n"
        "    connection.connect(path)\n"
        '    connection.sendall(b\'no summary\\n[]\\n{"pid": %d, "text": "%s"}\\n\' % (number, b\'x\' * 50000))\n'
    )
    command.chmod(0o755)
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1
    handlers = [signal.getsignal(number) for number in signals]
    try:
        ran = vmm_child.run_vmm([str(command)], Options("linux-6.18"), lambda _: None)
    except UnsupportedError as error:
        pytest.skip(str(error))
    assert (ran.exit_code, [summary["pid"] for summary in ran.summaries]) == (0, list(range(60)))
    assert [signal.getsignal(number) for number in signals] == handlers


def test_process_that_uses_kvm_after_the_command_ended_is_told_of(run_vmm: Vmm) -> None:
    ran = run_vmm("daemon")
    assert ran.returncode == 0
    assert ran.stderr.splitlines()[1:] == [
        "casemate: a process that uses /dev/kvm goes on after the command: there is no last summary of it"
    ]


def test_frequency_of_the_time_stamp_counter_is_right_and_never_changes(run_vmm: Vmm) -> None:
    assert run_vmm("tsc_frequency").stdout.splitlines() == [
        "changes 0",
        "within 100 parts in a million: yes",
        "200 less: taken",
        "300 less: Invalid argument",
    ]


def test_locked_instructions_are_atomic_to_the_threads_of_a_monitor(run_vmm: Vmm) -> None:
    assert run_vmm("locked_instructions").stdout.splitlines() == [
        *["lost 0"] * 4,
        "read 4 bytes at 0x8000",
        "write 4 bytes at 0x8000: 7",
        "split 1000 and 1000, exit 2 with 0x9090909",
    ]


@pytest.mark.skipif(not sees_writes_into_code(), reason="userfaultfd(2) serves no faults of the kernel here")
def test_code_in_pages_that_replaced_others_is_what_the_guest_executes(run_vmm: Vmm) -> None:
    assert run_vmm("discarded_code").stdout.splitlines() == [
        *("first: 1", "rewritten: 2", "discarded: 11", "rewritten: 12", "mapped anew: 21", "rewritten: 22"),
        *("shared: 31", "rewritten: 32", "punched: 41", "rewritten: 42"),
    ]


def test_vcpus_share_ring_memory_and_clock_whichever_threads_run_them(run_vmm: Vmm) -> None:
    assert run_vmm("several_vcpus").stdout.splitlines() == [
        "counter apart: 1",
        "counter of a new vCPU apart: 0",
        "vCPU 0: port 0x71, 1 in the ring",
        "vCPU 1: port 0x71, 2 in the ring",
        "without memory: exit 17",
    ]


def test_registers_at_an_exit_are_those_of_the_instruction(run_vmm: Vmm) -> None:
    exits = ["port 0x80 at 0x1002, carry 1", "port 0x81 at 0x1004, carry 1"]
    assert run_vmm("registers_at_exits").stdout.splitlines() == [*exits, *exits]


def test_monitor_may_lock_all_of_its_memory(run_vmm: Vmm) -> None:
    assert run_vmm("locked_memory").stdout == "registers set\n"


def test_vcpu_that_cannot_be_made_leaves_no_vm(run_vmm: Vmm) -> None:
    ran = run_vmm("refused_vcpu")
    assert ran.stdout == "Bad address, no VM is left\n", ran.stderr
