"""What an outcome says of the image that was given by --bios."""

from __future__ import annotations

import hashlib

from casemate.machine.outcome import Ending, Outcome

IMAGE = b"firmware"


def outcome() -> Outcome:
    facts = {"bios": {"file": "a.bin", "input_sha256": None, "sha256": None, "size": len(IMAGE)}}
    return Outcome(Ending.EXIT_PORT, "left", 0.25, "hello", facts, IMAGE)


def test_report_has_the_digest_of_the_image_where_it_always_was() -> None:
    digest = hashlib.sha256(IMAGE).hexdigest()
    report = outcome().report
    assert [*report["bios"].items()] == [
        ("file", "a.bin"),
        ("input_sha256", digest),
        ("sha256", digest),
        ("size", len(IMAGE)),
    ]


def test_report_is_finished_once() -> None:
    ended = outcome()
    ended.report["bios"]["sha256"] = "seen"
    assert ended.report["bios"]["sha256"] == "seen"
    assert ended.to_json()["bios"]["sha256"] == "seen"


def test_outcome_shows_itself_without_its_report() -> None:
    assert repr(outcome()) == "Outcome(Ending.EXIT_PORT, 'left', 0.25, 'hello')"
