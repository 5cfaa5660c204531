"""Guests of Debian's QEMU under each kernel (docs/design/qemu-matrix.md, tools/qemu_matrix.toml)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.qemu_matrix import PLACE, Cell, cells, run, short, table
from tools.rooted_qemu import CannotError, Outcome
from tools.seed_table import BOOTED

SHORT = short()


@pytest.mark.boot
@pytest.mark.parametrize("cell", SHORT, ids=lambda cell: "-".join(cell.key))
def test_guest_comes_to_what_the_sources_say(cell: Cell) -> None:
    try:
        outcome = run(cell)
    except CannotError as error:
        pytest.skip(str(error))
    assert cell.faults(outcome) == [], outcome.errors


def test_every_cell_is_expected_once_and_has_a_source() -> None:
    everything = list(cells())
    keys = {cell.key for cell in everything}
    assert len(keys) == len(everything) == 3 * 4 * 2 * 5
    assert all(cell.source for cell in everything)
    assert all(bool(cell.vm_type) != bool(cell.says) for cell in everything)


def test_ten_cells_stand_for_the_rest() -> None:
    assert len(SHORT) == 10
    assert {bool(cell.says) for cell in SHORT} == {True, False}


def test_a_refusal_that_is_none_and_a_boot_of_another_type_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Cell, "predicted", lambda _: "00")
    refused = next(cell for cell in SHORT if cell.says)
    booted = next(cell for cell in SHORT if cell.vm_type)
    seen = Outcome(0, "", BOOTED, {"type": booted.vm_type, "digest": "00"})
    assert booted.faults(seen) == []
    assert booted.faults(replace(seen, vm={"type": "KVM_X86_SNP_VM", "digest": "00"}))
    assert booted.faults(replace(seen, vm={"type": booted.vm_type, "digest": "01"}))
    assert refused.faults(Outcome(1, f"qemu: {refused.says}\n", "")) == []
    assert refused.faults(seen) == ["exit code 0, not 1", f"nothing about {refused.says!r}", "the guest ran"]


def test_the_page_has_the_table_of_what_is_expected() -> None:
    assert PLACE.shown() == table(cells())
