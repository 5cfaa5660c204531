"""``casemate boot --kernel`` without firmware: what is refused before anything starts (docs/guide/boot.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.cli import main


@pytest.mark.parametrize(
    ("words", "cause", "code"),
    [
        (["--vars", "x.fd"], "a kernel without firmware has none", 4),
        (["--vars-template", "x.fd"], "there is no flash", 4),
        (["--machine", "bare"], "the bare board has no devices", 4),
        (["--guest", "sev", "--kernel-hashes"], "--kernel-hashes: there is no firmware", 4),
        (["--guest", "tdx", "--dry-run"], "give firmware with --bios", 4),
        ([], "no HdrS", 4),
    ],
)
def test_direct_boot_that_cannot_be_is_refused(
    words: list[str], cause: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bytes(8192))
    assert main(["boot", "--json", "--host", "model", "--kernel", str(kernel), *words]) == code
    assert cause in capsys.readouterr().err


def test_kernel_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "--json", "--host", "model", "--kernel", "/nowhere/vmlinuz"]) == 4
    assert "/nowhere/vmlinuz" in capsys.readouterr().err
