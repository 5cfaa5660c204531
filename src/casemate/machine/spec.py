"""What machine to build: a frozen description, checked before anything is opened (docs/design/machine.md)."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

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
_Member = TypeVar("_Member", bound=Enum)


class MachineSpec:
    """One guest. Firmware is ``code`` with ``variables`` (or without) in flash, or ``bios``; sizes in bytes.

    With neither of them ``kernel`` is started without firmware. Specs are equal if all they say is, and never change:
    ``replace`` makes others. Raises SpecError for what no machine can be.
    """

    code: Path | None
    variables: Path | None
    bios: Path | None
    machine: BoardName
    memory: int
    vcpus: int
    test_device: bool
    """QEMU's pc-testdev, and its isa-debug-exit, whose value decides the exit code."""
    cpu: CpuChoice | None
    """The modelled processor, in QEMU's spelling where it is given as text; None is a usual one."""
    sync: Sync
    """When changed variables go to the disk."""
    kind: GuestKind
    protection: Requested
    on_write: OnWrite | None
    sev: SevSetup | None
    """How the VM of a SEV or SEV-ES guest is set up."""
    isa_bios: bool
    """Show the firmware's last 128 KiB below 1 MiB, too; a second slot over the same memory."""
    kernel: Path | None
    """A Linux kernel to start, with ``initrd`` and the command line ``append``: by the firmware, or without any."""
    initrd: Path | None
    append: str
    linux: DirectBoot | None
    """The kernel as it is laid out in memory, where a launch decided on that; only for a kernel without firmware."""
    fw_cfg: tuple[tuple[str, bytes], ...]
    """Files for the guest, by name."""

    # A plain class, for making a data class takes a tenth of a short boot (docs/design/machine.md).
    def __init__(
        self,
        code: Path | str | None = None,
        variables: Path | str | None = None,
        bios: Path | str | None = None,
        machine: BoardName = "q35",
        memory: int = 256 * MIB,
        vcpus: int = 1,
        test_device: bool = False,
        cpu: CpuChoice | str | None = None,
        sync: Sync | str = Sync.EXIT,
        kind: GuestKind | str = GuestKind.PLAIN,
        protection: Requested = "auto",
        on_write: OnWrite | str | None = None,
        sev: SevSetup | None = None,
        isa_bios: bool = True,
        kernel: Path | str | None = None,
        initrd: Path | str | None = None,
        append: str = "",
        linux: DirectBoot | None = None,
        fw_cfg: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        vars(self).update(
            code=_path(code),
            variables=_path(variables),
            bios=_path(bios),
            machine=machine,
            memory=memory,
            vcpus=vcpus,
            test_device=test_device,
            cpu=_cpu(cpu),
            sync=_member("sync", sync, Sync),
            kind=_member("kind", kind, GuestKind),
            protection=protection,
            on_write=None if on_write is None else _member("on_write", on_write, OnWrite),
            sev=sev,
            isa_bios=isa_bios,
            kernel=_path(kernel),
            initrd=_path(initrd),
            append=append,
            linux=linux,
            fw_cfg=fw_cfg,
        )
        self._validate()

    def replace(self, **changes: Any) -> MachineSpec:
        """Another spec, with some fields changed; also for ``copy.replace``. Raises SpecError as the class does."""
        return MachineSpec(**(vars(self) | changes))

    __replace__ = replace

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a MachineSpec does not change: use replace({name}=...)")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a MachineSpec does not change, so {name} stays")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MachineSpec) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in vars(self).items() if name != "linux")
        return f"MachineSpec({', '.join(shown)})"

    def _validate(self) -> None:
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


def _path(path: Path | str | None) -> Path | None:
    return Path(path) if isinstance(path, str) else path


def _cpu(cpu: CpuChoice | str | None) -> CpuChoice | None:
    if not isinstance(cpu, str):
        return cpu
    from casemate.abi.x86.cpu_models import CpuChoice

    return CpuChoice.parse(cpu)


def _member(name: str, word: object, kind: type[_Member]) -> _Member:
    try:
        return kind(word)
    except ValueError:
        known = ", ".join(str(one.value) for one in kind)
        raise SpecError(f"{name} {word!r} is not known", f"use one of {known}") from None
