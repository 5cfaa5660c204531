"""Damaged reports and certificates for ``casemate verify``: never a traceback, never believed, never without end.

Damage that changes neither the report nor a certificate, such as a space in base64, counts as none; all else must be
refused (exit codes 3 and 4).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from support.attestation_rig import TURIN, VLEK, Case, der, pem, revocation_list

from casemate.advise.certificate_file import parse_pool
from casemate.advise.report_file import CERTIFICATE_KINDS, read_report
from casemate.cli import verify
from casemate.errors import CasemateError
from fuzz.edits import EDITS, damaged
from fuzz.target import Target, quick

_REFUSED = (3, 4)


class Input(NamedTuple):
    """Files by name, and the command line that believes them."""

    name: str
    files: dict[str, bytes]
    words: tuple[str, ...]


@functools.cache
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


@functools.cache
def _folder(process: int) -> str:
    """One for each process, with the sound files; the children of a run must not share one."""
    folder = tempfile.mkdtemp(prefix=f"reports-{process}-")
    for number, given_ in enumerate(inputs()):
        os.mkdir(f"{folder}/{number}")
        for name, data in given_.files.items():
            Path(folder, str(number), name).write_bytes(data)
    return folder


@quick(300)
@given(st.integers(0, 11), st.integers(0, 3), EDITS)
def check(which: int, file: int, edits: Sequence[int]) -> None:
    """It is refused, or says what it said before."""
    chosen = inputs()[which]
    names = sorted(chosen.files)
    target = names[file % len(names)]
    changed = damaged(chosen.files[target], edits, list(chosen.files.values())[:1])
    path = Path(_folder(os.getpid()), str(which), target)
    words = [str(path.parent / word) if word in chosen.files else word for word in chosen.words]
    path.write_bytes(changed)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = _verify(str(path.parent / "report"), *words)
            if target == "report":
                _verify(str(path), "--show")
    finally:
        path.write_bytes(chosen.files[target])
    is_believed = code == 0 and _is_the_same(target, chosen.files[target], changed)
    assert code in _REFUSED or is_believed, f"exit code {code}: {out.getvalue()[-300:]}"


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


TARGET = Target("reports", "attestation reports, certificates and revocation lists for verify", check)
