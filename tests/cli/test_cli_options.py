"""Reading a plain line without argparse: the same values as argparse's, or none at all."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli.options import Option, add_options, integer, read_options

OPTIONS = (
    Option("--mode", choices=("sev", "seves"), required=True),
    Option("--file-name", "FILE"),
    Option("--count", "N", type=integer, default=7),
    Option("--trace"),
)
WORDS = st.sampled_from(
    [
        *("--mode", "sev", "snp", "--mode=seves", "--mod=sev", "--file-name", "--file-name=", "x y", "", "-"),
        *(
            "--count",
            "0x10",
            "--count=3",
            "many",
            "-1",
            "--trace",
            "--tra",
            "--trace=1",
            "--help",
            "--",
            "a=b",
        ),
    ]
)


class Refused(Exception):
    """What the parser of this test does in place of leaving."""


class Parser(argparse.ArgumentParser):
    """argparse, without a process to end."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise Refused(message)


def judged(words: list[str]) -> dict[str, object] | None:
    """What argparse reads, or None."""
    parser = Parser(add_help=False)
    add_options(parser, OPTIONS)
    try:
        return vars(parser.parse_args(words))
    except Refused:
        return None


@given(st.lists(WORDS, max_size=6))
def test_what_is_read_at_once_is_what_argparse_reads(words: list[str]) -> None:
    values = read_options(OPTIONS, words)
    if values is not None:
        assert vars(values) == judged(words)


@pytest.mark.parametrize(
    "line",
    [
        "--mode sev",
        "--mode=seves --count 0x10 --trace",
        "--mode sev --file-name a --file-name b --count=3",
    ],
)
def test_plain_lines_need_no_argparse(line: str) -> None:
    values = read_options(OPTIONS, line.split())
    assert values is not None
    assert vars(values) == judged(line.split())


@pytest.mark.parametrize(
    "line", ["", "--mode snp", "--mode sev --count many", "--mode sev x", "--mode sev --help"]
)
def test_other_lines_are_left_to_argparse(line: str) -> None:
    assert read_options(OPTIONS, line.split()) is None
