"""Configuration space: identity, masks, BAR sizing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.devices.pci.config import CONFIG_SIZE, PciFunction, Register


def function() -> PciFunction:
    return PciFunction(0x1AF4, 0x1234, class_code=0x0C0330, revision=7)


def test_function_shows_its_identity() -> None:
    pci = function()
    assert pci.read_config(Register.VENDOR, 4) == 0x1234_1AF4
    assert pci.read_config(Register.REVISION, 4) == 0x0C03_3007
    assert pci.read_config(Register.SUBSYSTEM_VENDOR, 4) == 0x1100_1AF4
    assert pci.read_config(Register.HEADER_TYPE, 1) == 0


@given(
    register=st.integers(0, CONFIG_SIZE - 1),
    size=st.sampled_from([1, 2, 4]),
    value=st.integers(0, (1 << 32) - 1),
)
def test_function_without_registers_keeps_only_command_and_interrupt_line(
    register: int, size: int, value: int
) -> None:
    pci, untouched = function(), function()
    pci.write_config(register, size, value)
    changed = {i for i in range(CONFIG_SIZE) if pci.read_config(i, 1) != untouched.read_config(i, 1)}
    assert changed <= {Register.COMMAND, Register.COMMAND + 1, Register.INTERRUPT_LINE}
    assert not pci.read_config(Register.COMMAND, 2) & ~0x0547


@pytest.mark.parametrize("size", [16, 4096, 1 << 20, 1 << 31])
def test_memory_bar_is_sized_by_writing_ones(size: int) -> None:
    pci = function()
    pci.define_bar(0, size)
    pci.write_config(Register.BAR0, 4, 0xFFFF_FFFF)
    answer = pci.read_config(Register.BAR0, 4)
    assert -(answer & ~0xF) & 0xFFFF_FFFF == size
    assert answer & 0xF == 0
    pci.write_config(Register.BAR0, 4, 0xC000_0000 | size)
    assert pci.read_config(Register.BAR0, 4) == (0xC000_0000 | size) & -size


@pytest.mark.parametrize("size", [4, 32, 256])
def test_io_bar_is_sized_by_writing_ones(size: int) -> None:
    pci = function()
    pci.define_bar(4, size, io=True)
    pci.write_config(0x20, 4, 0xFFFF_FFFF)
    answer = pci.read_config(0x20, 4)
    assert -(answer & ~0x3) & 0xFFFF_FFFF == size
    assert answer & 0x3 == 1


def test_bar_that_is_not_there_reads_zero() -> None:
    pci = function()
    pci.write_config(Register.BAR0 + 4, 4, 0xFFFF_FFFF)
    assert pci.read_config(Register.BAR0 + 4, 4) == 0


@pytest.mark.parametrize(("size", "io"), [(24, False), (8, False), (2, True), (0, True)])
def test_bar_of_impossible_size_is_refused(size: int, io: bool) -> None:
    with pytest.raises(ValueError, match="cannot ask"):
        function().define_bar(0, size, io)


def test_reset_restores_power_on_values() -> None:
    pci = function()
    pci.define(0x40, 4, 0x11, 0xFFFF)
    pci.write_config(0x40, 4, 0x2222)
    pci.write_config(Register.COMMAND, 2, 0x07)
    pci.reset()
    assert pci.read_config(0x40, 4) == 0x11
    assert pci.read_config(Register.COMMAND, 2) == 0
