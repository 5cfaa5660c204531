"""Guests that make no progress end, and those that wait do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.assembler import assemble
from support.confidential_launches import Launch, sev_es, write_guest, write_variables
from support.hosts import kvm_or_skip

from casemate.cli import main
from casemate.guests.entry import make_image
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.run_loop import run
from casemate.machine.spec import MachineSpec


def boot_code(folder: Path, code: str, host: str, timeout: float = 20) -> Outcome:
    (folder / "guest.bin").write_bytes(make_image(assemble(code), 32))
    make = None
    if host == "kvm":
        kvm_or_skip()
        make = lambda clock: KvmHypervisor()  # noqa: E731
    spec = MachineSpec(bios=folder / "guest.bin", machine="bare", memory=4 << 20)
    return boot(spec, timeout=timeout, watchdog=0.2, hypervisor=make)


on_each_host = pytest.mark.parametrize("host", ["model", "kvm"])


@on_each_host
def test_spinning_guest_ends_and_says_where(tmp_path: Path, host: str) -> None:
    outcome = boot_code(tmp_path, "jmp $", host)
    assert (outcome.ending, outcome.exit_code) == (Ending.STUCK, 1)
    assert (
        "0.2 s of processor time without an access to any device: the guest loops at 0xffff" in outcome.detail
    )
    assert "jmp short" in outcome.detail


@on_each_host
@pytest.mark.parametrize(
    "code", ["again: cli; hlt; jmp again", "again: in al, 0x80; jmp again"], ids=["halted", "polling"]
)
def test_guest_that_waits_is_left_alone(tmp_path: Path, host: str, code: str) -> None:
    assert boot_code(tmp_path, code, host, timeout=1).ending is Ending.TIMEOUT


@pytest.mark.parametrize(
    ("era", "says"), [("linux-6.1", "a read-only slot"), ("linux-6.18", "the guest loops")]
)
def test_sealed_guest_is_told_the_likely_cause(tmp_path: Path, era: str, says: str) -> None:
    from casemate.confidential.preparation import LaunchOptions

    features = () if era == "linux-6.1" else ("debug-swap",)
    spec = sev_es(write_guest(tmp_path, assemble("jmp $")), write_variables(tmp_path))
    with Launch(spec, LaunchOptions(features=features), era=era).assembled() as machine:
        outcome = run(machine, 20, watchdog=0.2)
    assert outcome.ending is Ending.STUCK
    assert says in outcome.detail


def test_word_and_code_of_the_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "guest.bin").write_bytes(make_image(assemble("jmp $"), 32))
    options = [
        "--machine",
        "bare",
        "--memory",
        "4M",
        "--serial",
        "none",
        "--host",
        "model",
        "--watchdog",
        "0.2",
    ]
    assert main(["boot", "--bios", str(tmp_path / "guest.bin"), *options]) == 1
    assert "casemate: no-progress after" in capsys.readouterr().err
