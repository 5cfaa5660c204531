"""Damaged command lines, scripts, logs and domains for ``casemate lint``: findings or a refusal, never a traceback."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from public_command_lines import LINES
from test_lint_kinds import COMPLETED, EXPANDED, IGNORED_BY_LIBVIRT, REFUSED_BY_LIBVIRT, UNKNOWN
from test_triage import LINES as LOGS
from test_vendor_defaults import DEFAULTS

from casemate.cli import lint, triage
from casemate.errors import CasemateError
from casemate.testing.images import variable_store
from fuzz.edits import EDITS, damaged
from fuzz.target import Target, quick

_PIECES = (
    b"'", b'"', b"\\\n", b"$(", b"${A:-", b"A=(", b"<<E\n", b"`", b",,", b"=", b"-object {", b'{"a":' * 40, b"[" * 200,
    b"<qemu:arg value='-drive'/>", b"<launchSecurity type='sev'>", b"<!DOCTYPE a>", b"\0-bios\0", b"\xff", b"\x1b[31m",
    b"0x" + b"9" * 60, b"9" * 5000, b"if=pflash,unit=99999999", b",policy=-1",
    b",size=99999999999999999999G", b"[Service]\nExecStart=",
)  # fmt: skip
_ANSWERS = (0, 1, 4)


@functools.cache
def inputs() -> list[bytes]:
    """Sound guests, in every form that is read."""
    texts = [default.text for default in DEFAULTS]
    texts += [line.command for line in LINES]
    texts += [line.command.replace(" ", "\0") for line in LINES[:4]]
    texts += [
        f"[Service]\nEnvironment=A=1\nExecStart={line.command.replace(' -', chr(92) + chr(10) + ' -')}"
        for line in LINES[4:8]
    ]
    texts += [f"A=({line.command})\nA+=(-S)\nexec ${{A[@]}}\n" for line in LINES[8:12]]
    texts += [*COMPLETED, *REFUSED_BY_LIBVIRT, *IGNORED_BY_LIBVIRT, *EXPANDED.values(), *UNKNOWN.values()]
    texts += ["\n".join(lines) for lines in LOGS.values()]
    return [text.encode() for text in texts]


OPTIONS = (("--format", "sarif"), ("--json",), (), ("--qemu", "9.2", "--era", "linux-6.6"))


@functools.cache
def _folder(process: int) -> str:
    """One for each process: the children of a run must not share one."""
    folder = tempfile.mkdtemp(prefix=f"guests-{process}-")
    Path(folder, "OVMF.fd").write_bytes(variable_store(0x20000))
    return folder


@quick(300)
@given(st.integers(0, 1023), st.sampled_from(OPTIONS), EDITS)
def check(which: int, options: tuple[str, ...], edits: Sequence[int]) -> None:
    """It is answered, and nothing in it reaches the terminal as an escape sequence."""
    path = Path(_folder(os.getpid()), "guest")
    path.write_bytes(damaged(inputs()[which % len(inputs())], edits, _PIECES))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.chdir(path.parent):
        code = _lint(*options, "guest")
        _triage("guest")
    assert "\x1b" not in out.getvalue(), "an escape sequence reaches the terminal"
    assert code in _ANSWERS, f"exit code {code}"


def _lint(*words: str) -> int:
    """As the command does, without the time that its parser takes."""
    try:
        return lint.run(_parser().parse_args(words))
    except CasemateError as error:
        return error.exit_code


def _triage(name: str) -> None:
    triage.run(argparse.Namespace(log=name, json=False))


@functools.cache
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    lint.add_arguments(parser)
    return parser


TARGET = Target("guests", "QEMU command lines, scripts, logs and libvirt domains for lint and triage", check)
