"""Runs mutations in forked children with limits of CPU seconds and address space (setrlimit(2))."""

from __future__ import annotations

import argparse
import os
import random
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

CPU_SECONDS, ADDRESS_SPACE = 60, 2 << 30
"""What a child may use."""


class Fault(NamedTuple):
    """A mutation that was not answered as it must be."""

    number: int
    what: str
    how: str


def run_in_child(numbers: range, run: Callable[[range], Iterable[Fault]]) -> list[Fault]:
    """The faults that ``run`` finds among these mutations; the child's own end is one, if it is not a good one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
            with os.fdopen(writing, "w") as pipe:
                pipe.writelines(f"{number}\t{what}\t{how!r}\n" for number, what, how in run(numbers))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        faults = [_fault(line) for line in pipe]
    _, status = os.waitpid(child, 0)
    if status:
        faults.append(Fault(numbers.start, "batch", f"the child ended with status {status:#x}"))
    return faults


def main(
    description: str | None, run_batches: Callable[[int, int], Iterator[list[Fault]]], wrong: str
) -> int:
    """Run as many as were asked for; the exit code. ``wrong`` says what the faults are."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    faults = 0
    for batch in run_batches(args.seed, args.count):
        for fault in batch:
            faults += 1
            print(f"mutation {fault.number}, {fault.what}: {fault.how}")
    print(f"{args.count} mutations: {faults} {wrong}")
    return 1 if faults else 0


def _fault(line: str) -> Fault:
    number, what, how = line.rstrip("\n").split("\t", 2)
    return Fault(int(number), what, how)


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """``data`` with one to five changes: bits, bytes, pieces that come, go, or are of ``others``."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(max(len(changed), 1))
        kind = rng.randrange(8)
        if kind <= 2 and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 3 and changed:
            changed[at] = rng.choice((0, 0xFF, 0x7F, 0x80, 0x30, 0x82, rng.randrange(256)))
        elif kind == 4:
            changed[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif kind == 5:
            del changed[at : at + rng.randrange(1, 40)]
        elif kind == 6:
            del changed[at:]
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            piece = other[start : start + rng.randrange(1, 64)]
            changed[at : at + len(piece)] = piece
    return bytes(changed)
