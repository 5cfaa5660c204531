"""Locks on image files against QEMU: neither program gets a variable store that the other has (block/file-posix.c)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casemate.cli import main
from casemate.devices.flash.file import FlashFile
from casemate.errors import ImageError

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")

SIZE = 0x10000


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "CODE.fd"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def variables(tmp_path: Path) -> Path:
    path = tmp_path / "VARS.fd"
    path.write_bytes(bytes(SIZE))
    return path


def qemu_command(code: Path, variables: Path) -> list[str]:
    assert QEMU is not None
    return [
        QEMU, "-machine", "q35", "-S", "-display", "none", "-nodefaults", "-qmp", "stdio",
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
        "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
    ]  # fmt: skip


@contextmanager
def qemu(code: Path, variables: Path) -> Iterator[None]:
    """QEMU with both files open: it answers when they are."""
    command = qemu_command(code, variables)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"execute": "qmp_capabilities"}\n')
        process.stdin.flush()
        assert b"QMP" in process.stdout.readline()
        assert b"return" in process.stdout.readline()
        yield
        process.kill()


def test_variable_store_that_qemu_has_is_refused_by_name(
    code: Path, variables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with qemu(code, variables):
        with pytest.raises(ImageError, match=r"VARS\.fd: is in use by QEMU"):
            FlashFile.open(variables, readonly=False)
        FlashFile.open(code, readonly=True).close()
        assert main(["vars", "set", "--in-place", str(variables), "greeting", "--text", "hello"]) == 4
        assert "is in use by QEMU" in capsys.readouterr().err
    FlashFile.open(variables, readonly=False).close()


def test_qemu_refuses_a_variable_store_of_ours_and_shares_the_code(code: Path, variables: Path) -> None:
    ours = FlashFile.open(code, readonly=True), FlashFile.open(variables, readonly=False)
    done = subprocess.run(
        qemu_command(code, variables), input="", capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert 'Failed to get "write" lock' in done.stderr
    for file in ours:
        file.close()
    with qemu(code, variables):
        pass
