"""What it costs to check a pair of firmware images, and to measure many vCPUs of known firmware."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from time import perf_counter

from benches.table import Table
from casemate.digest.cpu_models import model_signature
from casemate.digest.digest_snp import predict_digest, running_digests
from casemate.digest.plan_snp import plan_snp
from casemate.firmware.descriptors import find_firmware, firmware_roots
from casemate.firmware.image import FirmwareImage
from casemate.firmware.placement import validate_flash


def tables(runs: int) -> list[Table]:
    """Milliseconds in one process, with the firmware that Debian's package ovmf installs."""
    pair = find_firmware(firmware_roots(os.environ))
    image = FirmwareImage.load(pair.code.parent.parent / "ovmf" / "OVMF.fd")
    signature = model_signature("EPYC-v4")
    known = next(running_digests(plan_snp(image, 1, signature)))

    def check() -> None:
        variables = FirmwareImage.load(pair.vars_template) if pair.vars_template else None
        validate_flash(FirmwareImage.load(pair.code), variables)

    def measure() -> None:
        predict_digest(plan_snp(image, 512, signature), known)

    rows = (("check a pair", _median(check, runs)), ("512 vCPUs of an SNP guest", _median(measure, runs)))
    return [Table("Checks", ("", "ms"), rows, (f"medians of {runs} runs", str(pair.code)))]


def _median(work: Callable[[], None], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = perf_counter()
        work()
        times.append((perf_counter() - start) * 1000)
    return statistics.median(times)
