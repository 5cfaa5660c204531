"""Settings and fixtures of all tests; lying here it also lets them import ``support`` (pytest, conftest.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.assembler import assemble
from support.booting import BootCli, Ended, TinyGuest
from support.firmware_images import find_images

from casemate.cli import main
from casemate.guests.entry import Bits, make_image

pytest_plugins = ["support.matrix_runs", "support.pulse", "support.vmm_programs"]

settings.register_profile("casemate", derandomize=True, deadline=None)
settings.load_profile("casemate")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--record-golden``: write the documents that tests/golden compares with."""
    parser.addoption("--record-golden", action="store_true", help="write the documents of tests/golden anew")


@pytest.fixture(scope="session", autouse=True)
def stock_firmware_stays_as_it_is() -> Iterator[None]:
    """Images of packages are for every test and program of this user: guests get copies of their variables."""
    before = {path: path.stat().st_mtime_ns for path in find_images()}
    yield
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.fixture
def boot_cli(capsys: pytest.CaptureFixture[str]) -> BootCli:
    """``casemate boot`` in this process: its exit code, output and errors."""

    def boot(*words: str | Path) -> Ended:
        capsys.readouterr()
        code = main(["boot", *map(str, words)])
        return Ended(code, *capsys.readouterr())

    return boot


@pytest.fixture
def tiny_guest(tmp_path: Path) -> TinyGuest:
    """Images of guests given as assembly."""

    def write(code: str | bytes, bits: Bits = 32, name: str = "guest.bin") -> Path:
        path = tmp_path / name
        path.write_bytes(make_image(assemble(code, bits) if isinstance(code, str) else code, bits))
        return path

    return write
