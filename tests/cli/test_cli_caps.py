"""``casemate caps`` and the hosts that cannot be used: what is said, and the exit code (docs/guide/caps.md)."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from support.hosts import kvm_or_skip

from casemate.abi.kvm.capabilities import Capability
from casemate.cli import main
from casemate.errors import UnsupportedError
from casemate.guests.entry import make_image
from casemate.host.kvm import survey
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.kvm.survey import survey_kvm
from casemate.host.kvm.system import KvmSystem


@pytest.fixture
def no_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without /dev/kvm."""
    missing = str(tmp_path / "kvm")
    monkeypatch.setattr(survey.survey_kvm, "__defaults__", (missing, str(tmp_path / "sev")))
    monkeypatch.setattr(KvmHypervisor.__init__, "__defaults__", (missing,))


def test_json_has_what_vms_and_devices_answer(capsys: pytest.CaptureFixture[str]) -> None:
    kvm_or_skip()
    assert main(["caps", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] is True
    assert found["auto"] in ("kvm", "model")
    assert found["kvm"]["usable"] is True
    default = next(offer for offer in found["vm_types"] if offer["name"] == "DEFAULT")
    assert set(default["capabilities"]) == {item.kernel_name for item in Capability}
    assert found["modules"]["kvm"] is not None


def test_text_names_every_type_and_device(capsys: pytest.CaptureFixture[str]) -> None:
    kvm_or_skip()
    assert main(["caps"]) == 0
    text = capsys.readouterr().out
    for word in ("/dev/kvm", "/dev/sev", "DEFAULT", "SEV_ES", "TDX", "READONLY_MEM 1", "auto "):
        assert word in text


@pytest.mark.usefixtures("no_kvm")
def test_without_kvm_caps_says_so_and_exits_with_5(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caps"]) == 5
    text = capsys.readouterr().out
    assert "cannot be used" in text
    assert "remedy  KVM: load the kvm module" in text
    assert main(["caps", "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["auto"] == "model"


@pytest.mark.usefixtures("no_kvm")
def test_without_kvm_boot_on_kvm_is_refused_and_auto_takes_the_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = tmp_path / "guest.bin"
    image.write_bytes(make_image(b"\xb0\x07\xe6\xf4\xeb\xfe"))  # mov al, 7; out 0xf4, al; jmp $
    boot = ["boot", "--bios", str(image), "--memory", "4M", "--json"]
    assert main([*boot, "--host", "kvm"]) == 5
    assert "load the kvm module" in capsys.readouterr().err
    assert main(boot) == 0
    host = json.loads(capsys.readouterr().out)["host"]
    assert host["backend"] == "model"
    assert "cannot be opened" in host["why"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "join the group"),
        (errno.ENODEV, "enable virtualization"),
        (errno.EBUSY, "--host model"),
    ],
)
def test_device_that_cannot_be_opened_is_named_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("casemate.host.kvm.system.os.open", fail)
    with pytest.raises(UnsupportedError) as caught:
        KvmSystem()
    assert caught.value.exit_code == 5
    assert "/dev/kvm cannot be opened" in caught.value.cause
    assert remedy in caught.value.remedy


def test_device_that_is_no_kvm_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="/dev/null is no KVM"):
        KvmSystem("/dev/null")


def test_missing_capability_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kvm_or_skip()
    answer = KvmSystem.extension
    monkeypatch.setattr(
        KvmSystem, "extension", lambda self, item, vm=None: item != Capability.PIT2 and answer(self, item, vm)
    )
    with pytest.raises(UnsupportedError, match="KVM_CAP_PIT2"):
        KvmSystem()


def test_survey_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    survey_kvm()
    assert os.listdir("/proc/self/fd") == before
