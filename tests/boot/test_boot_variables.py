"""Variable stores under fire: cuts of real boots, repairs that boot, and variables set from outside (Debian images)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.firmware_images import require_image

from casemate.advise.store_check import check_store, repair_store
from casemate.cli import main
from casemate.errors import ImageError
from casemate.firmware.variables import DELETED, VENDORS, Variable
from casemate.machine.boot import Attachments, boot
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.power_cut import FlashChange, FlashJournal, PowerCut, store_after_cut
from casemate.machine.spec import MachineSpec

pytestmark = pytest.mark.boot

PROMPT = "Shell> "
PAIRS = {"2M": ("OVMF_CODE.fd", "OVMF_VARS.fd"), "4M": ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")}


def spec_of(size: str, folder: Path, store: bytes | None = None) -> MachineSpec:
    code, template = (require_image(name, "bookworm") for name in PAIRS[size])
    variables = folder / "VARS.fd"
    variables.write_bytes(template.read_bytes() if store is None else store)
    return MachineSpec(code=code, variables=variables)


def stored(spec: MachineSpec) -> bytes:
    assert spec.variables is not None
    return spec.variables.read_bytes()


def record(spec: MachineSpec) -> tuple[bytes, list[FlashChange]]:
    """The write before a boot, and all changes of it."""
    journal, before = FlashJournal(), stored(spec)
    outcome = boot(spec, until=PROMPT, timeout=100, attachments=Attachments(on_start=journal.attach))
    assert outcome.ending is Ending.UNTIL, outcome
    return before, journal.changes


def plain_text(outcome: Outcome) -> str:
    return re.sub(r"\x1b\[[0-9;=]*[a-zA-Z]", "", outcome.serial)


def needs_cleaning(store: bytes, free: int = 100) -> bytes:
    """The write with its room but ``free`` bytes taken by deleted records, so that firmware must rewrite it."""
    data, check = bytearray(store), check_store(store, "VARS.fd")
    at = check.layout.end - check.free
    while (room := check.layout.end - at - free) > 200:
        record = bytearray(
            Variable("Old", VENDORS["shell"], 7, bytes(min(3000, room - 100))).encode(authenticated=True)
        )
        record[2] = DELETED[0]
        data[at : at + len(record)] = record
        at += len(record)
    return bytes(data)


@pytest.fixture(scope="module")
def rewrite(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[FlashChange]]:
    """A boot that has to rewrite its write: what was in it, and all changes."""
    folder = tmp_path_factory.mktemp("rewrite")
    first = spec_of("2M", folder)
    record(first)
    return record(spec_of("2M", folder, needs_cleaning(stored(first))))


def names_in(store: bytes) -> set[tuple[bytes, str]]:
    return {(variable.guid, variable.name) for variable in check_store(store, "VARS.fd").variables}


def test_every_cut_of_a_first_boot_is_judged_and_repaired(tmp_path: Path) -> None:
    before, changes = record(spec_of("2M", tmp_path))
    known: set[Variable] = set()
    for number in range(1, len(changes) + 1, 41):
        torn = store_after_cut(before, changes, number)
        check = check_store(torn, "VARS.fd")
        repaired = check_store(repair_store(torn, check), "VARS.fd")
        assert (repaired.variables, repaired.findings) == (check.whole, ()), number
        known |= set(check.variables)
    assert len(known) > 20


def test_cuts_of_a_rewrite_lose_no_variable(rewrite: tuple[bytes, list[FlashChange]]) -> None:
    before, changes = rewrite
    names = names_in(before)
    erases = [number for number, change in enumerate(changes, 1) if len(change.new) == 4096]
    assert erases
    findings = set()
    for number in (*erases, *range(erases[0], len(changes), 4999)):
        torn = store_after_cut(before, changes, number)
        check = check_store(torn, "VARS.fd")
        assert {variable.key for variable in check.whole} >= names, number
        findings |= {finding.what.partition(":")[0] for finding in check.findings}
    assert any("a fault-tolerant write to 0x0 was cut off" in what for what in findings), findings


@pytest.mark.parametrize(("writes", "survives"), [(500, True), (0, False)])
def test_rewrite_that_was_cut_off_is_finished_by_firmware_or_by_repair(
    writes: int, survives: bool, rewrite: tuple[bytes, list[FlashChange]], tmp_path: Path
) -> None:
    before, changes = rewrite
    cut = next(
        number for number, change in enumerate(changes, 1) if len(change.new) == 4096 and not change.offset
    )
    spec = spec_of("2M", tmp_path, store_after_cut(before, changes, cut + writes))
    if not survives:  # the headers are gone: OVMF formats the write, spare block and all, and hangs
        with pytest.raises(ImageError, match="would lose all of its variables; run casemate vars repair"):
            boot(spec, until=PROMPT, timeout=100)
        assert main(["vars", "repair", str(spec.variables), "--in-place"]) == 0
    assert boot(spec, until=PROMPT, timeout=100).ending is Ending.UNTIL
    assert check_store(stored(spec), "VARS.fd").is_healthy
    assert names_in(stored(spec)) >= names_in(before)


def test_power_cut_leaves_what_the_journal_says(tmp_path: Path) -> None:
    spec = spec_of("2M", tmp_path)
    before, changes = record(spec)
    spec = spec_of("2M", tmp_path)
    outcome = boot(spec, until=PROMPT, timeout=100, attachments=Attachments(on_start=PowerCut(3000).attach))
    assert outcome.ending is Ending.POWER_CUT
    assert stored(spec) == store_after_cut(before, changes, 3000)


@pytest.mark.parametrize("size", ["2M", "4M"])
def test_repaired_store_boots_with_its_variables(size: str, tmp_path: Path) -> None:
    spec = spec_of(size, tmp_path)
    assert spec.variables is not None
    record(spec)
    arguments = [
        "vars",
        "set",
        str(spec.variables),
        "greeting",
        "--utf16",
        "kept",
        "--guid",
        "shell",
        "--in-place",
    ]
    assert main(arguments) == 0
    broken = bytearray(stored(spec))
    broken[0x32] ^= 1  # the volume's checksum: firmware would format the write
    broken[0x64 + 60 + 90] ^= 0x40
    spec.variables.write_bytes(broken)
    assert main(["vars", "fsck", str(spec.variables)]) == 4
    assert main(["vars", "repair", str(spec.variables), "--in-place"]) == 0
    assert main(["vars", "fsck", str(spec.variables)]) == 0
    outcome = boot(spec, typed=["set greeting"], timeout=100)
    assert "greeting = kept" in plain_text(outcome)


@pytest.mark.parametrize(("free", "is_rewritten"), [(0x2700, True), (0x6000, False)])
def test_store_is_rewritten_at_the_next_boot_when_the_check_says_so(
    free: int, is_rewritten: bool, tmp_path: Path
) -> None:
    spec = spec_of("2M", tmp_path)
    record(spec)
    aged = needs_cleaning(stored(spec), free)
    check = check_store(aged, "VARS.fd")
    assert any("at the next boot" in finding.effect for finding in check.findings) is is_rewritten
    boot(spec_of("2M", tmp_path, aged), until=PROMPT, timeout=100)
    after = check_store(stored(spec), "VARS.fd")
    assert (after.reclaimable < check.reclaimable // 2) is is_rewritten


@pytest.mark.parametrize("size", ["2M", "4M"])
def test_virt_firmware_reads_what_is_written(size: str, tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("virt-fw-vars")
    if not tool.exists():
        pytest.skip("virt-fw-vars is not installed: pip install virt-firmware")
    spec = spec_of(size, tmp_path)
    record(spec)
    path, theirs = str(spec.variables), tmp_path / "theirs.json"
    assert main(["vars", "set", path, "Timeout", "--hex", "0700", "--in-place"]) == 0
    assert main(["vars", "delete", path, "BootOrder", "--in-place"]) == 0
    arguments = [str(tool), "--input", path, "--output-json", str(theirs)]
    subprocess.run(arguments, check=True, capture_output=True)
    document = json.loads(theirs.read_text())["variables"]
    listed = {(entry["name"], entry["guid"]): (entry["data"], entry["attr"]) for entry in document}
    from casemate.firmware.guids import guid_text

    ours = check_store(stored(spec), path).variables
    assert listed == {(v.name, guid_text(v.guid)): (v.data.hex(), v.attributes) for v in ours}
    assert ("BootOrder", "8be4df61-93ca-11d2-aa0d-00e098032b8c") not in listed
    assert main(["vars", "import", path, str(theirs), "--in-place"]) == 0
    assert set(check_store(stored(spec), path).variables) == set(ours)
