"""Reset ports: which writes reset the machine, and which must not."""

from __future__ import annotations

import pytest

from casemate.devices.reset import Port92, ResetControl


class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


@pytest.mark.parametrize(
    ("value", "resets"), [(0x02, 0), (0x04, 1), (0x06, 1), (0x0E, 1), (0x08, 0), (0x00, 0)]
)
def test_cf9_resets_on_bit_2_and_shows_the_kind(value: int, resets: int) -> None:
    counter = Counter()
    port = ResetControl(counter)
    assert port.write_port(0, 1, value)
    assert counter.calls == resets
    assert port.read_port(0, 1) == value & 0x0A


def test_cf9_refuses_wide_accesses() -> None:
    counter = Counter()
    assert not ResetControl(counter).write_port(0, 4, 0x06)
    assert ResetControl(counter).read_port(0, 2) is None
    assert counter.calls == 0


def test_port_92_keeps_a20_and_resets_on_a_rising_bit_0() -> None:
    counter = Counter()
    port = Port92(counter)
    assert port.read_port(0, 1) == 0x02
    port.write_port(0, 1, 0x00)
    assert port.read_port(0, 1) == 0x00
    port.write_port(0, 1, 0x03)
    port.write_port(0, 1, 0x03)
    assert counter.calls == 1
    assert port.read_port(0, 1) == 0x03
    port.reset()
    assert port.read_port(0, 1) == 0x02


def test_port_92_refuses_wide_accesses() -> None:
    counter = Counter()
    assert not Port92(counter).write_port(0, 2, 0x01)
    assert Port92(counter).read_port(0, 2) is None
    assert counter.calls == 0
