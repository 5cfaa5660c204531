"""What machine to build: a frozen description, checked before anything is opened (docs/design/machine.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from casemate.abi.guest_kind import GuestKind
from casemate.address import PAGE_SIZE
from casemate.devices.flash.sync import Sync
from casemate.errors import SpecError
from casemate.memory.protection import OnWrite, Requested

if TYPE_CHECKING:
    from casemate.abi.x86.cpu_models import CpuChoice
    from casemate.host.secure_processor import SevSetup
    from casemate.linux.direct_boot import DirectBoot

MIB = 1 << 20
MIN_MEMORY = 1 * MIB
MAX_MEMORY = 64 << 30
MAX_VCPUS = 255
"""As many as there are APIC IDs of 8 bits, which is what the interrupt controllers here have."""

BoardName = Literal["q35", "pc", "bare"]


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One guest. Firmware is ``code`` with ``variables`` (or without) in flash, or ``bios``; sizes in bytes.

    With neither of them ``kernel`` is started without firmware.
    """

    code: Path | None = None
    variables: Path | None = None
    bios: Path | str | None = None
    machine: BoardName = "q35"
    memory: int = 256 * MIB
    vcpus: int = 1
    test_device: bool = False
    """QEMU's pc-testdev, and its isa-debug-exit, whose value decides the exit code."""
    cpu: CpuChoice | None = None
    """The modelled processor, in QEMU's spelling where it is given as text; None is a usual one."""
    sync: Sync = Sync.EXIT
    """When changed variables go to the disk."""
    kind: GuestKind = GuestKind.PLAIN
    protection: Requested = "auto"
    on_write: OnWrite | None = None
    sev: SevSetup | None = None
    """How the VM of a SEV or SEV-ES guest is set up."""
    isa_bios: bool = True
    """Show the firmware's last 128 KiB below 1 MiB, too; a second slot over the same memory."""
    kernel: Path | None = None
    """A Linux kernel to start, with ``initrd`` and the command line ``append``: by the firmware, or without any."""
    initrd: Path | None = None
    append: str = ""
    linux: DirectBoot | None = field(default=None, repr=False)
    """The kernel as it is laid out in memory, where a launch decided on that; only for a kernel without firmware."""
    fw_cfg: tuple[tuple[str, bytes], ...] = ()
    """Files for the guest, by name."""

    def __post_init__(self) -> None:
        self._take_plain_words()
        if (self.code is None) == (self.bios is None) and not self.is_direct:
            raise SpecError("the firmware is given by code and variables, or by bios", "give one of them")
        if self.code is None and self.variables is not None:
            what = "a kernel without firmware has none" if self.is_direct else "--bios firmware is no flash"
            raise SpecError(
                f"a variable store needs flash, and {what}", "give the code with --code, or leave --vars out"
            )
        if self.is_direct and self.machine == "bare":
            raise SpecError("the bare board has no devices for a kernel", "use --machine q35 or pc")
        if self.test_device and (self.kind.is_confidential or self.machine == "bare"):
            raise SpecError("--test-device is for plain guests on q35 or pc", "leave it out")
        if self.cpu is not None and self.cpu.phys_bits and self.kind.is_confidential:
            raise SpecError(
                "phys-bits: the addresses of confidential guests end at the C-bit", "leave it out"
            )
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise SpecError(f"{self.vcpus} vCPUs are not between 1 and {MAX_VCPUS}", "correct the number")
        if self.memory % PAGE_SIZE or not MIN_MEMORY <= self.memory <= MAX_MEMORY:
            raise SpecError(
                f"{self.memory} bytes of memory",
                f"give a multiple of {PAGE_SIZE} bytes from {MIN_MEMORY // MIB}M to {MAX_MEMORY >> 30}G",
            )

    def _take_plain_words(self) -> None:
        for name in ("code", "variables", "bios", "kernel", "initrd"):
            if isinstance(path := getattr(self, name), str):
                object.__setattr__(self, name, Path(path))
        if isinstance(self.cpu, str):
            from casemate.abi.x86.cpu_models import CpuChoice

            object.__setattr__(self, "cpu", CpuChoice.parse(self.cpu))
        for name, kind in (("kind", GuestKind), ("sync", Sync), ("on_write", OnWrite)):
            word = getattr(self, name)
            try:
                object.__setattr__(self, name, None if word is None else kind(word))
            except ValueError:
                known = ", ".join(str(one.value) for one in kind)
                raise SpecError(f"{name} {word!r} is not known", f"use one of {known}") from None

    @property
    def in_flash(self) -> bool:
        """Whether the firmware is in flash units."""
        return self.code is not None

    @property
    def is_direct(self) -> bool:
        """Whether a kernel is started without firmware."""
        return self.code is None and self.bios is None and self.kernel is not None

    def allows_coalesced_commands(self, unit: int) -> bool:
        """Whether a host may keep commands for flash ``unit`` back for a while (docs/design/kvm.md).

        Not of unit 0, which the guest executes, nor where each change is to be on the disk or a violation to end the
        run, nor of encrypted guests, with which nobody has seen it.
        """

        at_once = self.sync is Sync.ALWAYS or self.on_write not in (None, OnWrite.DROP)
        return unit > 0 and not at_once and not self.kind.is_confidential
