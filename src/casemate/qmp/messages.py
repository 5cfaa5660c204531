"""JSON values out of a stream of bytes, as QEMU cuts them (QEMU docs/interop/qmp-spec, qobject/json-streamer)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isfinite
from typing import Any

MAX_MESSAGE = 1 << 20
"""Bytes; the longest message is a secret of 16 KiB in base64."""
MAX_DEPTH = 100
_NEVER_IN_JSON = b"\xfe\xff"
_OPENING, _CLOSING, _SEPARATORS, _QUOTES = b"{[", b"}]", b":,", b"\"'"


class BadJson(ValueError):
    """What was sent is no JSON; the text says why."""


class MessageStream:
    """Takes bytes as they come, split anywhere; gives each value, or a ``BadJson`` for what is none, as it is complete.

    Strings may be in single quotes, as QEMU takes them. A control character in a string, and a byte 0xFE or 0xFF
    anywhere, start afresh.
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._depth = 0
        self._quote = 0
        self._escaped = False
        self._skips_line = False

    def feed(self, data: bytes) -> Iterator[Any]:
        """Values (a ``BadJson`` among them) that these bytes complete."""
        for byte in data:
            if self._skips_line:
                self._skips_line = byte >= 0x20 and byte not in _NEVER_IN_JSON
            elif byte in _NEVER_IN_JSON or (self._quote and byte < 0x20):
                self._start_afresh()
                yield BadJson("JSON parse error, stray character")
            elif self._quote:
                if self._take_quoted(byte):
                    yield self._finish()
            else:
                yield from self._take(byte)
            if len(self._text) > MAX_MESSAGE or self._depth > MAX_DEPTH:
                limit = "nesting depth" if self._depth > MAX_DEPTH else "token size"
                self._start_afresh()
                self._skips_line = True
                yield BadJson(f"JSON {limit} limit exceeded")

    def _take(self, byte: int) -> Iterator[Any]:
        """A byte outside of strings."""
        ends_word = byte <= 0x20 or byte in _OPENING + _CLOSING + _SEPARATORS + _QUOTES
        if ends_word and self._text and not self._depth:
            yield self._finish()
        if byte in _QUOTES:
            self._quote = byte
            self._text += b'"'
            return
        if byte > 0x20 or self._depth:
            self._text.append(byte)
        if byte in _OPENING:
            self._depth += 1
        elif byte in _CLOSING:
            self._depth = max(self._depth - 1, 0)
        if byte in _CLOSING + _SEPARATORS and not self._depth:
            yield self._finish()

    def _take_quoted(self, byte: int) -> bool:
        """A byte of a string; whether it completes a value."""
        if self._escaped:
            self._escaped = False
            if byte == ord("'"):  # QEMU's, not JSON's
                del self._text[-1]
            self._text.append(byte)
        elif byte == self._quote:
            self._quote = 0
            self._text += b'"'
            return not self._depth
        else:
            self._escaped = byte == ord("\\")
            self._text += b'\\"' if byte == ord('"') else bytes((byte,))
        return False

    def _finish(self) -> Any:
        text = bytes(self._text)
        self._start_afresh()
        return _parse(text)

    def _start_afresh(self) -> None:
        self._text.clear()
        self._depth = self._quote = 0
        self._escaped = False


def _parse(text: bytes) -> Any:
    try:
        return json.loads(
            text.decode(), object_pairs_hook=_object, parse_float=_number, parse_constant=_no_constant
        )
    except BadJson as error:
        return error
    except json.JSONDecodeError as error:
        return BadJson(f"JSON parse error, {error.msg[:1].lower()}{error.msg[1:]}")
    except ValueError as error:  # no UTF-8, or a number of thousands of digits
        return BadJson(f"JSON parse error, {error}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) != len(pairs):
        raise BadJson("JSON parse error, duplicate key")
    return made


def _number(text: str) -> float:
    if not isfinite(value := float(text)):
        raise BadJson("JSON parse error, the number is too large")
    return value


def _no_constant(name: str) -> Any:
    raise BadJson(f"JSON parse error, invalid keyword {name!r}")
