"""Verifying an attestation report as a call (docs/guide/python.md)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from casemate.advise import attestation
from casemate.advise.attestation import Check, Expectations
from casemate.advise.certificate_file import load_pool, pick
from casemate.advise.report_file import read_report
from casemate.errors import SpecError
from casemate.files import read_file

Source = str | Path


def verify(
    report: Source | bytes,
    *,
    ark: Source,
    ask: Source,
    vcek: Source,
    crls: Iterable[Source] = (),
    expected: Expectations | None = None,
    now: datetime | None = None,
) -> list[Check]:
    """Check an SNP attestation report against the certificates of who signed it, and against what is ``expected``.

    ``ark`` is the root that you trust, ``ask`` what it signed (ASK or ASVK), ``vcek`` the key of the chip or the host
    (VCEK or VLEK): files in PEM or DER, or AMD's bundles. Every check is returned; the report can be believed if none
    has ``passed`` False. Raises ImageError or SpecError for files that are not that. Source: AMD 56860, 57230.
    """
    data = report if isinstance(report, bytes) else read_file(report)
    file = read_report(data, "report" if isinstance(report, bytes) else str(report))
    found = {name: pick(str(path), name) for name, path in (("ARK", ark), ("ASK", ask), ("VCEK", vcek))}
    root, intermediate, leaf = found["ARK"], found["ASK"], found["VCEK"]
    if root is None or intermediate is None or leaf is None:
        missing = next(name for name, certificate in found.items() if certificate is None)
        raise SpecError(f"the file for the {missing} has several that it could be", "give a file of one")
    return attestation.check_report(
        file.report,
        attestation.Chain(root, intermediate, leaf),
        expected or Expectations(),
        now or datetime.now(UTC),
        [crl for path in crls for crl in load_pool(path).crls],
    )
