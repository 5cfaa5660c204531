"""The interrupt sources of a PC put together (Intel MultiProcessor Specification 1.4, 3.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from casemate.devices.device import IrqLine
from casemate.devices.ioapic import Ioapic
from casemate.devices.lapic import Lapic
from casemate.devices.pic import PicPair
from casemate.devices.pit import Pit
from casemate.host.clock import GuestClock

TIMER_IRQ = 0
TIMER_PIN, EXT_INT_PIN = 2, 0
"""The I/O APIC inputs of the timer and of the 8259s' INT."""


class PcInterrupts:
    """What the vCPU asks for interrupts (``casemate.host.hypervisor.InterruptController``).

    Wires channel 0 of ``pit`` to IRQ 0, and the 8259s to LINT0 and, with ``is_pc``, to the I/O APIC, as on a PC; the
    kernel's own controllers have the timer on that input, too. The 8259s reach the first CPU alone; ``others`` are the
    local APICs of further ones. Everything is called on the vCPU's thread.
    """

    def __init__(
        self,
        clock: GuestClock,
        lapic: Lapic,
        pic: PicPair,
        pit: Pit,
        ioapic: Ioapic,
        *,
        is_pc: bool = True,
        others: Sequence[Lapic] = (),
    ) -> None:
        self._clock = clock
        self.lapic = lapic
        self._lapics = (lapic, *others)
        for each in self._lapics:
            each.on_edge_end = self.refresh
        self._others = [ProcessorInterrupts(self, other) for other in others]
        self.executing = 0
        """The number of the CPU whose turn it is, where CPUs take turns."""
        self._pic = pic
        self._pit = pit
        self._ioapic = ioapic
        self._polls: tuple[Callable[[], None], ...] = ()
        self._deadlines: tuple[Callable[[], int | None], ...] = ()
        self._is_pc = is_pc
        pit.irq = self.irq(TIMER_IRQ)
        pit.waits, pit.is_heard = self._timer_irq_waits, self._timer_irq_enabled
        pic.output = self._drive_ext_int
        pic.master.refresh = pic.slave.refresh = self.refresh
        self.on_deadline: Callable[[int], None] = lambda time: None
        lapic.on_timer = pit.on_timer = self.rearm
        pic.master.mask_written = ioapic.mask_written = lambda: self.rearm(pit.next_edge)

    def of(self, number: int) -> PcInterrupts | ProcessorInterrupts:
        """What CPU ``number`` asks."""
        return self._others[number - 1] if number else self

    def add_processor(self, lapic: Lapic) -> None:
        """One more, whose local APIC is connected."""
        self._lapics = (*self._lapics, lapic)
        lapic.on_edge_end = self.refresh
        self._others.append(ProcessorInterrupts(self, lapic))

    def irq(self, number: int) -> IrqLine:
        """The wire of ISA interrupt ``number`` (0 to 15), to the 8259s and to the I/O APIC."""
        pin = TIMER_PIN if number == TIMER_IRQ else number

        def drive(level: bool) -> None:
            self._pic.set_irq(number, level)
            self._ioapic.set_irq(pin, level)

        return drive

    def rearm(self, time: int) -> None:
        """Something may be due at guest time ``time``."""
        self.on_deadline(time)

    def watch(self, poll: Callable[[], None], deadline: Callable[[], int | None] | None = None) -> None:
        """Call ``poll`` before every answer: a device whose input arrives from another thread, or with time.

        ``deadline`` says at what guest time it has something to do next.
        """
        self._polls += (poll,)
        if deadline is not None:
            self._deadlines += (deadline,)

    def deadline(self) -> int | None:
        """Guest time of the next timer interrupt that could reach the CPU, or None; 0 if one waits already.

        Only looks, so that it may be called from any thread.
        """
        if self._requested():
            return 0
        found = [self.lapic.timer_deadline(), self._pit.deadline() if self._timer_irq_enabled() else None]
        found += [deadline() for deadline in self._deadlines]
        return min((time for time in found if time is not None), default=None)

    def pending(self) -> bool:
        """Whether an interrupt waits for the CPU now."""
        self.refresh()
        return self._requested()

    def refresh(self) -> None:
        """Raise whatever is due."""
        now = self._clock.now()
        for lapic in self._lapics:
            if now >= lapic.timer.next_expiry:
                lapic.advance(now)
        if now >= self._pit.next_edge or self._pit.owed:
            self._pit.advance(now)
            for lapic in self._lapics:
                lapic.hears_edges = self._pit.owed > 0
        for poll in self._polls:
            poll()

    def acknowledge(self) -> int:
        """The vector for the CPU: the 8259's first, as its INTR has no part in APIC priorities."""
        return self._pic.acknowledge() if self._ext_int() else self.lapic.acknowledge()

    def _requested(self) -> bool:
        return self._ext_int() or self.lapic.pending()

    def _drive_ext_int(self, level: bool) -> None:
        self.lapic.set_ext_int(level)
        if self._is_pc:
            self._ioapic.set_irq(EXT_INT_PIN, level)

    def _ext_int(self) -> bool:
        return self._pic.pending() and self.lapic.accepts_ext_int()

    def _timer_irq_enabled(self) -> bool:
        return self._timer_uses_pic() or self._ioapic.enabled(TIMER_PIN)

    def _timer_uses_pic(self) -> bool:
        return self._pic.enabled(TIMER_IRQ) and self.lapic.accepts_ext_int()

    def _timer_irq_waits(self) -> bool:
        if self._timer_uses_pic() and self._pic.master.is_requested(TIMER_IRQ):
            return True
        vector = self._ioapic.vector(TIMER_PIN)
        return vector is not None and any(lapic.is_requested(vector) for lapic in self._lapics)


class ProcessorInterrupts:
    """What a CPU but the first asks for interrupts: its local APIC's, which ``pc``'s controllers send messages to."""

    def __init__(self, pc: PcInterrupts, lapic: Lapic) -> None:
        self._pc = pc
        self.lapic = lapic
        self.executing = 0
        self.on_deadline: Callable[[int], None] = lambda time: None
        lapic.on_timer = self._rearm

    def of(self, number: int) -> PcInterrupts | ProcessorInterrupts:
        """What CPU ``number`` asks."""
        return self._pc.of(number)

    def _rearm(self, time: int) -> None:
        self.on_deadline(time)
        self._pc.rearm(time)

    def deadline(self) -> int | None:
        """Guest time of its next timer interrupt, or None; 0 if an interrupt waits already."""
        return 0 if self.lapic.pending() else self.lapic.timer_deadline()

    def pending(self) -> bool:
        """Whether an interrupt waits for the CPU now."""
        self._pc.refresh()
        return self.lapic.pending()

    def acknowledge(self) -> int:
        """The vector for the CPU."""
        return self.lapic.acknowledge()
