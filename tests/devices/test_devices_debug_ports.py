"""Debug console and exit port."""

from __future__ import annotations

from casemate.devices.debugcon import DebugCon
from casemate.devices.exit_port import ExitPort


def test_debugcon_answers_the_probe_and_hands_bytes_on() -> None:
    seen: list[int] = []
    device = DebugCon(seen.append)
    assert device.read_port(0, 1) == 0xE9
    for byte in b"SEC":
        assert device.write_port(0, 1, byte)
    assert bytes(seen) == b"SEC"


def test_exit_port_remembers_the_first_value_and_stops() -> None:
    stops: list[bool] = []
    device = ExitPort(lambda: stops.append(True))
    assert device.value is None
    assert device.write_port(0, 1, 0)
    assert device.write_port(0, 4, 0x31)
    assert device.value == 0
    assert stops == [True, True]
