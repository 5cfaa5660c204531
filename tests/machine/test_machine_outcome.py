"""What an outcome shows of itself (docs/guide/boot.md)."""

from __future__ import annotations

from casemate.machine.outcome import Ending, Outcome

OUTCOME = Outcome(Ending.EXIT_PORT, "left", 0.25, "hello", {"bios": {"file": "a.bin"}})


def test_outcome_shows_itself_without_its_report() -> None:
    shown = (
        "Outcome(ending=<Ending.EXIT_PORT: ('exit-port', 0)>, detail='left', seconds=0.25, serial='hello')"
    )
    assert repr(OUTCOME) == shown


def test_json_form_begins_with_how_it_ended() -> None:
    head = [*OUTCOME.to_json().items()][1:6]
    assert head == [
        ("outcome", "exit-port"),
        ("detail", "left"),
        ("exit_code", 0),
        ("seconds", 0.25),
        ("bios", {"file": "a.bin"}),
    ]
