"""A vCPU whose interrupt controllers are all in the monitor (Linux api.rst, KVM_INTERRUPT without an irqchip)."""

from __future__ import annotations

from collections.abc import Callable


class NoIrqchip:
    """The vector of KVM_INTERRUPT waits until the vCPU takes it (``casemate.host.hypervisor.InterruptController``)."""

    lapic = None

    def __init__(self) -> None:
        self._vector: int | None = None
        self.taken: Callable[[], None] = lambda: None
        """Called when the vCPU took it."""
        self.on_deadline: Callable[[int], None] = lambda _time: None
        self.executing = 0

    def inject(self, vector: int) -> None:
        """KVM_INTERRUPT."""
        self._vector = vector

    def of(self, _number: int) -> NoIrqchip:
        """Each vCPU has one of its own."""
        return self

    def deadline(self) -> int | None:
        """No timer is here."""
        return None if self._vector is None else 0

    def pending(self) -> bool:
        """Whether a vector waits."""
        return self._vector is not None

    def acknowledge(self) -> int:
        """The vector."""
        vector, self._vector = self._vector, None
        assert vector is not None, "it was pending"
        self.taken()
        return vector
