"""Every hostile guest, on every host, kind and protection, ends as the table says and changes nothing it may not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.confidential_launches import DEBUG_SWAP, Launch, sev_es
from support.hosts import kvm_or_skip

from casemate.errors import UnsupportedError
from casemate.guests.entry import IMAGE_SIZE
from casemate.guests.hostile import COLUMNS, EXIT_VALUE, HOSTILE, HostileGuest, image
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.kvm.modules import loaded_vendor_module
from casemate.host.kvm.userfault import open_userfaultfd
from casemate.machine.boot import boot
from casemate.machine.outcome import Ending, Outcome
from casemate.machine.spec import MachineSpec
from casemate.memory.protection import OnWrite
from casemate.testing.hostile_page import render

BLANK = b"\xee" * IMAGE_SIZE
PAGE = Path(__file__).parents[2] / "docs" / "design" / "hostile.md"
WITHOUT_END = {"spin", "halt"}


def host_name(host: str) -> str:
    return "model" if host == "model" else loaded_vendor_module() or "kvm"


def boot_plain(guest: HostileGuest, column: str, host: str, code: Path, variables: Path) -> Outcome:
    protection, _, on_write = column.partition(" ")
    if protection == "bios":
        spec = MachineSpec(bios=code, memory=16 << 20)
    else:
        spec = MachineSpec(
            code=code,
            variables=variables,
            memory=16 << 20,
            protection=protection,  # type: ignore[arg-type]
            on_write=OnWrite(on_write) if on_write else None,
        )
    seconds = 0.2 if guest.name in WITHOUT_END else 100
    make = None if host == "model" else lambda clock: KvmHypervisor()
    return boot(spec, timeout=seconds, hypervisor=make)


def boot_sealed(column: str, code: Path, variables: Path) -> Outcome:
    if column == "sev-es slot":
        return Launch(sev_es(code, variables), era="linux-6.1").run()
    return Launch(sev_es(code, variables), DEBUG_SWAP, era="linux-6.18").run()


@pytest.fixture(params=["model", "kvm"])
def host(request: pytest.FixtureRequest) -> str:
    if request.param == "kvm":
        kvm_or_skip()
    name: str = request.param
    return name


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("guest", HOSTILE, ids=lambda guest: guest.name)
def test_hostile_guest_ends_as_the_table_says(
    guest: HostileGuest, column: str, host: str, tmp_path: Path
) -> None:
    expected = guest.ending(column, host_name(host))
    if expected is None:
        return  # the table has no such run
    if column.startswith("uffd"):
        try:
            os.close(open_userfaultfd())
        except UnsupportedError as reason:
            pytest.skip(str(reason))
    code, variables = tmp_path / "code.fd", tmp_path / "vars.fd"
    code.write_bytes(image(guest))
    variables.write_bytes(BLANK)
    protected = column.startswith("sev-es")
    outcome = (
        boot_sealed(column, code, variables)
        if protected
        else boot_plain(guest, column, host, code, variables)
    )
    assert outcome.ending.word == expected, outcome.detail
    assert code.read_bytes() == image(guest)
    changed = variables.read_bytes() != BLANK
    assert changed is (guest.programs and column == "slot")
    if outcome.ending is Ending.VIOLATION:
        assert outcome.report["writes"]["violations"] >= 1  # a write over a border is two
    if outcome.ending is Ending.EXIT_PORT and guest.name != "leave-status-mode-on":
        assert outcome.report["exit_port"] == EXIT_VALUE


def test_status_mode_shows_status_behind_a_slot_and_contents_behind_a_mapping(tmp_path: Path) -> None:
    guest = next(guest for guest in HOSTILE if guest.name == "leave-status-mode-on")
    for column, shown in (("slot", 0x80), ("vma drop", 0xEE)):
        (tmp_path / "code.fd").write_bytes(image(guest))
        (tmp_path / "vars.fd").write_bytes(BLANK)
        outcome = boot_plain(guest, column, "model", tmp_path / "code.fd", tmp_path / "vars.fd")
        assert outcome.report["exit_port"] == shown


def test_table_is_big_enough_and_says_what_each_does() -> None:
    assert len(HOSTILE) >= 20
    assert len({guest.name for guest in HOSTILE}) == len(HOSTILE)
    assert all(guest.purpose and len(guest.model) == len(COLUMNS) for guest in HOSTILE)


def test_the_page_is_what_the_table_renders() -> None:
    assert PAGE.read_text() == render(), "python -m casemate.testing.hostile_page > docs/design/hostile.md"
