"""The sign of life that tests give at a terminal."""

from __future__ import annotations

from support.pulse import QUIET_SECONDS, Pulse


def test_a_tilde_is_written_where_no_test_ended_for_seconds() -> None:
    written: list[str] = []
    pulse = Pulse(written.append)
    for _ in range(QUIET_SECONDS - 1):
        pulse.tick()
    pulse.pytest_runtest_logreport()
    for _ in range(2 * QUIET_SECONDS - 1):
        pulse.tick()
    assert written == ["~"]
