"""Accesses that leave the modelled CPU: ports and MMIO go to the bus, stores to protected memory become faults.

Source: Linux Documentation/virt/kvm/api.rst (KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_MEM_READONLY) for what goes where.
"""

from __future__ import annotations

import ctypes
from typing import cast

from unicorn import unicorn_const, x86_const

from casemate.host.exits import MemoryFault, NestedFaultLoop
from casemate.host.hypervisor import IoBus
from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu import native
from casemate.host.model.cpu.cpuid import C_BIT
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.unicorn_api import MemoryFaultHook, MmioRead, MmioWrite, PortRead, PortWrite
from casemate.host.model.eras import StoreEnd
from casemate.host.slots import MemorySlot


class Traps:
    """The engine's memory and port callbacks. An exception in one of them ends the run and is kept in ``error``.

    ``readonly_slot`` and ``readonly_mapping`` say how a store ends that the slot or its mapping does not take. Of a
    ``sealed`` guest the host learns no more than that there was one.
    """

    def __init__(
        self,
        engine: Engine,
        readonly_slot: StoreEnd,
        readonly_mapping: StoreEnd,
        *,
        sealed: bool,
        encrypted: bool = False,
    ) -> None:
        self.bus = cast(IoBus, None)
        self.error: BaseException | None = None
        self.fault: MemoryFault | NestedFaultLoop | None = None
        self._engine = engine
        self._ends = {True: readonly_slot, False: readonly_mapping}
        self._sealed = sealed
        self._aliases = (0, 1 << C_BIT) if encrypted else (0,)
        self._mask = ~(1 << C_BIT) if encrypted else -1
        self._trapped: set[tuple[int, int, bool]] = set()
        self._raising: set[tuple[int, int]] = set()
        self.mmio_read = MmioRead(self._read_mmio)
        self.mmio_write = MmioWrite(self._write_mmio)
        self._readonly_store = MemoryFaultHook(self._on_readonly_store)
        self._protected_store = MemoryFaultHook(self._on_protected_store)
        engine.hook(
            unicorn_const.UC_HOOK_INSN, PortRead(self._read_port), instruction=x86_const.UC_X86_INS_IN
        )
        engine.hook(
            unicorn_const.UC_HOOK_INSN, PortWrite(self._write_port), instruction=x86_const.UC_X86_INS_OUT
        )

    def trap_stores(self, slot: MemorySlot) -> None:
        """Catch stores to a slot that does not take them.

        A range once trapped stays so: the hook costs nothing where stores are refused, and stays out of others.
        """
        first, last = int(slot.range.start), int(slot.range.end) - 1
        if (first, last, slot.readonly) in self._trapped:
            return
        self._trapped.add((first, last, slot.readonly))
        for alias in self._aliases:
            self._trap(first | alias, last | alias, readonly=slot.readonly)

    def raise_vc_at(self, first: int, last: int) -> None:
        """Accesses to unmapped memory raise the #VC of a nested page fault."""
        fast = self._engine.fast
        assert fast is not None
        if (first, last) not in self._raising:
            self._raising.add((first, last))
            kinds = unicorn_const.UC_HOOK_MEM_READ_UNMAPPED | unicorn_const.UC_HOOK_MEM_WRITE_UNMAPPED
            record = ctypes.addressof(fast.fault)
            self._engine.hook(kinds, fast.unmapped_hook, begin=first, end=last, user_data=record)

    def _trap(self, first: int, last: int, *, readonly: bool) -> None:
        kind = unicorn_const.UC_HOOK_MEM_WRITE_PROT
        fast = self._engine.fast
        if self._ends[readonly] is StoreEnd.MMIO:
            self._engine.hook(kind, self._readonly_store, begin=first, end=last)
        elif fast:
            record = ctypes.addressof(fast.fault)
            self._engine.hook(kind, fast.fault_hook, begin=first, end=last, user_data=record)
        else:
            self._engine.hook(kind, self._protected_store, begin=first, end=last)

    def fast_path_fault(self, fast: native.FastPath) -> None:
        """The native hook undid a store; called from the interrupt hook, RIP on the instruction."""
        record = fast.fault
        self._record_fault(record.gpa, record.size, record.value)

    def take_error(self) -> None:
        """Raise what a callback raised, if any did."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _record_fault(self, gpa: int, size: int, value: int) -> None:
        gpa &= self._mask
        on_readonly_slot = any(readonly and first <= gpa <= last for first, last, readonly in self._trapped)
        if self._ends[on_readonly_slot] is StoreEnd.LIVELOCK:
            self.fault = NestedFaultLoop()
        elif self._sealed:
            self.fault = MemoryFault()
        else:
            rip = self._engine.read(registers.RIP)
            self.fault = MemoryFault(gpa, size, value & (1 << 8 * size) - 1, rip)
        self._engine.stop()

    def _on_readonly_store(
        self, _uc: int, _access: int, gpa: int, size: int, value: int, _user: int | None
    ) -> bool:
        try:
            self.bus.write_mmio(gpa & self._mask, size, value & (1 << 8 * size) - 1)
        except BaseException as error:
            self._fail(error)
        return True

    def _on_protected_store(
        self, _uc: int, _access: int, gpa: int, size: int, value: int, _user: int | None
    ) -> bool:
        self._record_fault(gpa, size, value)
        return False

    def _read_port(self, _uc: int, port: int, size: int, _user: int | None) -> int:
        try:
            return self.bus.read_port(port, size)
        except BaseException as error:
            return self._fail(error)

    def _write_port(self, _uc: int, port: int, size: int, value: int, _user: int | None) -> None:
        try:
            self.bus.write_port(port, size, value)
        except BaseException as error:
            self._fail(error)

    def _read_mmio(self, _uc: int, offset: int, size: int, base: int) -> int:
        try:
            return self.bus.read_mmio(base + offset & self._mask, size)
        except BaseException as error:
            return self._fail(error)

    def _write_mmio(self, _uc: int, offset: int, size: int, value: int, base: int) -> None:
        try:
            self.bus.write_mmio(base + offset & self._mask, size, value)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> int:
        if self.error is None:
            self.error = error
        self._engine.stop()
        return 0
