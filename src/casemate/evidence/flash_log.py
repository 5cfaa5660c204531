"""What a guest did to one flash unit: commands, blocks, and whose variables they are (docs/design/evidence.md)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from casemate.events import FlashAction, FlashCommand
from casemate.evidence.activity import Activity
from casemate.evidence.store_map import Part, StoreMap
from casemate.firmware.variables import vendor_name

BLOCK_SHIFT = 12
"""Of the sectors that one erase clears."""
_MOST_RUNS = 4096
_MOST_LOOKS = 256
_MOST_PARTS = 1000

_PROGRAM, _ERASE = FlashAction.PROGRAM, FlashAction.ERASE


class FlashLog:
    """Listens to the commands of a unit whose memory is ``contents``; memory and time for each are bounded.

    Programs are kept as runs of bytes until their block is erased, or the end: only then is it known which record of
    the variable store they are.
    """

    def __init__(self, contents: memoryview) -> None:
        self.counts: dict[FlashAction, int] = dict.fromkeys(FlashAction, 0)
        self.activity = Activity()
        self._contents = contents
        blocks = (len(contents) >> BLOCK_SHIFT) + 1
        self._programs, self._erases = [0] * blocks, [0] * blocks
        self._bytes: Counter[Part] = Counter()
        self._runs: list[tuple[int, int]] = []
        self._unknown_blocks: set[int] = set()
        self._run_start = self._run_end = 0
        self._looks = 0

    def add(self, command: FlashCommand, at: float) -> None:
        """Take note of a command, ahead of what it does, at ``at`` seconds."""
        _, action, offset, size, _ = command
        self.counts[action] += 1
        self.activity.add(at)
        if action is _PROGRAM:
            self._programs[offset >> BLOCK_SHIFT] += 1
            if offset != self._run_end:
                self._end_run()
                self._run_start = offset
            self._run_end = offset + size
        elif action is _ERASE:
            self._end_run()
            block = offset >> BLOCK_SHIFT
            self._erases[block] += 1
            if block in self._unknown_blocks:
                self._attribute()

    def to_json(self) -> dict[str, Any]:
        """The documented form (docs/guide/evidence.md)."""
        self._end_run()
        self._attribute()
        parts = sorted(self._bytes.items(), key=lambda item: -item[1])
        return {
            "programs": self.counts[_PROGRAM],
            "erases": self.counts[_ERASE],
            "probes": self.counts[FlashAction.PROBE],
            "locks": self.counts[FlashAction.LOCK],
            "blocks": [
                {"offset": block << BLOCK_SHIFT, "programs": programs, "erases": erases}
                for block, (programs, erases) in enumerate(zip(self._programs, self._erases, strict=True))
                if programs or erases
            ],
            "variables": [
                {"name": part.name, "vendor": vendor_name(part.vendor), "bytes": size}
                for part, size in parts
                if part.vendor is not None
            ],
            "other": {part.name: size for part, size in parts if part.vendor is None},
            "activity": self.activity.to_json(),
        }

    def _end_run(self) -> None:
        start, end = self._run_start, self._run_end
        self._run_start = self._run_end = -1
        if start < end:
            self._runs.append((start, end))
            self._unknown_blocks.update(range(start >> BLOCK_SHIFT, (end - 1 >> BLOCK_SHIFT) + 1))
            if len(self._runs) == _MOST_RUNS:
                self._attribute()

    def _attribute(self) -> None:
        self._looks += 1
        if self._looks <= _MOST_LOOKS or len(self._runs) > _MOST_RUNS // 2:
            found = StoreMap(self._contents)
            for start, end in self._runs:
                for part, size in found.pieces(start, end):
                    self._count(part._replace(start=0), size)
        else:
            self._count(Part(0, "not looked up"), sum(end - start for start, end in self._runs))
        self._runs.clear()
        self._unknown_blocks.clear()

    def _count(self, part: Part, size: int) -> None:
        known = part in self._bytes or len(self._bytes) < _MOST_PARTS
        self._bytes[part if known else Part(0, "more variables")] += size
