"""An unmodified QEMU on the modelled KVM (QEMU's own -accel kvm, qmp-spec)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.firmware_images import require_image
from support.kvm_guests import LIMIT, flash, guest
from support.vmm_programs import kvm_command

from casemate import native

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = [
    pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed"),
    pytest.mark.skipif(not native.KVM.exists(), reason="casemate's library for other VMMs was not built"),
]


def test_ovmf_comes_to_its_shell_and_obeys_the_monitor(tmp_path: Path) -> None:
    firmware = flash(tmp_path, "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
    with guest(tmp_path, "-M", "q35", "-m", "256", "-smp", "2", *firmware) as ovmf:
        monitor = ovmf.monitor()
        ovmf.wait_for("BdsDxe: loading")
        assert monitor.call("stop") == {}
        assert monitor.call("query-status")["running"] is False
        assert monitor.call("cont") == {}
        ovmf.wait_for("Shell>")
        counted = [
            {stat["name"]: stat["value"] for stat in vcpu["stats"]}
            for vcpu in monitor.call("query-stats", target="vcpu")
        ]
        assert monitor.call("system_reset") == {}
        ovmf.wait_for("BdsDxe: loading", times=2)
        monitor.call("quit")
        summary = ovmf.summary()
    (vm,) = summary["vms"]
    assert sum(stats["io_exits"] for stats in counted) > 10_000
    assert all(stats["exits"] >= stats["io_exits"] + stats["mmio_exits"] for stats in counted)
    assert (vm["type"], vm["guest"], vm["violations"]) == ("KVM_X86_DEFAULT_VM", "plain", [])
    assert vm["exits"]["KVM_EXIT_IO"] > 10_000


@pytest.mark.parametrize("policy", [0x1, 0x5])
def test_digest_of_a_launch_by_qemu_is_the_one_that_measure_predicts(tmp_path: Path, policy: int) -> None:
    firmware = flash(tmp_path, "OVMF_CODE.fd", "OVMF_VARS.fd")
    sev = f"sev-guest,id=sev0,policy={policy:#x},cbitpos=39,reduced-phys-bits=1"
    machine = "pc,confidential-guest-support=sev0"
    with guest(tmp_path, "-M", machine, "-cpu", "EPYC", "-m", "256", "-S", "-object", sev, *firmware) as qemu:
        monitor = qemu.monitor()
        assert monitor.call("query-sev")["state"] in ("launch-secret", "running")
        monitor.call("quit")
        (vm,) = qemu.summary()["vms"]
    kind = "sev-es" if policy & 4 else "sev"
    assert vm["guest"] == kind
    image = require_image("OVMF_CODE.fd", "bookworm")
    mode = {"sev": "sev", "sev-es": "seves"}[kind]
    command = [*kvm_command()[:3], "measure", "--mode", mode, "--ovmf", str(image), "--output-format", "hex"]
    command += ["--init", "legacy", "--vcpus", "1", "--vcpu-type", "EPYC"] if mode == "seves" else []
    predicted = subprocess.run(command, capture_output=True, text=True, check=True)
    assert vm["digest"] == predicted.stdout.strip()


def test_planned_failure_of_a_launch_command_is_what_qemu_reports(tmp_path: Path) -> None:
    firmware = flash(tmp_path, "OVMF_CODE.fd", "OVMF_VARS.fd")
    sev = "sev-guest,id=sev0,policy=0x5,cbitpos=39,reduced-phys-bits=1"
    machine = ("-M", "pc,confidential-guest-support=sev0", "-cpu", "EPYC", "-object", sev)
    rule = "KVM_SEV_LAUNCH_UPDATE_DATA:1=fw:0x0b"
    with guest(tmp_path, *machine, "-m", "256", *firmware, options=("--fault", rule)) as qemu:
        assert qemu.process.wait(LIMIT) == 1
    assert "fw_error=11" in qemu.errors()
