"""KVM's side of a SEV launch in software: it pins, then asks the secure processor (Linux arch/x86/kvm/svm/sev.c)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from errno import EINVAL, ENOMEM, ENOTTY
from pathlib import Path
from typing import Protocol

from casemate.abi.kernel_eras import KernelEra
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev.commands import BLOCK_SIZE, GuestState, SevCommand
from casemate.address import PAGE_SIZE, Hva
from casemate.errors import HostError
from casemate.host import vma
from casemate.host.model.sev.platform import ModelPlatform
from casemate.host.model.sev.psp import ModelPsp
from casemate.host.model.sev.vmsa import save_area
from casemate.host.secure_processor import LaunchMeasurement, LaunchSession, SevSetup, VcpuReset

_REGISTER = "KVM_MEMORY_ENCRYPT_REG_REGION (modelled)"


class GuestView(Protocol):
    """What the guest sees of memory that the host has encrypted."""

    def make_private(self, hva: Hva, plaintext: bytes | memoryview) -> None:
        """From now on it reads ``plaintext`` where the host sees other bytes."""

    def plaintext(self, hva: Hva, size: int) -> bytes:
        """What it reads there."""


class ModelSev:
    """Implements ``casemate.host.secure_processor.SecureProcessor`` for one VM.

    ``view`` is told what the guest reads where memory was encrypted. ``lock_limit`` bytes may be pinned
    (RLIMIT_MEMLOCK); None is no limit, since the model locks nothing and so needs no privilege.
    """

    def __init__(
        self,
        era: KernelEra,
        setup: SevSetup,
        view: GuestView,
        *,
        sev_es: bool,
        lock_limit: int | None = None,
        platform: ModelPlatform | Path | None = None,
    ) -> None:
        self.psp = ModelPsp(sev_es=sev_es, platform=platform)
        self._era = era
        self._sev_es = sev_es
        legacy = setup.vm_type is VmType.DEFAULT
        self._features = era.legacy_vmsa_features if legacy else setup.vmsa_features
        self._saves_fpu = era.init2_saves_fpu and not legacy
        self._view = view
        self._lock_limit = lock_limit
        self._locked = 0
        self.starts: list[int] = []
        """Addresses where the launched vCPUs start."""

    @property
    def version(self) -> tuple[int, int, int]:
        """The modelled firmware's version."""
        return self.psp.version

    @property
    def state(self) -> GuestState:
        """How far the launch is."""
        return self.psp.state

    @property
    def pdh(self) -> bytes:
        """The modelled platform's certificate."""
        return self.psp.platform.pdh

    def launch_start(self, policy: int, session: LaunchSession | None) -> None:
        """Hand the session over."""
        self.psp.launch_start(policy, session)

    def register_region(self, hva: Hva, size: int) -> None:
        """Pin for good."""
        self._pin(_REGISTER, hva, size, writable=self._era.register_region_pins_for_writing)

    def launch_update_data(self, hva: Hva, size: int) -> None:
        """Pin, encrypt in place, unpin."""
        self._pin_update(SevCommand.LAUNCH_UPDATE_DATA, hva, size)
        memory = _memory(hva, size)
        self.psp.launch_update_data(hva, memory)
        self._encrypt(hva, memory)

    def launch_update_vmsa(self, vcpus: Sequence[VcpuReset]) -> None:
        """Save areas from reset state; ENOTTY for a guest without."""
        if not self._sev_es:
            raise HostError(_name(SevCommand.LAUNCH_UPDATE_VMSA), ENOTTY, "this is no SEV-ES guest")
        for vcpu in vcpus:
            self.starts.append(vcpu.address)
            self.psp.launch_update_vmsa(save_area(vcpu, self._features, saves_fpu=self._saves_fpu))

    def launch_measure(self) -> LaunchMeasurement:
        """Close the digest."""
        return self.psp.launch_measure()

    def launch_secret(self, header: bytes, hva: Hva, data: bytes) -> None:
        """Pin, put the secret in place, unpin."""
        self._pin_update(SevCommand.LAUNCH_SECRET, hva, len(data))
        self._encrypt(hva, self.psp.launch_secret(header, hva, data))

    def launch_finish(self) -> None:
        """The guest may run."""
        self.psp.launch_finish()

    def debug_decrypt(self, hva: Hva, size: int) -> bytes:
        """What the guest reads there, if its policy lets it be debugged."""
        self.psp.debug(SevCommand.DBG_DECRYPT)
        self._pin_meanwhile(SevCommand.DBG_DECRYPT, hva, size, writable=False)
        return self._view.plaintext(hva, size)

    def debug_encrypt(self, hva: Hva, plaintext: bytes) -> None:
        """Have the guest read ``plaintext`` there, likewise; the blocks of 16 bytes around it stay what they are."""
        self.psp.debug(SevCommand.DBG_ENCRYPT)
        self._pin_meanwhile(SevCommand.DBG_ENCRYPT, hva, len(plaintext), writable=True)
        before = hva % BLOCK_SIZE
        start, size = Hva(hva - before), before + len(plaintext)
        blocks = bytearray(self._view.plaintext(start, size + -size % BLOCK_SIZE))
        blocks[before:size] = plaintext
        self._encrypt(start, bytes(blocks))

    def _encrypt(self, hva: Hva, plaintext: bytes | memoryview) -> None:
        self._view.make_private(hva, plaintext)
        self.psp.encrypt(hva, plaintext, _memory(hva, len(plaintext)))

    def _pin_update(self, command: SevCommand, hva: Hva, size: int) -> None:
        self._pin_meanwhile(command, hva, size, writable=self._era.launch_update_pins_for_writing)

    def _pin_meanwhile(self, command: SevCommand, hva: Hva, size: int, *, writable: bool) -> None:
        before = self._locked
        self._pin(_name(command), hva, size, writable=writable)
        self._locked = before

    def _pin(self, call: str, hva: Hva, size: int, *, writable: bool) -> None:
        if size <= 0:
            raise HostError(call, EINVAL, f"{size} bytes")
        start = hva - hva % PAGE_SIZE
        pages = -(-(hva + size - start) // PAGE_SIZE) * PAGE_SIZE
        locked = self._locked + pages
        if self._lock_limit is not None and locked > self._lock_limit:
            raise HostError(
                call,
                ENOMEM,
                f"{locked} locked bytes exceed the limit of {self._lock_limit} (RLIMIT_MEMLOCK)",
                "raise it (ulimit -l), give the guest less memory, or run with CAP_IPC_LOCK",
            )
        if not (vma.is_writable if writable else vma.is_readable)(start, pages):
            right = "written to" if writable else "read"
            raise HostError(call, ENOMEM, f"host range [{start:#x}, {start + pages:#x}) cannot be {right}")
        self._locked = locked


def _name(command: SevCommand) -> str:
    return f"{command.kernel_name} (modelled)"


def _memory(hva: int, size: int) -> memoryview:
    """Host memory, which was found to be there."""
    return memoryview((ctypes.c_char * size).from_address(hva)).cast("B")
