"""JSON values out of a stream: however it is split, whatever is in it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.qmp.messages import MAX_DEPTH, MAX_MESSAGE, BadJson, MessageStream

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), 1 << 64) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
like_json = st.text(alphabet="{}[]:,\"'\\ntrue1.e- \xe4\n\x00", max_size=60).map(str.encode)


def read(*pieces: bytes) -> list[Any]:
    """What comes out; errors as their text."""
    stream = MessageStream()
    found = [value for piece in pieces for value in stream.feed(piece)]
    return [str(value) if isinstance(value, BadJson) else value for value in found]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


@given(st.lists(values), st.lists(st.integers(0, 10_000), max_size=8), st.sampled_from(["", " ", "\r\n"]))
def test_any_split_of_a_stream_gives_the_same_values(sent: list[Any], cuts: list[int], between: str) -> None:
    texts = [json.dumps({"value": value}, ensure_ascii=False) for value in sent]
    stream = between.join(texts).encode()
    assert read(*split(stream, cuts)) == [{"value": value} for value in sent]


@given(st.binary(max_size=80) | like_json, st.lists(st.integers(0, 100), max_size=4))
def test_garbage_never_raises_and_the_stream_goes_on(data: bytes, cuts: list[int]) -> None:
    behind = b'\xff{"execute": "query-status"}'
    assert read(*split(data, cuts), behind) == read(data, behind)
    assert read(data, behind)[-1] == {"execute": "query-status"}


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b'{"a":1}{"a":2} {"a":3}', [{"a": 1}, {"a": 2}, {"a": 3}]),
        (b"1 null\ttrue\n", [1, None, True]),
        (b'"one""two"[3]', ["one", "two", [3]]),
        (b"12", []),
        (b"{'single': 'it\\'s \"quoted\"'}", [{"single": 'it\'s "quoted"'}]),
        (b'{"a": "}{"}', [{"a": "}{"}]),
        (b'{"a": "\\"}"}', [{"a": '"}'}]),
        ('"ä"'.encode(), ["ä"]),
    ],
)
def test_values_are_cut_where_they_end(stream: bytes, expected: list[Any]) -> None:
    assert read(stream) == expected


@pytest.mark.parametrize(
    ("stream", "behind"),
    [
        (b"{]", []),
        (b'{"a" "b"}', []),
        (b'{"a": 1, "a": 2}', []),
        (b'{"a": NaN}', []),
        (b'{"a": 1e999}', []),
        (b'"\xc3"', []),
        (b"nonsense ", []),
        (b'{"a": "never ended\n', []),
        (b"{" * 10 + b"\xff", []),
        (b'{"a": ' + b"1" * 5000 + b"}", []),
        (b',{"a": 1}', [{"a": 1}]),
        (b'}{"a": 1}', [{"a": 1}]),
    ],
)
def test_what_is_no_json_is_one_error(stream: bytes, behind: list[Any]) -> None:
    error, *rest = read(stream)
    assert error.startswith("JSON parse error, ")
    assert rest == behind


def test_limits_are_told_once_and_the_next_line_counts() -> None:
    deep = b"[" * (2 * MAX_DEPTH) + b'\n{"a": 1}'
    assert read(deep) == ["JSON nesting depth limit exceeded", {"a": 1}]
    stream = MessageStream()
    long = [*stream.feed(b'"' + b"x" * (MAX_MESSAGE + 10)), *stream.feed(b'{}"\n{"a": 1}')]
    assert str(long[0]) == "JSON token size limit exceeded"
    assert long[1:] == [{"a": 1}]
