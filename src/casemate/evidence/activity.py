"""When things happened: a histogram of bounded size over a time of unknown length (docs/design/evidence.md)."""

from __future__ import annotations

_BUCKETS = 512
_FIRST_WIDTH = 1 / 128


class Activity:
    """Counts in ``counts``, one for every ``width`` seconds; the width doubles whenever the time outgrows them."""

    def __init__(self) -> None:
        self.width = _FIRST_WIDTH
        self.counts = [0] * _BUCKETS

    def add(self, at: float) -> None:
        """One more at ``at`` seconds."""
        try:
            self.counts[int(at / self.width)] += 1
        except IndexError:
            self._fold()
            self.add(at)

    def _fold(self) -> None:
        pairs = zip(self.counts[::2], self.counts[1::2], strict=True)
        self.counts = [first + second for first, second in pairs] + [0] * (_BUCKETS // 2)
        self.width *= 2

    def to_json(self) -> list[dict[str, float | int]]:
        """What is not zero: from when on, for how long in seconds, and the count."""
        return [
            {"at": index * self.width, "seconds": self.width, "count": count}
            for index, count in enumerate(self.counts)
            if count
        ]
