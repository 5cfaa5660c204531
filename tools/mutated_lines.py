"""Mutated command lines, scripts, logs and domains for ``casemate lint``: findings or a refusal, and never a traceback.

    python -m tools.mutated_lines --count 20000

Each batch runs in a forked child with limits of CPU seconds and address space. The exit code is 1 if anything else
than findings (exit codes 0 and 1) or a refusal (exit code 4) came of one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "advise"))

from public_command_lines import LINES
from test_vendor_defaults import DEFAULTS

from casemate.cli import lint, triage
from casemate.errors import CasemateError
from casemate.testing.images import variable_store
from tools.mutation_runs import Fault, main, mutate, run_in_child

BATCH = 500
_PIECES = (
    b"'", b'"', b"\\\n", b"$(", b"${A:-", b"A=(", b"<<E\n", b"`", b",,", b"=", b"-object {", b'{"a":' * 40, b"[" * 200,
    b"<qemu:arg value='-drive'/>", b"<launchSecurity type='sev'>", b"<!DOCTYPE a>", b"\0-bios\0", b"\xff", b"\x1b[31m",
    b"0x" + b"9" * 60, b"9" * 5000, b"if=pflash,unit=99999999", b",policy=-1",
    b",size=99999999999999999999G", b"[Service]\nExecStart=",
)  # fmt: skip
_ANSWERS = (0, 1, 4)


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
    return [text.encode() for text in texts]


def run_batches(seed: int, count: int) -> Iterator[list[Fault]]:
    """Faults of each batch; together ``count`` mutations."""
    for start in range(0, count, BATCH):
        yield run_in_child(range(start, min(start + BATCH, count)), functools.partial(_run, seed))


def _run(seed: int, numbers: range) -> list[Fault]:
    faults = []
    sound = inputs()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("OVMF.fd").write_bytes(variable_store(0x20000))
        for number in numbers:
            rng = random.Random(f"{seed}/{number}")
            mutated = mutate(rng, rng.choice(sound), sound)
            for _ in range(rng.choice((0, 0, 1, 3))):
                at = rng.randrange(len(mutated) + 1)
                mutated = mutated[:at] + rng.choice(_PIECES) + mutated[at:]
            Path("guest").write_bytes(mutated)
            if how := _judge(
                rng.choice((("--format", "sarif"), ("--json",), (), ("--qemu", "9.2", "--era", "linux-6.6")))
            ):
                faults.append(Fault(number, "guest", f"{how}, of {mutated!r}"))
        os.chdir("/")
    return faults


def _judge(options: tuple[str, ...]) -> str:
    """What is wrong with the answer; empty if nothing."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = _lint(*options, "guest")
            _triage("guest")
    except BaseException:  # whatever it is, no user may see it
        return traceback.format_exc(limit=-4)
    if "\x1b" in out.getvalue():
        return "an escape sequence reaches the terminal"
    return "" if code in _ANSWERS else f"exit code {code}"


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


if __name__ == "__main__":
    sys.exit(main(__doc__, run_batches, "not answered as they must be"))
