"""One client's conversation as bytes: order of the negotiation, arguments, answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from casemate.errors import SpecError
from casemate.qmp.protocol import Command, Conversation, Parameter, QmpError, event, text, uint64
from casemate.version import __version__

READY = {"execute": "qmp_capabilities"}


def fail(error: Exception) -> None:
    raise error


COMMANDS = (
    Command("echo", lambda *given: list(given), (Parameter("word", text), Parameter("number", uint64, True))),
    Command("refuse", lambda: fail(QmpError("not now"))),
    Command("remedy", lambda: fail(SpecError("not so", "do otherwise"))),
    Command("broken", lambda: fail(KeyError("x"))),
)


def talk(*messages: object) -> list[dict[str, Any]]:
    """Answers to these messages, behind the negotiation."""
    conversation = Conversation(COMMANDS, "a test")
    sent = b"".join(json.dumps(message).encode() for message in (READY, *messages))
    _, *answers = map(json.loads, conversation.receive(sent))
    return answers


def refusal(*messages: object) -> tuple[str, str]:
    error = talk(*messages)[-1]["error"]
    return error["class"], error["desc"]


def test_greeting_says_what_answers() -> None:
    greeting = json.loads(Conversation(COMMANDS, "a test").greeting)
    package = greeting["QMP"]["version"]["package"]
    assert package == f"casemate {__version__}, not QEMU; a test"
    assert set(greeting["QMP"]["version"]["qemu"]) == {"major", "minor", "micro"}
    assert greeting["QMP"]["capabilities"] == []


def test_nothing_is_taken_before_the_negotiation_and_that_only_once() -> None:
    conversation = Conversation(COMMANDS, "")
    early, unknown, done, again = map(
        json.loads,
        conversation.receive(
            b'{"execute": "refuse"} {"execute": "x"}' + b'{"execute": "qmp_capabilities"}' * 2
        ),
    )
    for answer in (early, unknown, again):
        assert answer["error"]["class"] == "CommandNotFound"
    assert done == {"return": {}}
    assert "Expecting capabilities negotiation" in early["error"]["desc"]


def test_commands_are_listed_and_unknown_ones_refused() -> None:
    names = [row["name"] for row in talk({"execute": "query-commands"})[0]["return"]]
    assert names == [
        "qmp_capabilities",
        "query-version",
        "query-commands",
        "echo",
        "refuse",
        "remedy",
        "broken",
    ]
    assert refusal({"execute": "nonsense"}) == ("CommandNotFound", "The command nonsense has not been found")


def test_id_of_any_kind_comes_back() -> None:
    for number in (7, None, "x", {"a": [1.5]}):
        good, bad, worse = talk(
            {"execute": "echo", "arguments": {"word": "w"}, "id": number},
            {"execute": "refuse", "id": number},
            {"id": number},
        )
        assert good == {"return": ["w", None], "id": number}
        assert bad["id"] == worse["id"] == number


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ([1], "QMP input must be a JSON object"),
        ({}, "QMP input lacks member 'execute'"),
        ({"execute": 1}, "QMP input member 'execute' must be a string"),
        ({"execute": "echo", "arguments": [1]}, "QMP input member 'arguments' must be an object"),
        ({"execute": "echo", "argument": {}}, "QMP input member 'argument' is unexpected"),
        ({"exec-oob": "echo"}, "QMP input member 'exec-oob' is unexpected"),
        ({"execute": "echo"}, "Parameter 'word' is missing"),
        (
            {"execute": "echo", "arguments": {"word": 1}},
            "Invalid parameter type for 'word', expected: string",
        ),
        (
            {"execute": "echo", "arguments": {"word": "w", "number": True}},
            "Parameter 'number' expects uint64",
        ),
        (
            {"execute": "echo", "arguments": {"word": "w", "number": 1 << 64}},
            "Parameter 'number' expects uint64",
        ),
        ({"execute": "echo", "arguments": {"word": "w", "more": 1}}, "Parameter 'more' is unexpected"),
        ({"execute": "refuse"}, "not now"),
        ({"execute": "remedy"}, "not so; do otherwise"),
        ({"execute": "broken"}, "KeyError: 'x'"),
    ],
)
def test_what_is_wrong_is_named(message: object, says: str) -> None:
    assert refusal(message) == ("GenericError", says)


def test_an_error_of_a_command_ends_no_conversation() -> None:
    *_, last = talk({"execute": "broken"}, {"execute": "echo", "arguments": {"word": "w", "number": -1}})
    assert last == {"return": ["w", (1 << 64) - 1]}


@pytest.mark.parametrize(
    ("enable", "says"),
    [
        ("oob", "Invalid parameter type for 'enable', expected: array"),
        ([1], "Invalid parameter type for 'enable[0]', expected: string"),
        (["more"], "Parameter 'null' does not accept value 'more'"),
        (["oob"], "Capability oob not available"),
    ],
)
def test_capabilities_are_none(enable: object, says: str) -> None:
    assert refusal({"execute": "qmp_capabilities", "arguments": {"enable": enable}})[1] == says


def test_events_have_a_timestamp() -> None:
    assert json.loads(event("STOP", 1_500_000_002_000)) == {
        "event": "STOP",
        "timestamp": {"seconds": 1500, "microseconds": 2},
    }
    assert json.loads(event("RESET", 0, {"guest": True}))["data"] == {"guest": True}
