"""The inspect command: text, JSON, pairs and exit codes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from casemate.cli import inspect
from casemate.errors import ImageError
from casemate.testing.images import ImageBuilder, variable_store

CODE = ImageBuilder(0x37C000, volume=True).reset_block(0x80B004).hashes(0, 0).build()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.fd").write_bytes(CODE)
    (tmp_path / "vars.fd").write_bytes(variable_store(0x84000))
    (tmp_path / "small.fd").write_bytes(variable_store(0x20000))
    return tmp_path


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args(words))


def test_text_gives_a_verdict_for_each_guest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("code.fd") == 0
    shown = capsys.readouterr().out
    for word in ("plain", "sev-es", "snp", "tdx", "kernel hashes: unusable (base 0x0)"):
        assert word in shown


def test_pair_that_fits_is_said_to_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("code.fd", "vars.fd") == 0
    assert "belong together" in capsys.readouterr().out


@pytest.mark.parametrize("order", [("code.fd", "small.fd"), ("small.fd", "code.fd")])
def test_pair_that_does_not_fit_ends_with_4(
    order: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*order) == 4
    assert "looks for 0x84000 bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"QFI\xfb".ljust(65536, b"\0"), "a qcow2 disk image"),
        (bytes.fromhex("bd86663b760d3040b70eb5519e2fc5a0").ljust(65536, b"\1"), "EFI capsule"),
        (CODE[:-1], "not a multiple of 4 KiB"),
        (variable_store(0x84000)[:0x1000], "damaged: the variable store claims 0x84000 bytes"),
    ],
)
def test_unusable_file_ends_with_4(
    folder: Path, data: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd.fd").write_bytes(data)
    assert run("odd.fd") == 4
    assert message in capsys.readouterr().out


def test_broken_table_is_a_problem_and_no_exception(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(CODE)
    data[-50:-48] = b"\1\0"
    (folder / "broken.fd").write_bytes(data)
    run("broken.fd")
    assert "damaged: at offset 0x37bfce: the GUIDed table claims 1 bytes" in capsys.readouterr().out
    run("--json", "broken.fd")
    assert json.loads(capsys.readouterr().out)["files"][0]["file"] == "broken.fd"


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    run("--json", "code.fd", "small.fd")
    document = json.loads(capsys.readouterr().out)
    assert [entry["role"] for entry in document["files"]] == ["code", "variables"]
    assert document["files"][0]["kernel_hashes"] == {
        "base": 0,
        "size": 0,
        "usable": False,
        "use": "unknown",
    }
    assert "0x84000" in document["pairs"][0]["fault"]
    assert len(document["files"][0]["verdicts"]) == 10


def test_names_cannot_command_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        "[red]x.fd",
        "a\033[31m.fd",
        b"\xff.fd".decode(errors="surrogateescape"),
        "[@click=x].fd",
    ):
        (folder / name).write_bytes(CODE)
        assert run(name) == 0
        assert run("--json", name) == 0
    shown = capsys.readouterr().out
    assert "[red]x.fd" in shown
    assert "\033" not in shown


def test_missing_file_is_refused() -> None:
    with pytest.raises(ImageError, match="no such file"):
        run("none.fd")


def test_descriptor_in_the_same_tree_is_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    descriptors = folder / "usr/share/qemu/firmware"
    descriptors.mkdir(parents=True)
    (folder / "usr/share/OVMF").mkdir()
    (folder / "usr/share/OVMF/code.fd").write_bytes(CODE)
    content = {
        "interface-types": ["uefi"],
        "mapping": {"device": "flash", "executable": {"filename": "/usr/share/OVMF/code.fd"}},
        "targets": [],
        "features": ["intel-tdx", "requires-smm"],
    }
    (descriptors / "10-x.json").write_text(json.dumps(content))
    run("usr/share/OVMF/code.fd")
    shown = capsys.readouterr().out
    assert "10-x.json offers it as flash" in shown
    assert "claimed, yet not so: intel-tdx, requires-smm" in shown
    assert "so, yet not claimed: amd-sev, amd-sev-es" in shown
