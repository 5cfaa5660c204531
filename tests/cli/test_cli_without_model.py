"""Where the modelled CPU cannot run: guests are refused in one line, and what runs none works (docs/guide/boot.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import unicorn

import casemate
from casemate.guests.actions import tell
from casemate.guests.entry import make_image

BUILD_ID = bytes.fromhex("44285d3e80527122e9e361928189385906ec813e")
AARCH64 = """
import os, sys
names = os.uname()
os.uname = lambda: os.uname_result((*names[:4], "aarch64"))
from casemate.cli import main
sys.exit(main(sys.argv[1:]))
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


def another_build(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The engine as somebody else compiled it, as far as its build id says."""
    library = next(Path(unicorn.__file__).parent.glob("lib/libunicorn.so*"))
    contents = library.read_bytes()
    assert contents.count(BUILD_ID) == 1
    (folder / library.name).write_bytes(contents.replace(BUILD_ID, bytes(20)))
    return ["-m", "casemate"], {"LIBUNICORN_PATH": str(folder)}


def no_library(folder: Path) -> tuple[list[str], dict[str, str]]:
    """A checkout whose machine code nothing compiled."""
    package = Path(casemate.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "guest_code.json")
    shutil.copytree(package, folder / "casemate", ignore=ignored)
    return ["-m", "casemate"], {"PYTHONPATH": str(folder)}


def another_processor(_folder: Path) -> tuple[list[str], dict[str, str]]:
    """A computer that is no PC, as far as Python says."""
    return ["-c", AARCH64], {}


@pytest.fixture(params=[another_build, no_library, another_processor], ids=lambda way: way.__name__)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    arguments, environment = request.param(tmp_path)

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, *arguments, *words]
        return subprocess.run(line, capture_output=True, text=True, env=os.environ | environment, check=False)

    return command


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "bios.bin"
    path.write_bytes(make_image(tell(7), 64))
    return str(path)


def test_guest_on_the_model_is_refused_in_one_line(run: Run, image: str) -> None:
    done = run("boot", "--host", "model", "--bios", image, "--json")
    assert done.returncode == 5
    said = done.stderr.strip().splitlines()
    assert len(said) == 1
    assert "the modelled host cannot run guests here: " in said[0]
    assert "--host kvm" in said[0]


def test_commands_that_run_no_guest_work(run: Run, image: str) -> None:
    measured = run("measure", "--mode", "sev", "--ovmf", image)
    assert (measured.returncode, len(measured.stdout.strip())) == (0, 64)
    assert run("inspect", image).returncode == 0
