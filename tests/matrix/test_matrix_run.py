"""``casemate matrix`` in processes of this machine: what runs, what is kept, and what is said about it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.booting import TinyGuest
from support.matrix_runs import RunMatrix, children
from support.vmm_programs import Vmm

HANGS = """
[settings]
machine = "bare"
memory = "4M"
timeout = 0.2
[axes.image]
hangs = { bios = "guest.bin" }
"""


def test_every_cell_is_run_and_judged_and_keeps_its_report(
    run_matrix: RunMatrix, two_guests: str, tmp_path: Path
) -> None:
    ran = run_matrix(two_guests)
    assert ran.code == 0
    assert ran.document["counts"] == {"good": 4, "bad": 0, "unjudged": 0, "missing": 0}
    assert ran.document["ran"] == 4
    cell = ran.cells["linux-6.1 two"]
    report = json.loads((tmp_path / "results" / cell["artefacts"][0]).read_text())
    assert report["outcome"] == cell["result"]["outcome"] == "exit-port"
    assert (report["exit_port"], report["host"]["era"]) == (2, "linux-6.1")


def test_a_second_run_does_only_what_has_changed(
    run_matrix: RunMatrix, two_guests: str, tiny_guest: TinyGuest, tmp_path: Path
) -> None:
    run_matrix(two_guests)
    assert run_matrix(two_guests).document["ran"] == 0
    command = [sys.executable, "-X", "importtime", "-m", "casemate", "matrix", str(tmp_path / "matrix.toml")]
    again = subprocess.run(
        [*command, "--out", str(tmp_path / "results")], capture_output=True, text=True, check=True
    )
    assert "0 ran now" in again.stdout
    assert "| distributed" not in again.stderr
    assert "| dask" not in again.stderr
    assert "| unicorn" not in again.stderr


def test_an_input_that_changed_runs_its_own_cells_again_and_says_what_is_different(
    two_guests: str, tiny_guest: TinyGuest, tmp_path: Path
) -> None:
    (tmp_path / "matrix.toml").write_text(two_guests)
    command = [sys.executable, "-m", "casemate", "matrix", str(tmp_path / "matrix.toml"), "--json"]

    def run() -> tuple[int, dict[str, dict[str, object]]]:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        document = json.loads(done.stdout)
        return document["ran"], {cell["name"]: cell for cell in document["cells"]}

    assert run()[0] == 4
    tiny_guest("out 0xff, al; l: lidt [0]; int3", name="guest2.bin")
    ran, cells = run()
    assert ran == 2
    assert cells["linux-6.1 two"]["verdict"] == "bad"
    assert "outcome: exit-port before, triple-fault now" in str(cells["linux-6.1 two"]["changes"])
    assert cells["linux-6.1 one"]["changes"] == []


def test_another_expectation_is_judged_without_running_again(run_matrix: RunMatrix, two_guests: str) -> None:
    run_matrix(two_guests)
    ran = run_matrix(two_guests.replace('"exit-port"', '"until"'))
    assert (ran.code, ran.document["ran"]) == (1, 0)
    assert "outcome is exit-port, not until" in ran.cells["linux-6.1 one"]["reasons"][0]


def test_a_cell_that_hangs_ends_by_its_own_timeout(run_matrix: RunMatrix, tiny_guest: TinyGuest) -> None:
    tiny_guest("jmp $")
    ran = run_matrix(HANGS + '[[expect]]\noutcome = "timeout"\n')
    assert ran.code == 0
    assert run_matrix(HANGS).document["ran"] == 0


def test_firmware_that_cannot_be_is_the_cells_outcome_and_not_the_runs_end(
    run_matrix: RunMatrix, two_guests: str
) -> None:
    ran = run_matrix(two_guests.replace('memory = "4M"', 'kind = "tdx"'))
    assert ran.code == 1
    assert {cell["result"]["outcome"] for cell in ran.cells.values()} == {"refused"}
    assert "TDX" in ran.cells["linux-6.1 one"]["result"]["detail"]


def test_a_missing_input_is_an_error_before_anything_runs(run_matrix: RunMatrix, two_guests: str) -> None:
    ran = run_matrix(two_guests.replace("guest2.bin", "nothing.bin"))
    assert ran.code == 4
    assert "nothing.bin: cannot be read" in ran.err


def test_cells_can_be_chosen_and_listed(run_matrix: RunMatrix, two_guests: str) -> None:
    listed = run_matrix(two_guests, "--list")
    assert [cell["runs"] for cell in listed.document["cells"]] == [True] * 4
    assert run_matrix(two_guests, "--only", "image=two").document["ran"] == 2
    assert run_matrix(two_guests, "--only", "image=three").code == 4
    listed = run_matrix(two_guests, "--list")
    assert [cell["runs"] for cell in listed.document["cells"]] == [True, False, True, False]


def test_a_torn_last_line_costs_its_cell_alone(
    run_matrix: RunMatrix, two_guests: str, tmp_path: Path
) -> None:
    run_matrix(two_guests)
    lines = tmp_path / "results" / "results.jsonl"
    lines.write_bytes(lines.read_bytes()[:-20])
    assert run_matrix(two_guests).document["ran"] == 1
    assert run_matrix(two_guests).document["ran"] == 0


def test_repetitions_are_kept_beside_each_other(run_matrix: RunMatrix, two_guests: str) -> None:
    assert run_matrix(two_guests, "--repeat", "2").document["ran"] == 8
    ran = run_matrix(two_guests, "--repeat", "3")
    assert ran.document["ran"] == 4
    assert not any(cell["flaky"] for cell in ran.cells.values())


def test_ctrl_c_keeps_what_is_done(tiny_guest: TinyGuest, tmp_path: Path) -> None:
    tiny_guest("mov al, 1; out 0xf4, al; hlt", name="quick.bin")
    tiny_guest("jmp $", name="slow.bin")
    images = "[axes.image]\nquick = { bios = 'quick.bin' }\nslow = { bios = 'slow.bin' }\n"
    text = "[settings]\nmachine = 'bare'\nmemory = '4M'\ntimeout = 3000\n" + images
    (tmp_path / "m.toml").write_text(text)
    command = [sys.executable, "-m", "casemate", "matrix", "m.toml", "--jobs", "2"]
    # A shell's background job, which these tests may be, ignores SIGINT.
    listening = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=listening)  # noqa: PLW1509
    lines = tmp_path / "m.matrix" / "results.jsonl"
    while not lines.exists() or not lines.read_text():
        assert running.poll() is None
        os.sched_yield()
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate()
    assert running.returncode == 130
    assert "1 unjudged, 1 missing" in said
    assert (tmp_path / "m.matrix" / "matrix.html").exists()


def test_two_runs_do_not_share_a_folder(run_matrix: RunMatrix, two_guests: str, tmp_path: Path) -> None:
    from casemate.matrix.results import Results

    with Results(tmp_path / "results"):
        ran = run_matrix(two_guests)
    assert ran.code == 4
    assert "another run uses it" in ran.err


def test_casemates_own_vmm_is_judged_by_the_rules_of_conformance(
    run_matrix: RunMatrix, two_guests: str
) -> None:
    text = two_guests.replace("[settings]", '[settings]\nwork = ["conform"]')
    ran = run_matrix(text + 'conformance = "kept"\n', "--only", "era=linux-6.18", "--only", "image=one")
    assert ran.code == 0
    assert ran.cells["linux-6.18 one"]["result"]["kept_rules"]


def test_another_vmm_is_run_on_the_modelled_kvm(
    run_matrix: RunMatrix, run_vmm: Vmm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_vmm("lives_and_deaths", "1")  # compiled into the session's folder
    program = next(tmp_path_factory.getbasetemp().glob("vmm*/lives_and_deaths"))
    ran = run_matrix(f"""
        [axes]
        era = ["linux-6.1", "linux-6.18"]
        [axes.vmm]
        other = {{ vmm = ["{program}", "2"] }}
        [[expect]]
        outcome = "ended"
    """)
    assert ran.code == 0, ran.cells
    assert {cell["result"]["exit_code"] for cell in ran.cells.values()} == {0}
    assert run_matrix((Path(ran.document["folder"]).parent / "matrix.toml").read_text()).document["ran"] == 0


def test_a_cell_that_is_too_slow_beside_its_baseline_is_named(
    run_matrix: RunMatrix, two_guests: str, tiny_guest: TinyGuest
) -> None:
    tiny_guest("mov ecx, 20000000; l: dec ecx; jnz l; mov al, 2; out 0xf4, al; hlt", name="guest2.bin")
    text = two_guests + 'slower = { than = { image = "one" }, times = 0.001 }\n'
    ran = run_matrix(text, "--only", "era=linux-6.1")
    assert [cell["verdict"] for cell in ran.cells.values()] == ["good", "bad"]
    assert "times as long as 'linux-6.1 one'" in ran.cells["linux-6.1 two"]["reasons"][0]


@pytest.mark.parametrize("victim", ["server", "cell"])
def test_a_process_that_dies_in_the_middle_loses_no_cell_and_doubles_none(
    victim: str, tiny_guest: TinyGuest, tmp_path: Path
) -> None:
    tiny_guest("mov ecx, 30000000; l: dec ecx; jnz l; mov al, 7; out 0xf4, al; hlt")
    text = "[settings]\nmachine = 'bare'\nmemory = '4M'\nbios = 'guest.bin'\n[axes]\npolicy = [1, 2, 3, 4, 5, 6]\n"
    (tmp_path / "m.toml").write_text(text + "[[expect]]\noutcome = 'exit-port'\n")
    command = [sys.executable, "-m", "casemate", "matrix", "m.toml", "--jobs", "2", "--json"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    lines = tmp_path / "m.matrix" / "results.jsonl"
    is_killed = False
    while not is_killed:
        assert running.poll() is None
        servers = [pid for pid in children(running.pid) if list(children(pid))]
        found = servers if victim == "server" else [cell for pid in servers for cell in children(pid)]
        if found and lines.exists() and lines.read_text():
            with contextlib.suppress(ProcessLookupError):  # the cell came to its end just now
                os.kill(found[0], signal.SIGKILL)
                is_killed = True
    out, _ = running.communicate()
    assert json.loads(out)["counts"]["good"] == 6
    keys = [json.loads(line)["key"] for line in lines.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 6
