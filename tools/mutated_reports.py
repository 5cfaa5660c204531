"""Mutated reports and certificates for ``casemate verify``: never a traceback, never believed, never without end.

    python -m tools.mutated_reports --count 20000

Each batch runs in a forked child with limits of CPU seconds and address space. A mutation that changes neither the
report nor a certificate, such as a space in base64, counts as none. The exit code is 1 if anything else than a refusal
(exit codes 3 and 4) came of one.
"""

from __future__ import annotations

import argparse
import base64
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
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from cryptography.hazmat.primitives.serialization import Encoding
from support.attestation_rig import TURIN, VLEK, Case, der, pem, revocation_list

from casemate.advise.certificate_file import parse_pool
from casemate.advise.report_file import CERTIFICATE_KINDS, read_report
from casemate.cli import verify
from casemate.errors import CasemateError
from tools.mutation_runs import Fault, main, mutate, run_in_child

BATCH = 500
_REFUSED = (3, 4)


class Input(NamedTuple):
    """Files by name, and the command line that believes them."""

    name: str
    files: dict[str, bytes]
    words: tuple[str, ...]


def inputs() -> list[Input]:
    """Sound reports of three kinds of signers, in several forms."""
    found = []
    for name, case in (("milan", Case()), ("turin", TURIN), ("vlek", VLEK)):
        ark, ask, leaf = case.chain
        crl = revocation_list(case.ark)
        table = _table({"ASK": der(ask), case.leaf.removeprefix("SEV-"): der(leaf)})
        response = (bytes(4) + (1184).to_bytes(4, "little") + bytes(24) + case.report).ljust(4000, b"\0")
        chain = ("--ark", "ark", "--ask", "ask", "--vcek", "leaf", "--crl", "crl")
        ders = {"ark": der(ark), "ask": der(ask), "leaf": der(leaf), "crl": crl.public_bytes(Encoding.DER)}
        found += [
            Input(f"{name}, DER", {"report": case.report, **ders}, chain),
            Input(f"{name}, ioctl", {"report": response, **ders}, chain),
            Input(
                f"{name}, texts",
                {"report": base64.b64encode(case.report), "ark": pem(ask, ark), "leaf": pem(leaf)},
                ("--ark", "ark", "--vcek", "leaf"),
            ),
            Input(f"{name}, table", {"report": case.report + table, "ark": der(ark)}, ("--ark", "ark")),
        ]
    return found


def run_batches(seed: int, count: int) -> Iterator[list[Fault]]:
    """Faults of each batch; together ``count`` mutations."""
    sound = inputs()
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        yield run_in_child(numbers, functools.partial(_run, sound, seed))


def _run(sound: list[Input], seed: int, numbers: range) -> list[Fault]:
    faults = []
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for given in sound:
            os.mkdir(f"{folder}/{given.name}")
            for name, data in given.files.items():
                Path(folder, given.name, name).write_bytes(data)
        for number in numbers:
            rng = random.Random(f"{seed}/{number}")
            given = rng.choice(sound)
            os.chdir(f"{folder}/{given.name}")
            target = rng.choice(sorted(given.files))
            mutated = mutate(rng, given.files[target], list(given.files.values()))
            Path(target).write_bytes(mutated)
            how = _judge(given, target, mutated)
            Path(target).write_bytes(given.files[target])
            if how:
                faults.append(Fault(number, f"{given.name}, {target}", f"{how}, of {mutated.hex()}"))
        os.chdir("/")
    return faults


def _judge(given: Input, target: str, mutated: bytes) -> str:
    """What is wrong with the answer; empty if nothing."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = _verify("report", *given.words)
            if target == "report":
                _verify("report", "--show")
    except BaseException:  # whatever it is, no user may see it
        return traceback.format_exc(limit=-4)
    if code in _REFUSED:
        return ""
    if code == 0 and _is_the_same(target, given.files[target], mutated):
        return ""
    return f"exit code {code}: {out.getvalue()[-300:]}"


def _verify(*words: str) -> int:
    """As the command does, without the time that its parser takes."""
    try:
        return verify.run(_parser().parse_args(words))
    except CasemateError as error:
        return error.exit_code


@functools.cache
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return parser


def _is_the_same(target: str, before: bytes, after: bytes) -> bool:
    try:
        if target == "report":
            return read_report(before, "").report.to_bytes() == read_report(after, "").report.to_bytes() and (
                read_report(before, "").certificates == read_report(after, "").certificates
            )
        old, new = parse_pool(before, ""), parse_pool(after, "")
    except CasemateError:
        return False
    return old.certificates == new.certificates and old.crls == new.crls


def _table(entries: dict[str, bytes]) -> bytes:
    guids = {kind: bytes.fromhex(text.replace("-", "")) for text, kind in CERTIFICATE_KINDS.items()}
    offset, head, body = 24 * (len(entries) + 1), b"", b""
    for kind, contents in entries.items():
        head += guids[kind] + (offset + len(body)).to_bytes(4, "little")
        head += len(contents).to_bytes(4, "little")
        body += contents
    return head + bytes(24) + body


if __name__ == "__main__":
    sys.exit(main(__doc__, run_batches, "not refused"))
