"""The verify command: the model's reports and a real one, every check listed, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("omne_attest", reason="omne-attest is not installed (./dev test says why)")

from omne_attest import vectors

from casemate.cli import main
from casemate.testing.images import ImageBuilder

SECTIONS = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3), (0x80F000, 0x1000, 0x10))
REPORT_DATA = "5a" * 64
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def attested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a guest, its launch plan, and what it would be given on the model."""
    folder = tmp_path_factory.mktemp("attested")
    built = ImageBuilder().reset_block(0x80B004).hashes(0x80FC00).sev_metadata(*SECTIONS)
    (folder / "snp.fd").write_bytes(built.build())
    boot = (
        "--guest",
        "snp",
        "--bios",
        str(folder / "snp.fd"),
        "--memory",
        "16M",
        "--report-data",
        REPORT_DATA,
    )
    assert main(["boot", *boot, "--launch-only", "--attestation", str(folder)]) == 0
    cpu = ("--vcpus", "1", "--vcpu-type", "EPYC-v4", "--plan-out", str(folder / "plan.json"))
    assert main(["measure", "--mode", "snp", "--ovmf", str(folder / "snp.fd"), *cpu]) == 0
    return folder


@pytest.fixture
def verify(attested: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(attested)

    def run(*words: str, report: str = "report.bin") -> tuple[int, str, str]:
        capsys.readouterr()
        chain = ("--ark", "ark.pem", "--ask", "ask.pem", "--vcek", "vcek.pem")
        code = main(["verify", report, *chain, *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_report_of_the_planned_guest_is_believed(verify: Run) -> None:
    code, out, _ = verify("--plan", "plan.json", "--policy", "0x30000", "--report-data", REPORT_DATA)
    assert code == 0
    assert "modelled: " in out
    assert "proves nothing about any hardware" in out
    assert "all checks passed" in out
    assert "FAILED" not in out


def test_every_failed_check_is_listed(verify: Run) -> None:
    wrong = ("--measurement", "00" * 48, "--policy", "0xb0000", "--min-tcb", "snp=99", "--min-svn", "1")
    code, out, _ = verify(*wrong)
    assert code == 3
    failed = [
        line.split("  ")[0].removeprefix("FAILED").strip() for line in out.splitlines() if "FAILED" in line
    ]
    assert len(failed) == 4
    assert out.splitlines()[-1] == "do not believe it: policy, guest SVN, least TCB, measurement"


def test_json_says_what_the_text_does(verify: Run) -> None:
    code, out, _ = verify("--json", "--measurement", "00" * 48)
    document = json.loads(out)
    assert code == 3
    assert document["verified"] is False
    assert document["modelled"] is True
    assert [check["name"] for check in document["checks"] if check["passed"] is False] == ["measurement"]


@pytest.mark.parametrize("offset", [0x08, 0x50, 0x90, 0x180, 0x2A0, 0x49F])
def test_one_changed_byte_fails(verify: Run, attested: Path, offset: int) -> None:
    changed = bytearray((attested / "report.bin").read_bytes())
    changed[offset] ^= 1
    (attested / "changed.bin").write_bytes(changed)
    code, out, _ = verify(report="changed.bin")
    assert code == 3
    assert "FAILED  signature" in out


def test_real_report_is_believed_and_its_debugging_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    chain = (
        *("--ark", str(vectors.path("milan_ark.der"))),
        *("--ask", str(vectors.path("milan_ask.der"))),
        *("--vcek", str(vectors.path("kds_vcek.der"))),
    )
    report = str(vectors.path("attestation.bin"))
    assert main(["verify", report, *chain]) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "do not believe it: no debugging"
    assert main(["verify", report, *chain, "--allow-debug"]) == 0
    out = capsys.readouterr().out
    assert "AMD's root for EPYC 7003" in out
    assert "modelled" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--min-tcb", "snp"), "--min-tcb 'snp'"),
        (("--min-tcb", "firmware=1"), "bootloader, tee, snp, microcode, fmc"),
        (("--measurement", "00"), "not 96 hex digits"),
        (("--plan", "plan.json", "--measurement", "00" * 48), "say the same thing"),
        (("--plan", "ark.pem"), "no launch plan"),
        (("--plan", "none.json"), "none.json: cannot be read"),
        (("--ask", "report.bin"), "report.bin: this is no certificate"),
    ],
)
def test_request_that_makes_no_sense_is_refused(verify: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = verify(*words)
    assert (code, out) == (4, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_file_that_is_no_report_is_refused(verify: Run) -> None:
    code, _, err = verify(report="ark.pem")
    assert code == 4
    assert "a report has 1184" in err
