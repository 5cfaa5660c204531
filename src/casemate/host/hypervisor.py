"""The seam between casemate and whatever executes a guest: hypervisor, VM, vCPU (Linux api.rst of KVM)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from casemate.abi.guest_kind import GuestKind
    from casemate.abi.kvm.vm_types import VmType
    from casemate.address import Gpa, GuestRange, Hva
    from casemate.host.capabilities import VmCapabilities
    from casemate.host.exits import VmExit
    from casemate.host.secure_processor import SecureProcessor, SevSetup
    from casemate.host.slots import MemorySlot
    from casemate.host.snp_processor import SnpProcessor


class FlashProgram(NamedTuple):
    """A program of a flash unit that the host answered by itself, and how many seconds ago it was."""

    offset: int
    size: int
    value: int
    ago: float


class VcpuFacts(NamedTuple):
    """What became of one vCPU."""

    activity: str
    """``runs``, ``halted``, ``stopped`` (with its interrupts off), ``waits`` for a start-up IPI, ``held`` (AP reset
    hold), ``destroyed`` (SNP)."""
    starts: int
    """How often it was started: by a reset, a start-up IPI, out of a hold, by AP creation."""
    vmgexits: dict[str, int]
    """By exit code, most frequent first."""


class IoBus(Protocol):
    """Where port and MMIO accesses of the guest go; called on the vCPU's thread, values are little-endian ints."""

    def read_port(self, port: int, size: int) -> int:
        """IN of ``size`` bytes (1, 2, 4)."""

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT of ``size`` bytes (1, 2, 4)."""

    def read_mmio(self, gpa: int, size: int) -> int:
        """Load of ``size`` bytes (1, 2, 4, 8) that no slot backs."""

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        """Write of ``size`` bytes that no slot backs, or that hit a read-only slot."""


class TimeStampCounter(Protocol):
    """The guest's."""

    def read_tsc(self) -> int:
        """What RDTSC says now."""

    def nanoseconds_per_tick(self) -> float:
        """How long a tick takes, as far as is known."""


class LocalApic(Protocol):
    """A local APIC that the modelled CPU and the devices share (``casemate.devices.lapic``)."""

    address: int
    """Of its record in memory."""
    tsc: TimeStampCounter | None
    """For the timer's deadline mode."""
    on_error: Callable[[BaseException], None] | None
    """Told what a device raised that the local APIC called for an access of the guest."""

    def keep_base_at(self, address: int) -> None:
        """IA32_APIC_BASE is there from now on."""

    @property
    def has_event(self) -> bool:
        """Whether an NMI or INIT waits, which IF does not hold back."""

    def take_init(self) -> bool:
        """Whether an INIT came for the CPU."""

    def take_startup(self) -> int | None:
        """The vector of a start-up IPI that came for the CPU."""

    @property
    def has_messages(self) -> bool:
        """Whether an NMI, INIT or start-up IPI waits."""

    def hear_messages(self, on_message: Callable[[], None]) -> None:
        """Call it whenever another CPU, or a device, has sent something."""


class InterruptController(Protocol):
    """Interrupt sources of a host without an in-kernel irqchip; times are guest nanoseconds."""

    on_deadline: Callable[[int], None]
    """Told, on the vCPU's thread, of times that ``deadline`` may say, as soon as they are known; the first vCPU's is
    told of all."""

    executing: int
    """Of the first vCPU's: which one's turn it is."""

    def of(self, number: int) -> "InterruptController":
        """The interrupt sources of vCPU ``number``; these are the first one's."""

    def deadline(self) -> int | None:
        """When the next timer interrupt is due, or None if no timer is armed."""

    def pending(self) -> bool:
        """Whether an interrupt waits for the CPU now; takes expired timers into account."""

    @property
    def lapic(self) -> LocalApic | None:
        """The local APIC whose registers the CPU accesses by itself, if it has one."""

    def acknowledge(self) -> int:
        """Hand the highest-priority vector to the CPU; call only after ``pending()`` said True."""


class VcpuRunner(Protocol):
    """What a thread of the VMM runs: a vCPU, or several that take turns."""

    @property
    def number(self) -> int:
        """Of the vCPU that runs, or ran last."""

    def run(self) -> "VmExit":
        """Execute the guest until something happens that the bus cannot handle."""

    def stop(self) -> None:
        """Make ``run`` return ``Interrupted`` soon; from any thread, a bus callback, or a signal handler."""

    def wake(self) -> None:
        """Look soon for interrupts and input that came, also in HLT; callable from any thread."""


class Vcpu(VcpuRunner, Protocol):
    """One virtual CPU. Everything but ``stop`` is called on the thread that runs it."""

    write_was_coalesced: bool
    """Whether the write that the bus takes now was coalesced: made earlier, by any vCPU, nobody knows where."""

    def reset(self) -> None:
        """Back to the x86 reset state: real mode at 0xFFFFFFF0; all but the first wait to be started."""

    def rip(self) -> int | None:
        """Instruction pointer, or None where the guest's state is protected."""

    def set_rip(self, rip: int) -> None:
        """Go on at another instruction; only where the guest's state is not protected."""

    def set_msr(self, index: int, value: int) -> None:
        """Give a model-specific register its first value, before the guest runs (KVM_SET_MSRS)."""

    def writing_instruction(self, gpa: int, size: int) -> int | None:
        """While the bus takes a write: the address of the instruction that made it, or None where nobody can know."""

    def code_at_rip(self, rip: int | None = None) -> tuple[bytes, int] | None:
        """The bytes of code (at most 15) at the instruction pointer, or another, and their width in bits (16, 32, 64).

        None where nobody can know.
        """


class Vm(Protocol):
    """One virtual machine, made for a ``GuestKind``."""

    @property
    def capabilities(self) -> "VmCapabilities":
        """What this VM answered."""

    @property
    def secure_processor(self) -> "SecureProcessor | None":
        """Who launches a SEV or SEV-ES guest, None for others."""

    @property
    def snp_processor(self) -> "SnpProcessor | None":
        """Who launches an SNP guest, None for others."""

    def add_slot(self, slot: "MemorySlot") -> None:
        """Back a guest range with host memory.

        Raises HostError: EEXIST on overlap, EINVAL on misalignment or a live number.
        """

    def delete_slot(self, number: int) -> None:
        """Remove a live slot; accesses to its range become MMIO. Raises HostError ENOENT if there is none."""

    def mapping_changed(self, hva: "Hva", size: int) -> None:
        """The mapping under ``[hva, hva + size)`` changed its protection (a kernel has an MMU notifier for it)."""

    def coalesce_mmio(self, where: "GuestRange", *, enabled: bool) -> None:
        """Whether writes to ``where``, which has no slot, may reach the bus late.

        They still do so in order, and before any other access that follows them and before ``run`` returns.
        """

    def answer_programs(self, where: "GuestRange", take: Callable[[list[FlashProgram]], None]) -> None:
        """The flash unit at ``where`` just made a program and is ready: the host may answer further ones by itself.

        It does so until anything else is asked of the unit or of another device, or ``run`` returns, and calls ``take``
        first. A host that does not sends them to the bus, as ever.
        """

    def deliver_coalesced(self) -> None:
        """Let coalesced writes reach the bus soon, though the guest makes no other access; from any thread."""

    def watch_writes(self, hva: "Hva", size: int, on_write: "Callable[[Hva], None]") -> None:
        """Call ``on_write`` with the page, on any thread, before a write of the guest to ``[hva, hva + size)`` is made.

        Only behind slots over this mapping; the write is tried when it returns, and must then fail. Raises
        UnsupportedError, with a remedy, where the host cannot.
        """

    def memory_written(self, gpa: "Gpa", size: int) -> None:
        """The VMM written into guest memory: code translated from it is stale (the CPU of a real host snoops this)."""

    def create_vcpu(
        self, bus: IoBus, interrupts: InterruptController | None, *, number: int = 0, count: int = 1
    ) -> Vcpu:
        """Add vCPU ``number`` of ``count`` in reset state, all but the first waiting to be started.

        ``interrupts``, of the first one, is None when the irqchip is in the kernel. Raises HostError for more than
        the VM takes.
        """

    def runners(self) -> Sequence[VcpuRunner]:
        """What the VMM's threads are to run, once all vCPUs are created: one for each vCPU, or one for all."""

    def vcpu_facts(self) -> list[VcpuFacts]:
        """What became of each vCPU, in the order of their numbers; empty where nobody knows."""

    def guest_requests(self) -> dict[str, dict[str, int]]:
        """What a SEV-ES guest asked of its host (``vmgexits``) and why (``vc``), counted; empty where nobody knows.

        ``pages`` of an encrypted guest are ``private`` (the host sees ciphertext) or ``shared`` (it sees the same), and
        ``page_states`` counts how an SNP guest and its host changed them.
        """

    def close(self) -> None:
        """Give everything back; no vCPU may be running."""


class Hypervisor(Protocol):
    """A host that can make VMs."""

    name: str
    """``kvm`` or ``model``."""
    era: str | None
    """The kernel release that is modelled, as ``linux-6.18``; None on a real host."""

    runs_snp: bool
    """Whether SNP guests run here, or are only launched."""

    @property
    def vm_types(self) -> "frozenset[VmType]":
        """What KVM_CREATE_VM takes (KVM_CAP_VM_TYPES)."""

    @property
    def vmsa_features(self) -> int:
        """``sev_features`` bits that KVM_SEV_INIT2 takes for a SEV-ES guest."""

    @property
    def legacy_vmsa_features(self) -> int:
        """``sev_features`` bits that KVM_SEV_ES_INIT sets by itself."""

    @property
    def c_bit(self) -> int | None:
        """Position of the encryption bit in page tables of guests of SEV, or None where there are none."""

    def expected_capabilities(
        self, kind: "GuestKind", sev: "SevSetup | None" = None
    ) -> "VmCapabilities | None":
        """What such a VM would answer, without making it; None where only the VM can say."""

    def create_vm(self, kind: "GuestKind", sev: "SevSetup | None" = None) -> Vm:
        """A VM for this kind of guest, ready for its launch.

        Raises UnsupportedError if this host has no such guests, HostError if KVM refuses ``sev``.
        """
