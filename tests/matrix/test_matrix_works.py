"""What a cell of ``casemate matrix`` can do beside booting: conformance, proofs, power cuts, fuzzing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.booting import TinyGuest
from support.firmware_images import require_image
from support.matrix_runs import RunMatrix
from support.vmm_programs import Vmm

from casemate.cli import main
from casemate.testing.images import variable_store
from tools.roots.make import cache_folder

CODE_BYTES, STORE_BYTES = 0x10000, 0x20000
FREE = (1 << 32) - CODE_BYTES - 16
"""Near the end of the variable store, where nothing is written yet."""
WRITES = f"""
    mov edi, {FREE:#x}
    mov byte [edi], 0x40; mov byte [edi], 0x12; mov byte [edi], 0x70; mov byte [edi], 0xff
    mov byte [edi + 1], 0x40; mov byte [edi + 1], 0x34; mov byte [edi + 1], 0x70; mov byte [edi], 0xff
    mov dx, 0x3f8; mov al, 0x6f; out dx, al; mov al, 0x6b; out dx, al
    hlt
"""
"""Programs two bytes of flash, and says ok."""


def test_attacks_on_protected_memory_are_a_cells_work(run_matrix: RunMatrix) -> None:
    ran = run_matrix("""
        [settings]
        work = ["prove"]
        [axes]
        kind = ["plain", "sev-es", "snp"]
        protection = ["slot", "vma"]
        [[exclude]]
        kind = "snp"
        protection = "vma"
        [[expect]]
        outcome = "unchanged"
        [[expect]]
        where = { kind = "snp" }
        outcome = "refused"
        [[expect]]
        where = { kind = "sev-es", protection = "slot" }
        outcome = "refused"
    """)
    assert ran.code == 0, ran.cells
    assert "attacks" in ran.cells["plain slot"]["result"]["detail"]
    assert ran.cells["sev-es vma"]["result"]["outcome"] == "unchanged"


def test_cuts_of_the_power_are_a_cells_work(
    run_matrix: RunMatrix, tiny_guest: TinyGuest, tmp_path: Path
) -> None:
    image = tiny_guest(WRITES)
    image.write_bytes(image.read_bytes()[-CODE_BYTES:].rjust(CODE_BYTES, b"\xff"))
    (tmp_path / "vars.fd").write_bytes(variable_store(STORE_BYTES))
    before = (tmp_path / "vars.fd").read_bytes()
    ran = run_matrix("""
        [settings]
        work = ["power-cuts"]
        code = "guest.bin"
        variables = "vars.fd"
        machine = "pc"
        memory = "16M"
        until = "ok"
        [axes]
        cuts = [1, 5]
        [[expect]]
        outcome = "survived"
    """)
    assert ran.code == 0, ran.cells
    assert ran.cells["5"]["result"]["next_boots"] == {"until": 2}
    assert (tmp_path / "vars.fd").read_bytes() == before


def test_a_fuzzing_target_is_a_cells_work(run_matrix: RunMatrix, tmp_path: Path) -> None:
    ran = run_matrix("""
        [settings]
        work = ["fuzz"]
        fuzz-seconds = 0.5
        [axes]
        fuzz = ["plans", "nothing"]
        [[expect]]
        outcome = "done"
        [[expect]]
        where = { fuzz = "nothing" }
        outcome = "refused"
    """)
    assert ran.code == 0, ran.cells
    (name,) = ran.cells["plans"]["artefacts"]
    assert json.loads((tmp_path / "results" / name).read_text())["inputs"] > 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("work = ['power-cuts']\nbios = 'x.fd'", "give code and variables"),
        ("work = ['power-cuts']\ncode = 'x'\nvariables = 'y'\nkind = 'sev'", "plain guests alone"),
        ("work = ['fuzz']", "name a target"),
        ("work = ['power-cuts']\ncuts = 0", "1 or more"),
    ],
)
def test_work_that_lacks_something_is_refused(text: str, says: str, run_matrix: RunMatrix) -> None:
    ran = run_matrix(f"[settings]\n{text}\n[axes]\nvcpus = [1]\n")
    assert ran.code == 4
    assert says in ran.err


def test_another_vmm_is_judged_and_what_it_breaks_is_in_the_grid_and_in_sarif(
    run_matrix: RunMatrix,
    run_vmm: Vmm,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_vmm("vmm")  # compiled into the session's folder
    program = next(tmp_path_factory.getbasetemp().glob("vmm*/vmm"))
    words = [str(program), "first", "-bios"]
    ran = run_matrix(f"""
        [settings]
        work = ["conform"]
        timeout = 60
        [axes.vmm]
        first = {{ vmm = {json.dumps(words)} }}
        final = {{ vmm = {json.dumps([words[0], "final", "-bios"])} }}
        [[expect]]
        conformance = "kept"
    """)
    results = {name: cell["result"] for name, cell in ran.cells.items()}
    assert "bios-never-armed" in results["first"]["broken_rules"], ran.cells
    assert results["final"]["broken_rules"] == []
    assert results["final"]["kept_rules"]
    page = (tmp_path / "results" / "matrix.html").read_text()
    assert f"conformance: {len(results['first']['broken_rules'])} broken" in page
    capsys.readouterr()
    main(["conform", "--sarif", "--", *words])
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["tool"]["driver"]["name"] == "casemate conform"
    assert {found["ruleId"] for found in run["results"]} == set(results["first"]["broken_rules"])


@pytest.mark.boot
@pytest.mark.parametrize("suite", ["sid"])
@pytest.mark.timeout(300)
def test_a_qemu_of_another_release_boots_and_keeps_the_rules(suite: str, run_matrix: RunMatrix) -> None:
    tree = cache_folder() / f"{suite}-full" / "tree" / "usr"
    if not (tree / "bin/qemu-system-x86_64").exists():
        pytest.skip(f"no QEMU in the root {suite}-full: ./dev roots makes it")
    code, variables = (require_image(name, "bookworm") for name in ("OVMF_CODE.fd", "OVMF_VARS.fd"))
    drives = [
        f"if=pflash,format=raw,readonly={on},file={{{name}}}"
        for name, on in (("code", "on"), ("variables", "off"))
    ]
    words = ["env", f"{tree}/lib64/ld-linux-x86-64.so.2", "--library-path", f"{tree}/lib/x86_64-linux-gnu"]
    words += [f"{tree}/bin/qemu-system-x86_64", "-L", f"{tree}/share/qemu", "-L", f"{tree}/share/seabios"]
    words += ["-accel", "kvm", "-M", "pc", "-m", "256", "-nodefaults", "-display", "none", "-net", "none"]
    words += ["-serial", "stdio", "-drive", drives[0], "-drive", drives[1]]
    ran = run_matrix(f"""
        [settings]
        work = ["conform"]
        until = "Shell> "
        timeout = 200
        code = "{code}"
        variables = "{variables}"
        [axes.qemu]
        other = {{ vmm = {json.dumps(words)} }}
        [[expect]]
        outcome = "until"
        conformance = "kept"
    """)
    assert ran.code == 0, ran.cells
    assert "flash-protected" in ran.cells["other"]["result"]["kept_rules"]
