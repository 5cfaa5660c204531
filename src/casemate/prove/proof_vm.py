"""A VM with flash under one protection, and a guest that attacks it (docs/design/prove.md)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.policy import SevPolicy
from casemate.address import FOUR_GIB, PAGE_SIZE, Gpa
from casemate.events import Event
from casemate.host.exits import Interrupted, MemoryFault, NestedFaultLoop, Shutdown, VmExit
from casemate.host.hypervisor import Hypervisor, Vcpu
from casemate.host.secure_processor import SevSetup, VcpuReset
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.guest_memory import GuestMemory
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import Ram, RomDevice
from casemate.prove import attacks
from casemate.prove.attacks import Attack

RAM_SIZE = 4 << 20
FILLED = b"\x5a" * PAGE_SIZE
FLIPS = 100
DEADLINE_SECONDS = 5.0
_RESET_VECTOR = 0xFFFFFFF0


class Row(NamedTuple):
    """What became of an attack: ``what`` in words, and whether the memory stayed as it was."""

    attack: Attack
    what: str
    unchanged: bool


class _Deaf:
    def report(self, event: Event) -> None:
        pass


class _NoDevice:
    """Behind the flash: never asked, for the bus gives it nothing."""

    def read_mmio(self, offset: int, size: int) -> int | None:
        return None

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        return False


class _Page:
    """One page of flash: the memory, as casemate's own class protects it, and what it must hold."""

    def __init__(self, proof_vm: ProofVm, number: int, gpa: int, contents: bytes) -> None:
        self.gpa, self.contents = gpa, contents.ljust(PAGE_SIZE, b"\0")
        self.backing = proof_vm.backing(f"casemate-prove{number}", PAGE_SIZE)
        self.backing.writable.view[:] = self.contents
        self.memory = FlashMemory(number, self.backing, proof_vm.protection, proof_vm.vm, _Deaf())
        self._region = RomDevice(f"prove{number}", self.backing, _NoDevice())
        self._map = proof_vm.map

    def arm(self) -> None:
        """Make it flash."""
        self.memory.attach(self._map, self._region, Gpa(self.gpa))

    def take_change(self) -> bool:
        """Whether its contents are others than they must be; they are the right ones from now on."""
        found = self.memory.read(0, PAGE_SIZE)
        changed, self.contents = found != self.contents, found
        return changed


class ProofVm:
    """Runs one image. It is its own bus: whatever comes is counted and given to nobody."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        protection: WriteProtection,
        image: bytes,
        protected: SevSetup | None = None,
        processors: int = 1,
    ) -> None:
        self.protection = protection
        self._backings: list[Backing] = []
        self.vm = hypervisor.create_vm(GuestKind.PLAIN if protected is None else GuestKind.SEV_ES, protected)
        try:
            self.map = MemoryMap(self.vm)
            self._ram = Ram("ram", self.backing("casemate-ram", RAM_SIZE))
            rom = Ram("image", self.backing("casemate-image", len(image)))
            rom.backing.writable.view[:] = image
            self.map.add(self._ram, Gpa(0))
            self.map.add(rom, Gpa(FOUR_GIB - len(image)))
            self.page = _Page(self, 0, attacks.FLASH, FILLED)
            self.late = _Page(self, 1, attacks.LATE_FLASH, FILLED)
            self.table = _Page(self, 2, attacks.TABLE_FLASH, attacks.DIRECTORY)
            self._late_ram = Ram("late", self.late.backing)
            self.map.add(self._late_ram, Gpa(attacks.LATE_FLASH))
            self.page.arm()
            self.table.arm()
            self.vcpu, *self._others = [
                self.vm.create_vcpu(self, None, number=number, count=processors)
                for number in range(processors)
            ]
            self._launch()
        except BaseException:
            self.close()
            raise
        self.seen: Counter[str] = Counter()
        self.rows: list[Row] = []
        self._attacks: Sequence[Attack] = ()
        self._attack: Attack | None = None
        self._stores = threading.Event()
        self._flips_left = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def backing(self, name: str, size: int) -> Backing:
        """Memory that lives as long as this."""
        backing = Backing(name, size)
        self._backings.append(backing)
        return backing

    def run_sequence(self, made: Sequence[Attack], starts: tuple[int, ...]) -> list[Row]:
        """What became of the attacks, in their order; fewer if one was the guest's end.

        Where one ends in a fault, the guest goes on behind it at the next of ``starts``, if there are any.
        """
        self._attacks = made
        with self._deadline():
            while (vm_exit := self.vcpu.run()) != Interrupted():
                self._note_exit(vm_exit)
                if isinstance(vm_exit, Shutdown) or self._attack is None or not starts:
                    break
                self.vcpu.set_rip(starts[made.index(self._attack) + 1])
        self._finish()
        return self.rows

    def run_race(self) -> Row:
        """Writes without end, while every exit of the same processor takes the slot away or gives it back."""
        self._flips_left = FLIPS
        with self._deadline():
            self._store_for_ever(self.vcpu)
        return Row(attacks.RACE, self._words(), not self.page.take_change())

    def run_race_of_two(self) -> Row:
        """The same, but the exits are those of another processor, which does nothing else."""
        code = attacks.second_processor()
        self._ram.backing.writable.view[attacks.SECOND_START : attacks.SECOND_START + len(code)] = code
        self._flips_left = FLIPS
        (second,) = self._others
        thread = threading.Thread(target=self._store_for_ever, args=(second,), name="casemate-second")
        thread.start()
        with self._deadline():
            self.vcpu.run()
        while thread.is_alive():  # it may not have been in its run yet when it was told to stop
            second.stop()
            thread.join(0.05)
        return Row(attacks.RACE, self._words(), not self.page.take_change())

    def _store_for_ever(self, vcpu: Vcpu) -> None:
        while (vm_exit := vcpu.run()) != Interrupted():
            self._note_exit(vm_exit)
            if not isinstance(vm_exit, MemoryFault):
                break
            self._note_store()

    def _note_store(self) -> None:
        self._stores.set()
        if not self._others:
            self._flip_in_exit()

    def run_dma(self) -> Row:
        """A device that writes where the guest told it to."""
        moved = GuestMemory(self.map, self.vm, _Deaf()).write(attacks.FLASH, b"\x77" * 8)
        return Row(attacks.DMA, "moved" if moved else "refused", not self.page.take_change())

    def read_port(self, port: int, size: int) -> int:
        """Zero."""
        return 0

    def write_port(self, port: int, size: int, value: int) -> None:
        """The guest says where it is."""
        if port == attacks.MARK_PORT:
            self._finish()
            if value == attacks.END:
                self.vcpu.stop()
            else:
                self._begin(self._attacks[value])
        elif port == attacks.ARM_PORT:
            self._arm_late()
        elif port == attacks.FLIP_PORT and self._stores.is_set():
            self._flip_in_exit()

    def read_mmio(self, gpa: int, size: int) -> int:
        """Zero."""
        return 0

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        """A write that was not made."""
        self.seen["MMIO"] += 1
        self._note_store()

    def close(self) -> None:
        """Give everything back."""
        self.vm.close()
        for backing in self._backings:
            backing.close()

    def _launch(self) -> None:
        processor = self.vm.secure_processor
        if processor is not None:
            processor.launch_start(SevPolicy.ES, None)
            processor.launch_update_vmsa([VcpuReset(_RESET_VECTOR, 0)])
            processor.launch_measure()
            processor.launch_finish()

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        watchdog = threading.Timer(DEADLINE_SECONDS, self._give_up)
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
            watchdog.join()

    def _give_up(self) -> None:
        self.seen["no progress"] += 1
        self.vcpu.stop()

    def _note_exit(self, vm_exit: VmExit) -> None:
        if isinstance(vm_exit, MemoryFault):
            held = [page.memory.take_held_page() for page in (self.page, self.late, self.table)]
            self.seen["held" if any(page is not None for page in held) else "fault"] += 1
        elif isinstance(vm_exit, NestedFaultLoop):
            self.seen["livelock"] += 1
        elif isinstance(vm_exit, Shutdown):
            self.seen["guest exception"] += 1
        else:
            self.seen["emulation error"] += 1

    def _begin(self, attack: Attack) -> None:
        self.seen.clear()
        self._attack = attack
        if attack.page == attacks.TABLE_FLASH:
            for gpa, entry in attacks.tables_for_directory():
                self._ram.backing.writable.view[gpa : gpa + len(entry)] = entry

    def _finish(self) -> None:
        if self._attack is not None:
            changed = [page.take_change() for page in (self.page, self.late, self.table)]
            self.rows.append(Row(self._attack, self._words(), not any(changed)))
            self._attack = None

    def _arm_late(self) -> None:
        self.map.remove(self._late_ram)
        self.late.take_change()  # that write was allowed
        self.late.arm()

    def _flip_in_exit(self) -> None:
        if self._flips_left:
            self._flips_left -= 1
            memory = self.page.memory
            (memory.leave_array_mode if self._flips_left % 2 else memory.enter_array_mode)()
            if not self._flips_left:
                self.vcpu.stop()

    def _words(self) -> str:
        return ", ".join(self.seen) or "went on"
