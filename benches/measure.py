"""Launch digests: casemate and sev-snp-measure side by side, as processes and as a library (docs/guide/measure.md)."""

from __future__ import annotations

import os
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benches.table import Table
from casemate.digest import digest_snp
from casemate.digest.cpu_models import model_signature
from casemate.digest.digest_sev import predict_digest
from casemate.digest.plan_sev import plan_sev, plan_sev_es
from casemate.digest.plan_snp import plan_snp
from casemate.errors import InternalError
from casemate.firmware.descriptors import find_firmware, firmware_roots
from casemate.firmware.image import FirmwareImage

SCRIPTS = Path(sysconfig.get_path("scripts"))
BYTECODE = tempfile.TemporaryDirectory(prefix="casemate-bench-")


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


class Case(NamedTuple):
    """One launch: its mode as both tools call it, how many vCPUs, and the firmware."""

    mode: str
    vcpus: int
    firmware: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.mode}, {self.vcpus} vCPUs" if self.vcpus else self.mode

    @property
    def options(self) -> list[str]:
        """Both tools take the same."""
        vcpus = ["--vcpus", str(self.vcpus), "--vcpu-type", "EPYC-v4"] if self.vcpus else []
        return ["--mode", self.mode, *vcpus, "--ovmf", str(self.firmware)]


def cases() -> list[Case]:
    """SEV and SEV-ES on the newest installed pair, SNP where there is an image for it."""
    code = find_firmware(firmware_roots(os.environ)).code
    found = [Case("sev", 0, code), *(Case("seves", vcpus, code) for vcpus in (1, 64, 512))]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "casemate" / "firmware"
    roots = (*firmware_roots(os.environ), *sorted(cache.glob("*/")))
    images = [path for root in roots for path in root.glob("usr/share/ovmf/OVMF.amdsev.fd")]
    return [*found, *(Case("snp", vcpus, path) for path in images[:1] for vcpus in (1, 64, 512))]


def library_call(case: Case, image: FirmwareImage) -> str:
    """The digest without a process; the image is in memory, as it is for a caller that launches it."""
    if case.mode == "sev":
        return predict_digest(plan_sev(image)).hex()
    signature = model_signature("EPYC-v4")
    if case.mode == "snp":
        return digest_snp.predict_digest(plan_snp(image, case.vcpus, signature)).hex()
    return predict_digest(plan_sev_es(image, case.vcpus, signature)).hex()


def tables(runs: int) -> list[Table]:
    """One table. Raises InternalError if two answers differ."""
    rows = [_row(runs, case) for case in cases()]
    columns = ("ms", "casemate", "sev-snp-measure", "ratio", "library", "library / process")
    notes = (f"medians of {runs} runs of each, in turn; a process is Python's start, too",)
    return [Table("Launch digests, casemate beside sev-snp-measure", columns, tuple(rows), notes)]


def _row(runs: int, case: Case) -> tuple[str, float, float, float, float, float]:
    image, programs = FirmwareImage.load(case.firmware), (("casemate", "measure"), ("sev-snp-measure",))
    answers = {run(*program, *case.options) for program in programs} | {library_call(case, image)}
    if len(answers) != 1:
        raise InternalError(f"{case.name}: the digests differ: {answers}")
    durations: dict[tuple[str, ...], list[float]] = {program: [] for program in programs}
    for _ in range(runs):
        for program in programs:
            durations[program].append(median_ms(1, partial(run, *program, *case.options)))
    ours, theirs = (statistics.median(durations[program]) for program in programs)
    library = median_ms(runs, lambda: library_call(case, image))
    return case.name, ours, theirs, ours / theirs, library, library / theirs
