"""The pytest plugin, in a pytest of its own with a suite of small guests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support.booting import TinyGuest
from support.firmware_images import require_image
from support.vmm_programs import Vmm

ROOT = Path(__file__).parents[2]
ANSWERS = """
        mov dx, 0x3f8
prompt: mov al, 0x24; out dx, al; mov al, 0x20; out dx, al
next:   mov dx, 0x3fd; in al, dx; test al, 1; jz next
        mov dx, 0x3f8; in al, dx; out dx, al
        cmp al, 13; jnz next
        mov al, 0x6f; out dx, al; mov al, 0x6b; out dx, al; mov al, 10; out dx, al
        jmp prompt
"""
"""Prints a prompt, echoes a line, and says ok."""


class Suite(NamedTuple):
    """A folder for a suite, and what runs its one file."""

    folder: Path
    run: Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """A folder for a suite, and what runs it."""

    def run(text: str, *options: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "test_suite.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-p", "casemate.pytest_plugin", "-q", "--strict-markers"]
        return subprocess.run(
            [*command, f"--rootdir={tmp_path}", "-c", "/dev/null", *options, str(tmp_path / "test_suite.py")],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return Suite(tmp_path, run)


def test_a_test_runs_at_each_combination_of_its_axes(suite: Suite, tiny_guest: TinyGuest) -> None:
    tiny_guest("mov al, 7; out 0xf4, al; hlt")
    text = """
import pytest

@pytest.mark.casemate_axes(era=["linux-6.1", "linux-6.18"], memory=[4 << 20, 8 << 20])
def test_exit_port(casemate_boot, casemate_cell):
    outcome = casemate_boot(bios="guest.bin", machine="bare")
    assert outcome.report["exit_port"] == 7
    assert outcome.report["host"]["era"] == casemate_cell["era"]
    assert outcome.report["guest"]["memory"] == casemate_cell["memory"]
"""
    done = suite.run(text, "-vv")
    assert done.returncode == 0, done.stdout
    assert "test_exit_port[linux-6.18-8388608] PASSED" in done.stdout


def test_a_failing_test_shows_the_serial_log_and_keeps_the_report(
    suite: Suite, tiny_guest: TinyGuest
) -> None:
    tiny_guest(
        "mov dx, 0x3f8; mov al, 0x48; out dx, al; mov al, 0x69; out dx, al; mov al, 1; out 0xf4, al; hlt"
    )
    text = """
def test_it(casemate_boot):
    outcome = casemate_boot(bios="guest.bin", machine="pc", timeout=5)
    assert outcome.report["exit_port"] == 2
"""
    folder = suite.folder
    done = suite.run(text, f"--casemate-artefacts={folder}/kept")
    assert done.returncode == 1, done.stdout
    assert "casemate guest 1" in done.stdout
    [report] = (folder / "kept").rglob("report.json")
    assert json.loads(report.read_text())["serial"] == "Hi"
    assert report.with_name("report.html").is_file()
    assert report.with_name("serial.log").read_text() == "Hi"


def test_a_guest_answers_commands_while_the_test_runs(suite: Suite, tiny_guest: TinyGuest) -> None:
    tiny_guest(ANSWERS)
    text = """
def test_it(casemate_guest):
    guest = casemate_guest(bios="guest.bin", machine="pc", prompt="$ ", seconds=60)
    assert guest.run("ver") == "ok"
    assert guest.run("map") == "ok"
    assert guest.end().ending.word == "left"
"""
    done = suite.run(text)
    assert done.returncode == 0, done.stdout


def test_a_program_of_another_makes_vms_on_the_modelled_kvm(
    suite: Suite, run_vmm: Vmm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_vmm("lives_and_deaths", "1")  # compiled into the session's folder
    program = next(tmp_path_factory.getbasetemp().glob("vmm*/lives_and_deaths"))
    text = f"""
import subprocess

def test_it(modelled_kvm):
    done = subprocess.run([{str(program)!r}, "2"], env=modelled_kvm("linux-6.10"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
"""
    done = suite.run(text)
    assert done.returncode == 0, done.stdout


@pytest.mark.boot
def test_the_example_boots_a_sev_es_guest(tmp_path: Path) -> None:
    root = require_image("OVMF_CODE.fd", "bookworm").parents[3]
    example = ROOT / "examples" / "firmware-ci"
    command = [sys.executable, "-m", "pytest", "-p", "casemate.pytest_plugin", "-q", "-k", "sev_es"]
    done = subprocess.run(
        [*command, f"--rootdir={example}", "-c", "/dev/null", "-p", "no:cacheprovider", str(example)],
        cwd=tmp_path, env=os.environ | {"CASEMATE_FIRMWARE": str(root)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
