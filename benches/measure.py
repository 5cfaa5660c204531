"""Launch digests: casemate and sev-snp-measure side by side, as processes and as a library (docs/guide/measure.md)."""

from __future__ import annotations

import os
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benches.table import Table
from casemate.errors import InternalError
from casemate.firmware.descriptors import find_firmware, firmware_roots
from casemate.firmware.image import FirmwareImage
from casemate.measure.cpu_models import model_signature
from casemate.measure.digest_sev import predict_digest
from casemate.measure.plan_sev import plan_sev, plan_sev_es

SCRIPTS = Path(sysconfig.get_path("scripts"))
BYTECODE = tempfile.TemporaryDirectory(prefix="casemate-bench-")
CASES = ((0, "sev"), (1, "seves, 1 vCPU"), (64, "seves, 64 vCPUs"), (512, "seves, 512 vCPUs"))


def median_ms(runs: int, work: Callable[[], object]) -> float:
    """Median of ``runs`` runs, in milliseconds."""
    durations = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations) * 1000


def run(program: str, *arguments: str) -> str:
    """A program's standard output."""
    command = [str(SCRIPTS / program), *arguments]
    done = subprocess.run(command, env=compiled_environment(), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def compiled_environment() -> dict[str, str]:
    """The environment, in which both programs keep their bytecode as pip makes installed ones do."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": BYTECODE.name}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def library_call(image: FirmwareImage, vcpus: int) -> str:
    """The digest without a process; the image is in memory, as it is for a caller that launches it."""
    if vcpus == 0:
        return predict_digest(plan_sev(image)).hex()
    return predict_digest(plan_sev_es(image, vcpus, model_signature("EPYC-v4"))).hex()


def tables(runs: int) -> list[Table]:
    """One table. Raises InternalError if two answers differ."""
    firmware = str(find_firmware(firmware_roots(os.environ)).code)
    image = FirmwareImage.load(firmware)
    rows = [_row(runs, firmware, image, vcpus, name) for vcpus, name in CASES]
    columns = ("ms", "casemate", "sev-snp-measure", "ratio", "library", "library / process")
    notes = (f"{firmware}, medians of {runs} runs; a process is Python's start, too",)
    return [Table("Launch digests, casemate beside sev-snp-measure", columns, tuple(rows), notes)]


def _row(
    runs: int, firmware: str, image: FirmwareImage, vcpus: int, name: str
) -> tuple[str, float, float, float, float, float]:
    kind = (
        ["--mode", "seves", "--vcpus", str(vcpus), "--vcpu-type", "EPYC-v4"] if vcpus else ["--mode", "sev"]
    )
    options = [*kind, "--ovmf", firmware]
    answers = {
        run("casemate", "measure", *options),
        run("sev-snp-measure", *options),
        library_call(image, vcpus),
    }
    if len(answers) != 1:
        raise InternalError(f"{name}: the digests differ: {answers}")
    ours = median_ms(runs, lambda: run("casemate", "measure", *options))
    theirs = median_ms(runs, lambda: run("sev-snp-measure", *options))
    library = median_ms(runs, lambda: library_call(image, vcpus))
    return name, ours, theirs, ours / theirs, library, library / theirs
