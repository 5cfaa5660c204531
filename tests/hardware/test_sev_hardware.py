"""SEV, SEV-ES and SNP guests on a real secure processor: run with -s, it prints what it saw (docs/guide/session.md).

Everything here is skipped where there is none; nobody has seen it run yet.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support.confidential_launches import write_guest

from casemate.abi.guest_kind import GuestKind
from casemate.cli import main
from casemate.errors import CasemateError
from casemate.guests.actions import tell
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.kvm.sev_device import SevDevice
from casemate.owner.platform import parse_chain
from casemate.testing.images import ImageBuilder

KINDS = [("sev", 0x1), ("sev-es", 0x5)]


def require(kind: GuestKind) -> KvmHypervisor:
    try:
        host = KvmHypervisor()
        host.validate_kind(kind)
    except CasemateError as reason:
        pytest.skip(f"needs SEV hardware: {reason}")
    return host


def show(**seen: object) -> None:
    print(json.dumps(seen, default=str), file=sys.stderr)


def test_platform_tells_its_version_and_exports_a_chain_that_holds() -> None:
    require(GuestKind.SEV)
    with closing(SevDevice()) as device:
        status, certificates = device.status(), device.certificates()
        show(
            api=f"{status.api_major}.{status.api_minor}",
            build=status.build,
            flags=hex(status.flags),
            chip=device.chip_id().hex(),
        )
    checks = parse_chain(certificates.to_bytes()).checks()
    show(checks=checks)
    assert all(check.holds for check in checks if "signed by the P" in check.claim)


@pytest.mark.parametrize(("kind", "policy"), KINDS)
def test_guest_is_launched_measured_and_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, policy: int
) -> None:
    require(GuestKind(kind))
    (tmp_path / "tik.bin").write_bytes(bytes(range(16)))
    firmware = write_guest(tmp_path, tell(7))
    line = f"boot --host kvm --guest {kind} --policy {policy} --bios {firmware} --tik {tmp_path}/tik.bin"
    code = main([*line.split(), "--json", "--timeout", "20"])
    outcome = json.loads(capsys.readouterr().out)
    show(kind=kind, code=code, launch=outcome["launch"], measurement=outcome["measurement"])
    assert outcome["measurement"]["verified"] is True
    assert outcome["exit_port"] == 7


@pytest.mark.parametrize(("kind", "policy"), KINDS)
def test_session_made_for_this_platform_is_taken(tmp_path: Path, kind: str, policy: int) -> None:
    require(GuestKind(kind))
    platform, name = tmp_path / "platform.cert", tmp_path / "guest"
    assert main(["session", "export", str(platform)]) == 0
    make = ["session", "make", "--platform", str(platform), "--any-root", "--policy", str(policy)]
    code = main([*make, "--name", str(name)])
    show(kind=kind, make=code, note="3 means that AMD's ASK and ARK must be given with --amd")
    assert code in (0, 3)


def test_snp_guest_is_launched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require(GuestKind.SNP)
    sections = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3))
    firmware = tmp_path / "snp.fd"
    firmware.write_bytes(ImageBuilder().reset_block(0x80B004).sev_metadata(*sections).build())
    code = main(["boot", "--host", "kvm", "--guest", "snp", "--bios", str(firmware), "--json"])
    outcome = json.loads(capsys.readouterr().out)
    show(code=code, launch=outcome["launch"])
    assert outcome["launch"]["state"] == "running"
