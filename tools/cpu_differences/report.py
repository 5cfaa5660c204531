"""A run over many streams, and what it saw (docs/design/cpu.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tools.cpu_differences.compare import BATCH, Difference, find_differences
from tools.cpu_differences.hosts import HOSTS, Host, HostError
from tools.cpu_differences.known import explanation
from tools.cpu_differences.monitor import Batch
from tools.cpu_differences.streams import make_streams


@dataclass(slots=True)
class Report:
    """What a run saw so far."""

    seed: int
    hosts: Mapping[str, Host]
    missing: Mapping[str, str]
    """Why the others do not run."""
    streams: int = 0
    instructions: int = 0
    found: list[tuple[Difference, str | None]] = field(default_factory=list)
    """Each difference, and the name of its class if it is a known one."""

    @property
    def new(self) -> list[Difference]:
        """Those of no known class."""
        return [difference for difference, known in self.found if known is None]

    @property
    def known(self) -> Counter[str]:
        """How many there are of each class."""
        return Counter(known for _, known in self.found if known is not None)

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "seed": self.seed,
            "streams": self.streams,
            "instructions": self.instructions,
            "hosts": list(self.hosts),
            "missing": dict(self.missing),
            "known": dict(self.known),
            "new": [_document(difference) for difference in self.new],
        }

    def text(self, *, all_of_them: bool = False) -> str:
        """For people; with the known differences one by one if ``all_of_them``."""
        lines = [f"{name} is left out: {reason}" for name, reason in self.missing.items()]
        hosts = ", ".join(self.hosts)
        lines.append(
            f"seed {self.seed}: {self.streams} streams of {self.instructions} instructions on {hosts}"
        )
        lines += [f"{count:6} known: {name}" for name, count in self.known.most_common()]
        lines.append(f"{len(self.new):6} new")
        lines += [
            _line(difference, known) for difference, known in self.found if all_of_them or known is None
        ]
        return "\n".join(lines)


def available(names: Iterable[str]) -> tuple[dict[str, Host], dict[str, str]]:
    """The hosts that run here, and why the others do not."""
    hosts, missing = {}, {}
    for name in names:
        try:
            HOSTS[name](Batch(list(make_streams(0, 0, 1))))
            hosts[name] = HOSTS[name]
        except HostError as error:
            missing[name] = str(error)
    return hosts, missing


def run(report: Report, first: int, count: int) -> Iterator[Report]:
    """Runs the streams with the numbers from ``first``; the report after each batch. Raises HostError."""
    for start in range(first, first + count, BATCH):
        streams = list(make_streams(report.seed, start, min(BATCH, first + count - start)))
        for difference in find_differences(report.hosts, streams):
            known = explanation(difference)
            report.found.append((difference, known.name if known else None))
        report.streams += len(streams)
        report.instructions += sum(len(stream.code) for stream in streams)
        yield report


def _document(difference: Difference) -> dict[str, Any]:
    return {
        "stream": difference.stream.number,
        "bits": difference.stream.bits,
        "instructions": len(difference.stream.code),
        "instruction": str(difference.instruction),
        "code": difference.code.hex(),
        "kind": difference.kind,
        "groups": [list(group) for group in difference.groups],
        "values": dict(difference.values),
    }


def _line(difference: Difference, known: str | None) -> str:
    groups = " | ".join(" = ".join(group) for group in difference.groups)
    values = "".join(f"\n    {name}: {value}" for name, value in difference.values.items())
    return (
        f"stream {difference.stream.number}, instruction {len(difference.stream.code)}, {difference.stream.bits} bits: "
        f"{difference.instruction} ({difference.code.hex()})\n  {difference.kind}, {groups}, {known or 'new'}{values}"
    )
