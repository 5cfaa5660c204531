"""The secure processor as a launch sees it: KVM's SEV commands of one VM (Linux x86/amd-memory-encryption.rst)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev.commands import GuestState
from casemate.address import Hva

CERTIFICATE_SIZE = 2084
"""Bytes of a certificate of the platform (AMD 55766 SEV API 0.24, table 109)."""


class SevSetup(NamedTuple):
    """How a VM is set up for SEV before its first vCPU.

    The default type means KVM_SEV_INIT or KVM_SEV_ES_INIT, any other KVM_SEV_INIT2, which alone takes features.
    """

    vm_type: VmType = VmType.DEFAULT
    vmsa_features: int = 0


class TransportKeys(NamedTuple):
    """What guest owner and firmware agreed on, 16 bytes each: ``tek`` encrypts secrets, ``tik`` authenticates."""

    tek: bytes
    tik: bytes


class LaunchSession(NamedTuple):
    """What a guest owner hands to LAUNCH_START: an own Diffie-Hellman certificate (2084 bytes), and the session (128).

    Only the platform against whose PDH it was made can unwrap the keys in it.
    """

    certificate: bytes
    blob: bytes


class PlatformCertificates(NamedTuple):
    """What a platform exports: the PDH certificate; behind it PEK, OCA and CEK, then AMD's ASK and ARK or nothing."""

    pdh: bytes
    chain: bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> "PlatformCertificates":
        """Certificates one behind the other, the PDH first."""
        return cls(data[:CERTIFICATE_SIZE], data[CERTIFICATE_SIZE:])

    def to_bytes(self) -> bytes:
        """One behind the other."""
        return self.pdh + self.chain


class VcpuReset(NamedTuple):
    """Where one vCPU starts (CS base and IP in one), and its CPUID signature (EDX at reset)."""

    address: int
    signature: int


class LaunchMeasurement(NamedTuple):
    """The answer to LAUNCH_MEASURE: an HMAC of 32 bytes and the nonce of 16 bytes that went into it."""

    mac: bytes
    nonce: bytes


class SecureProcessor(Protocol):
    """The launch of one guest.

    Raises FirmwareStatusError where the firmware refuses, HostError where the kernel does before it asks.
    """

    @property
    def version(self) -> tuple[int, int, int]:
        """The firmware's API major, API minor and build."""

    @property
    def state(self) -> GuestState:
        """How far the launch is."""

    @property
    def pdh(self) -> bytes:
        """The certificate against which a session for this platform is made."""

    def launch_start(self, policy: int, session: LaunchSession | None) -> None:
        """Create the guest's key. Without a session nobody can check what the firmware measures."""

    def register_region(self, hva: Hva, size: int) -> None:
        """Pin memory that the guest will use encrypted (KVM_MEMORY_ENCRYPT_REG_REGION)."""

    def launch_update_data(self, hva: Hva, size: int) -> None:
        """Measure and encrypt memory in place; pinned for writing meanwhile, so the mapping must be writable."""

    def launch_update_vmsa(self, vcpus: Sequence[VcpuReset]) -> None:
        """Bring the vCPUs into reset state, measure and encrypt their registers, in their order."""

    def launch_measure(self) -> LaunchMeasurement:
        """Close the digest."""

    def launch_secret(self, header: bytes, hva: Hva, data: bytes) -> None:
        """Check a secret packet and put its contents, encrypted for the guest, at ``hva``; pinned as for an update."""

    def launch_finish(self) -> None:
        """The guest may run; no launch command is taken any more."""
