"""``casemate kvm``: what it refuses before a VMM starts, and the wrapper (docs/guide/kvm.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from casemate import native

pytestmark = pytest.mark.skipif(not native.KVM.exists(), reason="the library for other VMMs was not built")


def kvm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    line = [sys.executable, "-m", "casemate", "kvm", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", autouse=True)
def shared_python() -> None:
    """The library of Python that other monitors load."""
    ran = kvm("--quiet", "--", "true")
    if "has no shared library" in ran.stderr:
        pytest.skip(ran.stderr.strip())


def test_exit_code_is_that_of_the_command() -> None:
    ran = kvm("--quiet", "--", "sh", "-c", "exit 7")
    assert ran.returncode == 7
    assert kvm("--", "sh", "-c", "kill -9 $$").returncode == 128 + 9


def test_command_without_a_summary_is_told_why() -> None:
    told = [kvm("--", "sh", "-c", text).stderr.splitlines()[1:] for text in ("kill -9 $$", "exit 137")]
    assert told == [
        ["casemate: the command was ended by signal 9: there is no summary"],
        ["casemate: the command opened no /dev/kvm, or was killed: there is no summary"],
    ]


def test_quiet_command_loads_nothing_that_waits_for_summaries() -> None:
    line = [sys.executable, "-X", "importtime", "-m", "casemate", "kvm", "--quiet", "--", "true"]
    rows = subprocess.run(line, capture_output=True, text=True, check=True).stderr.splitlines()
    modules = {row.rpartition("|")[2].strip() for row in rows}
    assert "casemate.cli.vmm_environment" in modules
    unwanted = {"casemate.abi.kvm.ioctls", "casemate.userkvm.library", "casemate.userkvm.report"}
    assert not modules & {*unwanted, "html", "socket", "subprocess", "tempfile", "threading"}


def test_monitor_loads_nothing_for_confidential_guests_before_it_has_one() -> None:
    code = "import sys\nfrom casemate.userkvm import server\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(ran.stdout.split())
    assert "casemate.host.model.vm" in modules
    unwanted = {"casemate.evidence", "casemate.host.model.protected_guest", "casemate.host.model.sev.ghcb"}
    assert not modules & {*unwanted, "casemate.host.model.snp.rmp", "cryptography", "dataclasses", "platform"}


def test_first_line_says_that_everything_is_modelled() -> None:
    assert "/dev/kvm is modelled" in kvm("--", "true").stderr.splitlines()[0]


@pytest.mark.parametrize("path", ["/dev/kvm", "/dev/sev", "/sys/module/kvm_amd/parameters/sev"])
def test_files_of_kvm_are_there_wherever_they_are_not(path: str) -> None:
    assert kvm("--quiet", "--", "test", "-e", path).returncode == 0


def test_parameters_of_the_module_say_that_sev_is_on() -> None:
    assert kvm("--quiet", "--", "cat", "/sys/module/kvm_amd/parameters/sev_es").stdout == "Y\n"


def test_host_without_sev_has_no_device() -> None:
    assert kvm("--quiet", "--no-sev", "--", "test", "-e", "/dev/sev").returncode == int(
        not Path("/dev/sev").exists()
    )


def test_unknown_command_and_bad_rule_are_bad_input() -> None:
    missing = kvm("--", "no-such-vmm")
    assert (missing.returncode, "no-such-vmm" in missing.stderr) == (4, True)
    assert kvm("--fault", "KVM_RUN", "--", "true").returncode == 4
    assert kvm("--log", "/no/such/folder/log", "--", "true").returncode == 4
    assert kvm().returncode == 2


def test_folder_and_file_that_is_no_program_are_refused_as_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a vmm"
    file.write_text("#!/bin/sh\n")
    refused = kvm("--", str(file))
    assert (refused.returncode, f"{file} is not executable" in refused.stderr) == (4, True)
    assert f"chmod +x '{file}'" in refused.stderr
    refused = kvm("--", str(tmp_path))
    assert (refused.returncode, f"{tmp_path} is a folder" in refused.stderr) == (4, True)
    assert "there is no command" in kvm("--", str(tmp_path / "none")).stderr
    os.mkfifo(tmp_path / "fifo", 0o755)
    assert "there is no command" in kvm("--", str(tmp_path / "fifo")).stderr


def test_temporary_folder_that_no_socket_fits_into_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    refused = kvm("--", "true")
    assert (refused.returncode, "set TMPDIR to" in refused.stderr) == (4, True), refused.stderr
    assert not list(folder.iterdir())
    assert kvm("--quiet", "--", "true").returncode == 0


def test_static_programs_are_refused_in_words(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    source, program = tmp_path / "static.c", tmp_path / "static"
    source.write_text("int main(void) { return 0; }\n")
    if subprocess.run([compiler, "-static", "-o", program, source], check=False).returncode:
        pytest.skip("no static C library is installed")
    ran = kvm("--", str(program))
    assert ran.returncode == 5
    assert "statically linked" in ran.stderr


def test_sandbox_of_qemu_is_refused_with_the_remedy() -> None:
    ran = kvm("--", "sh", "-sandbox", "on")
    assert ran.returncode == 5
    assert "seccomp_sandbox = 0" in ran.stderr


def test_monitor_that_runs_a_python_is_refused_in_one_line() -> None:
    program = "import os; os.open('/dev/kvm', os.O_RDWR)"
    ran = kvm("--", sys.executable, "-c", program)
    assert ran.returncode == 1
    assert "a Python of its own" in ran.stderr


def test_wrapper_is_a_program_that_does_the_same(tmp_path: Path) -> None:
    made = kvm("--wrapper", str(tmp_path / "bin"), "--era", "linux-6.8", "--", "sh")
    wrapper = Path(made.stdout.strip())
    assert os.access(wrapper, os.X_OK)
    ran = subprocess.run([wrapper, "-c", "exit 3"], capture_output=True, text=True, check=False)
    assert ran.returncode == 3
    assert "linux-6.8" in ran.stderr
