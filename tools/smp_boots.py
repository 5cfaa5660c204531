"""Boots of guests with several vCPUs, again and again: does one hang, or end otherwise (docs/guide/boot.md)?

python -m tools.smp_boots --boots 50 --cpus 4
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import monotonic

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.firmware_images import require_image, require_kernel
from support.threads import CannotBuildError, threaded_initrd

APPEND = "console=ttyS0 panic=-1 loglevel=5"


def kinds(folder: Path) -> dict[str, list[str]]:
    """The words of ``casemate boot`` for each kind of guest."""
    kernel = [
        "--kernel",
        str(require_kernel("trixie")),
        "--initrd",
        str(folder / "initrd"),
        "--append",
        APPEND,
    ]
    code = require_image("OVMF_CODE_4M.fd", "trixie")
    variables = folder / "vars.fd"
    variables.write_bytes(require_image("OVMF_VARS_4M.fd", "trixie").read_bytes())
    flash = ["--code", str(code), "--vars", str(variables)]
    return {
        "plain": kernel,
        "sev": ["--guest", "sev", *kernel],
        "sev-es behind OVMF": ["--guest", "sev-es", *flash, *kernel],
        "snp": ["--guest", "snp", *kernel],
    }


def verdict(words: list[str], timeout: int, log: Path) -> str:
    """How one boot ended; ``good`` if all CPUs came online and the sums of the threads were right.

    What the guest of another boot printed is kept in ``log``.
    """
    line = [sys.executable, "-m", "casemate", "boot", "--host", "model", "--json", "--timeout", str(timeout)]
    done = subprocess.run([*line, *words], capture_output=True, text=True, check=False)
    if not done.stdout:
        return done.stderr.strip().splitlines()[-1]
    document = json.loads(done.stdout)
    if document["outcome"] == "power-off" and "ALL IS WELL" in document["serial"]:
        return "good"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(document["serial"], "utf-8")
    bad = [line for line in document["serial"].splitlines() if "BAD" in line]
    return "; ".join([document["outcome"], document["detail"], *bad])


def main() -> int:
    """Boot all kinds in turn; 1 if one boot was not good."""
    parser = argparse.ArgumentParser(description="Boot guests with several vCPUs again and again.")
    parser.add_argument("--boots", type=int, default=50, help="of each kind (50)")
    parser.add_argument("--cpus", type=int, default=4, help="vCPUs (4)")
    parser.add_argument("--timeout", type=int, default=300, help="seconds for each boot (300)")
    parser.add_argument(
        "--logs", type=Path, default=Path("smp-boots"), help="folder for what bad boots printed (smp-boots)"
    )
    options = parser.parse_args()
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            (folder / "initrd").write_bytes(threaded_initrd(folder))
        except CannotBuildError as error:
            print(f"smp_boots: error: {error}", file=sys.stderr)
            return 5
        for number in range(options.boots):
            for kind, words in kinds(folder).items():
                started = monotonic()
                log = options.logs / f"{kind.replace(' ', '-')}-{number + 1}.log"
                ended = verdict([*words, "--cpus", str(options.cpus)], options.timeout, log)
                found.setdefault(kind, Counter())[ended] += 1
                print(f"{number + 1} {kind}: {ended}, {monotonic() - started:.1f} s", flush=True)
    for kind, counts in found.items():
        print(f"{kind}: {dict(counts)}")
    return 0 if all(set(counts) == {"good"} for counts in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
