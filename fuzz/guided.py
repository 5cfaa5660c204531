"""One target under atheris, in a process of its own, which libFuzzer ends (LLVM libFuzzer, atheris).

python -m fuzz.guided TARGET TALLY FINDINGS/ [options of libFuzzer] CORPUS
"""

from __future__ import annotations

import sys
from mmap import mmap

import atheris

from fuzz import children, target


def main(name: str, tally: str, findings: str, *options: str) -> None:
    """Never returns: libFuzzer exits by itself."""
    with open(tally, "r+b") as file:
        target.TALLY.memory = mmap(file.fileno(), 0)
    with atheris.instrument_imports(include=["casemate"]):
        chosen = target.load(name)
    take = chosen.on_bytes

    def one(data: bytes) -> None:
        target.TALLY.add(inputs=take(data) is not None)

    limits = [
        f"-timeout={children.INPUT_SECONDS}",
        f"-rss_limit_mb={chosen.memory >> 20}",
        f"-max_len={target.LONGEST_INPUT}",
        f"-artifact_prefix={findings}{name}-",
    ]
    atheris.Setup([sys.argv[0], *limits, *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
