"""Launch digests: casemate and sev-snp-measure side by side, as processes and as a library (docs/guide/measure.md).

python benches/measure.py [OVMF_CODE.fd]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from casemate.firmware.descriptors import find_firmware
from casemate.firmware.image import FirmwareImage
from casemate.measure.cpu_models import model_signature
from casemate.measure.digest_sev import predict_digest
from casemate.measure.plan_sev import plan_sev, plan_sev_es

RUNS = 5
SCRIPTS = Path(sysconfig.get_path("scripts"))
CASES = ((0, "sev"), (1, "seves, 1 vCPU"), (64, "seves, 64 vCPUs"), (512, "seves, 512 vCPUs"))


def median_ms(work: Callable[[], object]) -> float:
    """Median of RUNS runs, in milliseconds."""
    durations = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations) * 1000


def run(program: str, *arguments: str) -> str:
    """A program's standard output."""
    done = subprocess.run([str(SCRIPTS / program), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def library_call(image: FirmwareImage, vcpus: int) -> str:
    """The digest without a process; the image is in memory, as it is for a caller that launches it."""
    if vcpus == 0:
        return predict_digest(plan_sev(image)).hex()
    return predict_digest(plan_sev_es(image, vcpus, model_signature("EPYC-v4"))).hex()


def main() -> int:
    """Print the table; 1 if two answers differ."""
    firmware = sys.argv[1] if len(sys.argv) > 1 else str(find_firmware().code)
    image = FirmwareImage.load(firmware)
    print(f"{firmware}, medians of {RUNS} runs in ms")
    print(
        f"{'case':<20}{'casemate':>10}{'sev-snp-measure':>17}{'ratio':>8}{'library':>9}{'library/process':>17}"
    )
    for vcpus, name in CASES:
        options = (
            ["--mode", "seves", "--vcpus", str(vcpus), "--vcpu-type", "EPYC-v4"]
            if vcpus
            else ["--mode", "sev"]
        )
        options += ["--ovmf", firmware]
        answers = {
            run("casemate", "measure", *options),
            run("sev-snp-measure", *options),
            library_call(image, vcpus),
        }
        if len(answers) != 1:
            print(f"{name}: the digests differ: {answers}")
            return 1
        ours = median_ms(lambda options=options: run("casemate", "measure", *options))  # type: ignore[misc]
        theirs = median_ms(lambda options=options: run("sev-snp-measure", *options))  # type: ignore[misc]
        library = median_ms(lambda vcpus=vcpus: library_call(image, vcpus))  # type: ignore[misc]
        print(
            f"{name:<20}{ours:>10.1f}{theirs:>17.1f}{ours / theirs:>8.2f}{library:>9.2f}{library / theirs:>17.3f}"
        )
    bare = median_ms(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))
    print(f"{'python -c pass':<20}{bare:>10.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
