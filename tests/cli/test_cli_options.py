"""Reading a plain line without argparse: the same values as argparse's, or none at all."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli.options import Option, add_options, integer, read_options, seconds

OPTIONS = (
    Option("--mode", choices=("sev", "seves"), required=True),
    Option("--file-name", "FILE"),
    Option("--count", "N", type=integer, default=7),
    Option("--trace"),
    Option("--text", "TEXT", repeatable=True),
    Option("--timeout", "S", type=seconds),
    Option("--verbose", short="-v"),
    Option("words", "WORD"),
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
        *(
            "--text",
            "--text=",
            "--text=b",
            "--timeout",
            "--timeout=2",
            "-v",
            "-vv",
            "-v=1",
            "--verbose",
            "words",
        ),
    ]
)
BOOT_WORDS = st.sampled_from(
    [
        *(
            "--bios",
            "./a//b.fd",
            "--code=c.fd",
            "--vars",
            "v.fd",
            "--vars-sync",
            "idle",
            "--host",
            "model:linux-6.18",
        ),
        *(
            "--machine=pc",
            "--memory",
            "2G",
            "--memory=16m",
            "--memory=big",
            "--cpus",
            "2",
            "--on-write",
            "drop",
        ),
        *(
            "--fw-cfg",
            "opt/a=b",
            "opt",
            "--guest",
            "sev-es",
            "--feature",
            "debug-swap",
            "--policy=0x5",
            "--append",
        ),
        *(
            "console=ttyS0 quiet",
            "--serial",
            "none",
            "--type",
            "ver",
            "--type=",
            "--timeout",
            "60",
            "0",
            "--prompt=> ",
        ),
        *(
            "--cut-power-at",
            "all:3",
            "7",
            "--report",
            "a.html",
            "a.txt",
            "--json",
            "-v",
            "--verb",
            "--",
            "-m",
            "512",
        ),
    ]
)


class Refused(Exception):
    """What the parser of this test does in place of leaving."""


class Parser(argparse.ArgumentParser):
    """argparse, without a process to end."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise Refused(message)


def judged(words: list[str], options: tuple[Option, ...] = OPTIONS) -> dict[str, object] | None:
    """What argparse reads, or None."""
    parser = Parser(add_help=False)
    add_options(parser, options)
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
        "--mode sev --text a -v --text=b --timeout 2",
    ],
)
def test_plain_lines_need_no_argparse(line: str) -> None:
    values = read_options(OPTIONS, line.split())
    assert values is not None
    assert vars(values) == judged(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--mode snp",
        "--mode sev --count many",
        "--mode sev x",
        "--mode sev --help",
        "--mode sev --timeout 0",
    ],
)
def test_other_lines_are_left_to_argparse(line: str) -> None:
    assert read_options(OPTIONS, line.split()) is None
