"""The hosts of the contract suite, and guests on them that end by writing to a port."""

from __future__ import annotations

import ctypes
import mmap
from typing import Literal

import pytest
from support.assembler import assemble
from support.guest_rig import PROTECTED, Rig
from support.hosts import kvm_or_skip

from casemate.abi.guest_kind import GuestKind
from casemate.address import Hva
from casemate.guests.entry import Bits
from casemate.guests.user_mode import in_user_mode
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import Hypervisor
from casemate.host.kvm.modules import loaded_vendor_module
from casemate.host.model.hypervisor import ModelHypervisor

HostName = Literal["model", "kvm"]
HOSTS: tuple[HostName, ...] = ("model", "kvm")
on_each_host = pytest.mark.parametrize("host", HOSTS)
PAGE = 0x1000
END_PORT = 0xF4
END = f"; out {END_PORT}, al; jmp $"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

READ, WRITE = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE


def make_host(name: HostName) -> Hypervisor:
    """Skips where the host is not to be had."""
    if name != "kvm":
        return ModelHypervisor(GuestClock())
    return kvm_or_skip()


def family(name: HostName) -> str:
    """The name that the table of behaviours knows the host by."""
    return "model" if name != "kvm" else loaded_vendor_module() or "kvm"


class ContractRig(Rig):
    """A ``Rig`` on any host; the guest ends by a write to ``END_PORT``, and ``ended`` says whether it did."""

    def __init__(self, host: HostName, code: str | bytes, bits: Bits = 32, *, user: bool = False) -> None:
        self.host = host
        self.ended = False
        payload = assemble(code, bits) if isinstance(code, str) else code
        vm = make_host(host).create_vm(GuestKind.PLAIN)
        super().__init__(in_user_mode(payload) if user else payload, bits, vm)
        self.bus.on_write_port[END_PORT] = self._end

    @property
    def protected_hva(self) -> Hva:
        """Where the spare page is in this process."""
        return Hva(self.ram.writable.hva + PROTECTED)

    def protect(self, prot: int, hva: Hva | None = None) -> None:
        """mprotect the spare page, or another one."""
        where = self.protected_hva if hva is None else hva
        assert _libc.mprotect(where, PAGE, prot) == 0
        self.vm.mapping_changed(where, PAGE)

    def replace_slot(self, hva: Hva | None = None, *, readonly: bool = False) -> None:
        """Delete the slot of the spare page and add it again, changed."""
        self.vm.delete_slot(3)
        self.add(3, PROTECTED, PAGE, self.protected_hva if hva is None else hva, readonly=readonly)

    @property
    def accesses(self) -> list[tuple[str, int, int, int]]:
        """What the bus saw, without the end and the ports that a kernel keeps for itself."""
        return [entry for entry in self.bus.log if entry[1] != END_PORT]

    def _end(self) -> None:
        self.ended = True
        self.vcpu.stop()
