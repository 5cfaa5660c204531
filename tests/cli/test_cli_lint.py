"""The lint command: lines and files in, findings and exit codes out."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from casemate.cli import lint
from casemate.errors import CasemateError
from casemate.testing.images import ImageBuilder, variable_store

CODE_SIZE = 0x200000 - 0x20000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.fd").write_bytes(ImageBuilder(CODE_SIZE, volume=True).build())
    (tmp_path / "v.fd").write_bytes(variable_store(0x20000))
    return tmp_path


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    lint.add_arguments(parser)
    return lint.run(parser.parse_args(list(words)))


def test_good_pair_has_no_findings(capsys: pytest.CaptureFixture[str]) -> None:
    drive = "if=pflash,format=raw"
    words = ("-drive", f"{drive},readonly=on,file=c.fd", "-drive", f"{drive},file=v.fd")
    assert run("--", "qemu-system-x86_64", *words) == 0
    out = capsys.readouterr().out
    assert out == "0 errors, 0 warnings, 0 notes, for linux-6.18 and any QEMU\nexamined: QEMU command line\n"


def test_error_gives_exit_code_1_with_option_cause_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--", "qemu-system-x86_64", "-drive", "if=pflash,unit=1,format=raw,file=none.fd") == 1
    out = capsys.readouterr().out
    assert out.startswith("error: pflash-gap: ")
    assert "option: -drive if=pflash,unit=1" in out
    assert "remedy: " in out
    assert "'none.fd'" in out


def test_script_and_domain_are_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "start.sh").write_text("#!/bin/sh\nexec qemu-system-x86_64 \\\n  -bios c.fd # firmware\n")
    assert run("--json", "start.sh") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["unread"] == []
    (folder / "d.xml").write_text("<domain><os><loader type='rom'>OVMF_CODE.fd</loader></os></domain>")
    assert run("--era", "linux-6.6", "d.xml") == 0
    out = capsys.readouterr().out
    assert "bios-code" in out
    assert "linux-6.6" in out


def test_file_with_nothing_in_it_is_not_called_good(folder: Path) -> None:
    (folder / "empty.sh").write_text("#!/bin/sh\n")
    with pytest.raises(CasemateError, match="nothing is in it"):
        run("empty.sh")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.xml"], "cannot be read"),
        (["c.fd"], "cannot be read"),
        (["--era", "linux-2.4", "--", "qemu", "-S"], "no kernel era"),
        (["--", "qemu", "-drive"], "needs a value"),
    ],
)
def test_what_cannot_be_read_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(CasemateError, match=message) as caught:
        run(*words)
    assert caught.value.exit_code == 4


def test_findings_point_at_the_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "start.sh").write_text(
        "#!/bin/sh\nqemu-system-x86_64 -bios c.fd \\\n  -object nocc,id=x -machine q35,smn=on\n"
    )
    assert run("start.sh") == 1
    out = capsys.readouterr().out
    assert "start.sh:3:11: error: object-unknown" in out
    assert "start.sh:3:34: error: machine-property-unknown" in out
    assert run("--format", "sarif", "start.sh") == 1
    (sarif,) = json.loads(capsys.readouterr().out)["runs"]
    places = {
        result["ruleId"]: result["locations"][0]["physicalLocation"]["region"] for result in sarif["results"]
    }
    assert places["object-unknown"] == {"startLine": 3, "startColumn": 11}
    assert all(
        sarif["tool"]["driver"]["rules"][one["ruleIndex"]]["id"] == one["ruleId"] for one in sarif["results"]
    )


def test_qemu_is_a_release_or_a_binary_that_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("-accel", "kvm", "-object", "tdx-guest,id=t", "-machine", "q35,confidential-guest-support=t")
    assert run("--qemu", "10.0", "--", "qemu-kvm", *words) == 1
    assert "QEMU 10.0 has no object of type 'tdx-guest'" in capsys.readouterr().out
    assert run("--qemu", "10.1", "--", "qemu-kvm", *words) == 0
    capsys.readouterr()
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64 to ask")
    run("--this-qemu", "qemu-system-x86_64", "--json", "--", "qemu-kvm", *words)
    assert json.loads(capsys.readouterr().out)["qemu"].startswith("QEMU ")


def test_nothing_of_a_file_reaches_the_terminal_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "evil.sh").write_text("qemu-system-x86_64 -bios '\x1b]0;owned\x07' -object 'a\x1b[31m,id=x'\n")
    assert run("evil.sh") == 1
    assert "\x1b" not in capsys.readouterr().out


def test_what_is_too_much_is_refused_at_once(folder: Path) -> None:
    for text in ("-pflash a " * 60000, "-object a," + "b," * 900000, "x" * (14 << 20)):
        (folder / "long.sh").write_text(f"qemu-system-x86_64 {text}\n")
        with pytest.raises(CasemateError) as caught:
            run("long.sh")
        assert caught.value.exit_code == 4
