"""A guest's output is handed on by lines, prompts soon after, all of it, and errors are told (docs/guide/boot.md)."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from casemate.cli.serial_choice import GatheredOutput, file_output
from casemate.errors import HostError


def print_bytes(put: Callable[[bytes], None], text: bytes) -> None:
    for byte in text:
        put(bytes((byte,)))


def test_lines_come_whole() -> None:
    written: list[bytes] = []
    with GatheredOutput(written.append) as output:
        print_bytes(output.put, b"one\ntwo\n")
    assert b"".join(written) == b"one\ntwo\n"
    assert len(written) <= 4, "at most a look in the middle of each line"


def test_prompt_comes_without_an_end_of_line() -> None:
    written: queue.Queue[bytes] = queue.Queue()
    with GatheredOutput(written.put) as output:
        print_bytes(output.put, b"login: ")
        seen = b""
        while seen != b"login: ":
            seen += written.get(timeout=60)


def test_long_lines_do_not_pile_up() -> None:
    written: list[bytes] = []
    with GatheredOutput(written.append) as output:
        print_bytes(output.put, bytes(100_000))
        assert sum(map(len, written)) > 90_000
    assert b"".join(written) == bytes(100_000)


def test_what_cannot_be_written_is_an_error_of_whoever_prints() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as broken:

        def write(data: bytes) -> None:
            broken.write(data)

        with pytest.raises(BrokenPipeError), GatheredOutput(write) as output:
            print_bytes(output.put, b"line\n")


def test_what_cannot_be_written_in_the_end_is_an_error_too() -> None:
    stack = ExitStack()
    output = stack.enter_context(GatheredOutput(file_output(Path("/dev/full"), stack)))
    print_bytes(output.put, b"prompt> ")
    with pytest.raises(HostError, match="No space"):
        stack.close()


def test_files_are_complete_when_the_run_is_over(tmp_path: Path) -> None:
    with ExitStack() as stack:
        output = stack.enter_context(GatheredOutput(file_output(tmp_path / "log", stack)))
        print_bytes(output.put, b"line\nrest")
    assert (tmp_path / "log").read_bytes() == b"line\nrest"
