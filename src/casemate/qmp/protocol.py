"""One client's conversation: greeting, negotiation, commands and their answers (QEMU docs/interop/qmp-spec).

Everything here is pure: bytes in, bytes out. Texts of errors are QEMU's, since programs look for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from casemate.errors import CasemateError
from casemate.qmp.messages import BadJson, MessageStream
from casemate.version import __version__

_MEMBERS = {"execute", "arguments", "id"}
_NEGOTIATE = "qmp_capabilities"


class QmpError(Exception):
    """An answer that says no: ``kind`` is the protocol's class of errors."""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.kind = kind


class Parameter(NamedTuple):
    """One argument of a command; ``read`` checks its value, given its name, and raises QmpError."""

    name: str
    read: Callable[[str, Any], Any]
    is_optional: bool = False


class Command(NamedTuple):
    """A command: ``run`` gets the arguments in the order of ``parameters``, None for those that are missing."""

    name: str
    run: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise QmpError(f"Invalid parameter type for '{name}', expected: string")
    return value


def uint64(name: str, value: Any) -> int:
    """An unsigned number; negative ones wrap, as QEMU has it."""
    if type(value) is not int or not -(1 << 63) <= value < 1 << 64:
        raise QmpError(f"Parameter '{name}' expects uint64")
    return value % (1 << 64)


def capabilities(name: str, value: Any) -> None:
    """A list of the protocol's capabilities, of which there are none here."""
    if not isinstance(value, list):
        raise QmpError(f"Invalid parameter type for '{name}', expected: array")
    for index, item in enumerate(value):
        if text(f"{name}[{index}]", item) != "oob":
            raise QmpError(f"Parameter 'null' does not accept value '{item}'")
    if value:
        raise QmpError("Capability oob not available")


def version(about: str) -> dict[str, Any]:
    """What answers, and ``about`` it; ``qemu`` is where the protocol has three numbers, and they are casemate's."""
    major, minor, micro = (int(part) for part in __version__.split(".")[:3])
    return {
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": f"casemate {__version__}, not QEMU; {about}",
    }


def encode(message: dict[str, Any]) -> bytes:
    """One message for the wire."""
    return json.dumps(message).encode() + b"\r\n"


def event(name: str, nanoseconds: int, data: dict[str, Any] | None = None) -> bytes:
    """One event that happened at this time since 1970."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    stamp = {"seconds": seconds, "microseconds": rest // 1000}
    return encode({"event": name, "timestamp": stamp} | ({} if data is None else {"data": data}))


class Conversation:
    """With one client, from its greeting on; ``about`` is for ``version``."""

    def __init__(self, commands: Sequence[Command], about: str) -> None:
        self.greeting = encode({"QMP": {"version": version(about), "capabilities": []}})
        self.is_negotiated = False
        """Whether commands are taken and events sent."""
        own = (
            Command(_NEGOTIATE, self._negotiate, (Parameter("enable", capabilities, True),)),
            Command("query-version", lambda: version(about)),
            Command("query-commands", lambda: [{"name": name} for name in self._commands]),
        )
        self._commands: Mapping[str, Command] = {command.name: command for command in (*own, *commands)}
        self._stream = MessageStream()

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Answers to what the client sent, each when its command is done."""
        for message in self._stream.feed(data):
            yield encode(self._answer(message))

    def _answer(self, message: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        try:
            if isinstance(message, BadJson):
                raise QmpError(str(message))
            if not isinstance(message, dict):
                raise QmpError("QMP input must be a JSON object")
            if "id" in message:
                answer["id"] = message["id"]
            name, arguments = _check(message)
            command = self._find(name)
            answer["return"] = command.run(*_arguments(command, arguments))
        except QmpError as error:
            answer["error"] = {"class": error.kind, "desc": str(error)}
        except Exception as error:  # of the command: neither the guest's end nor the conversation's
            what = str(error) if isinstance(error, CasemateError) else f"{type(error).__name__}: {error}"
            answer["error"] = {"class": "GenericError", "desc": what}
        return answer

    def _find(self, name: str) -> Command:
        if not self.is_negotiated and name != _NEGOTIATE:
            raise QmpError(
                f"Expecting capabilities negotiation with '{_NEGOTIATE}'",
                "CommandNotFound",
            )
        if name not in self._commands:
            raise QmpError(f"The command {name} has not been found", "CommandNotFound")
        return self._commands[name]

    def _negotiate(self, _enable: None) -> dict[str, Any]:
        if self.is_negotiated:
            raise QmpError("Capabilities negotiation is already complete, command ignored", "CommandNotFound")
        self.is_negotiated = True
        return {}


def _check(message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    unexpected = next((member for member in message if member not in _MEMBERS), None)
    if unexpected is not None:
        raise QmpError(f"QMP input member '{unexpected}' is unexpected")
    if "execute" in message and not isinstance(message["execute"], str):
        raise QmpError("QMP input member 'execute' must be a string")
    arguments = message.get("arguments", {})
    if not isinstance(arguments, dict):
        raise QmpError("QMP input member 'arguments' must be an object")
    if "execute" not in message:
        raise QmpError("QMP input lacks member 'execute'")
    return message["execute"], arguments


def _arguments(command: Command, given: dict[str, Any]) -> list[Any]:
    values = []
    for name, read, is_optional in command.parameters:
        if name not in given and not is_optional:
            raise QmpError(f"Parameter '{name}' is missing")
        values.append(read(name, given[name]) if name in given else None)
    known = {parameter.name for parameter in command.parameters}
    unexpected = next((name for name in given if name not in known), None)
    if unexpected is not None:
        raise QmpError(f"Parameter '{unexpected}' is unexpected")
    return values
