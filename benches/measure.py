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
from casemate.measure import digest_snp
from casemate.measure.cpu_models import model_signature
from casemate.measure.digest_sev import predict_digest
from casemate.measure.plan_sev import plan_sev, plan_sev_es
from casemate.measure.plan_snp import plan_snp

SCRIPTS = Path(sysconfig.get_path("scripts"))
BYTECODE = tempfile.TemporaryDirectory(prefix="casemate-bench-")
CASES = (
    ("sev", 0),
    ("seves", 1),
    ("seves", 64),
    ("seves", 512),
    ("snp", 1),
    ("snp", 512),
)


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


def library_call(image: FirmwareImage, mode: str, vcpus: int) -> str:
    """The digest without a process; the image is in memory, as it is for a caller that launches it."""
    if mode == "sev":
        return predict_digest(plan_sev(image)).hex()
    signature = model_signature("EPYC-v4")
    if mode == "snp":
        return digest_snp.predict_digest(plan_snp(image, vcpus, signature)).hex()
    return predict_digest(plan_sev_es(image, vcpus, signature)).hex()


def combined_image(code: Path) -> FirmwareImage | None:
    """The image with code and variables that came with ``code``, which alone SNP guests take."""
    path = code.parents[1] / "ovmf" / "OVMF.fd"
    image = FirmwareImage.load(path) if path.exists() else None
    return image if image and image.sev_metadata else None


def tables(runs: int) -> list[Table]:
    """One table. Raises InternalError if two answers differ."""
    code = find_firmware(firmware_roots(os.environ)).code
    images = {"sev": FirmwareImage.load(code), "snp": combined_image(code)}
    images["seves"] = images["sev"]
    rows = [_row(runs, image, mode, vcpus) for mode, vcpus in CASES if (image := images[mode]) is not None]
    columns = ("ms", "casemate", "sev-snp-measure", "ratio", "library", "library / process")
    notes = (
        f"{code}, and OVMF.fd beside it for SNP; medians of {runs} runs; a process is Python's start, too",
    )
    return [Table("Launch digests, casemate beside sev-snp-measure", columns, tuple(rows), notes)]


def _row(
    runs: int, image: FirmwareImage, mode: str, vcpus: int
) -> tuple[str, float, float, float, float, float]:
    name = f"{mode}, {vcpus} vCPU{'s' if vcpus > 1 else ''}" if vcpus else mode
    cpu = ["--vcpus", str(vcpus), "--vcpu-type", "EPYC-v4"] if vcpus else []
    options = ["--mode", mode, *cpu, "--ovmf", image.name]
    answers = {
        run("casemate", "measure", *options),
        run("sev-snp-measure", *options),
        library_call(image, mode, vcpus),
    }
    if len(answers) != 1:
        raise InternalError(f"{name}: the digests differ: {answers}")
    ours = median_ms(runs, lambda: run("casemate", "measure", *options))
    theirs = median_ms(runs, lambda: run("sev-snp-measure", *options))
    library = median_ms(runs, lambda: library_call(image, mode, vcpus))
    return name, ours, theirs, ours / theirs, library, library / theirs
