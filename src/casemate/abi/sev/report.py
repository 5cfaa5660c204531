"""The attestation report that an SNP guest is given (AMD 56860 SEV-SNP firmware ABI, 7.3)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint32, c_uint64
from typing import NamedTuple

from casemate.abi.layout import Struct
from casemate.abi.sev.id_block import EcdsaSignature

OLDEST_VERSION, NEWEST_VERSION = 2, 5
"""Versions whose fields below lie where they lie here; 3 brought the CPUID, 5 the mitigation vectors."""
CPUID_VERSION, MITIGATION_VERSION = 3, 5
CHIP_ID_SIZE, SHORT_CHIP_ID_SIZE = 64, 8
"""Bytes of a processor's ID; from family 1Ah on only the first 8 of the field are used."""
REPORT_DATA_SIZE = 64
"""Bytes that the guest may put into its report."""
SIGNED_SIZE = 0x2A0
"""Bytes that the signature covers."""
AUTHOR_KEY_EN, MASK_CHIP_KEY = 1 << 0, 1 << 1
"""Bits of ``flags``."""
OLD_FAMILY, NEW_FAMILY = 0x19, 0x1A
"""CPU families with either layout of TCB_VERSION: Milan and Genoa, and Turin."""
_NO_KEY = 7


class SigningKey(NamedTuple):
    """What signed a report, out of ``flags`` bits 2 to 4."""

    number: int

    @property
    def name(self) -> str:
        """As the manual calls it."""
        return {0: "VCEK", 1: "VLEK", _NO_KEY: "none"}.get(self.number, f"key {self.number}")


class Generation(NamedTuple):
    """Processors with a root key of their own: CPU ``family`` and ``models`` (CPUID Fn0000_0001_EAX)."""

    name: str
    """What AMD's key service calls them."""
    family: int
    models: tuple[range, ...]


GENERATIONS = (
    Generation("Milan", 0x19, (range(0x10),)),
    Generation("Genoa", 0x19, (range(0x10, 0x20), range(0xA0, 0xB0))),
    Generation("Turin", 0x1A, (range(0x20),)),
)
"""Bergamo and Siena, models A0h on, have Genoa's keys."""


class Tcb(NamedTuple):
    """Versions of what a platform is trusted with, from TCB_VERSION; ``fmc`` is there from family 1Ah on."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0

    @classmethod
    def parse(cls, value: int, family: int) -> Tcb:
        """Out of the 64 bits, whose layout depends on the CPU's family (0: a report that does not say)."""
        data = value.to_bytes(8, "little")
        if family >= NEW_FAMILY:
            return cls(data[1], data[2], data[3], data[7], data[0])
        return cls(data[0], data[1], data[6], data[7])

    def pack(self, family: int = OLD_FAMILY) -> int:
        """The 64 bits as processors of the family have them."""
        if family >= NEW_FAMILY:
            data = (self.fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode)
            return int.from_bytes(bytes(data), "little")
        return self.bootloader | self.tee << 8 | self.snp << 48 | self.microcode << 56

    def meets(self, floor: Tcb) -> bool:
        """Whether no part is older than that of ``floor``."""
        return all(have >= least for have, least in zip(self, floor, strict=True))

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value}" for name, value in self._asdict().items() if value or name != "fmc"
        )


class AttestationReport(Struct):
    """ATTESTATION_REPORT; ``signature`` covers what is before it."""

    SIZE = 0x4A0
    SOURCE = "AMD 56860, table 23"
    _fields_ = (
        ("version", c_uint32),
        ("guest_svn", c_uint32),
        ("policy", c_uint64),
        ("family_id", c_uint8 * 16),
        ("image_id", c_uint8 * 16),
        ("vmpl", c_uint32),
        ("signature_algo", c_uint32),
        ("current_tcb", c_uint64),
        ("platform_info", c_uint64),
        ("flags", c_uint32),
        ("reserved_0x4c", c_uint32),
        ("report_data", c_uint8 * REPORT_DATA_SIZE),
        ("measurement", c_uint8 * 48),
        ("host_data", c_uint8 * 32),
        ("id_key_digest", c_uint8 * 48),
        ("author_key_digest", c_uint8 * 48),
        ("report_id", c_uint8 * 32),
        ("report_id_ma", c_uint8 * 32),
        ("reported_tcb", c_uint64),
        ("cpuid_family", c_uint8),
        ("cpuid_model", c_uint8),
        ("cpuid_stepping", c_uint8),
        ("reserved_0x18b", c_uint8 * 21),
        ("chip_id", c_uint8 * 64),
        ("committed_tcb", c_uint64),
        ("current_build", c_uint8),
        ("current_minor", c_uint8),
        ("current_major", c_uint8),
        ("reserved_0x1eb", c_uint8),
        ("committed_build", c_uint8),
        ("committed_minor", c_uint8),
        ("committed_major", c_uint8),
        ("reserved_0x1ef", c_uint8),
        ("launch_tcb", c_uint64),
        ("launch_mitigations", c_uint64),
        ("current_mitigations", c_uint64),
        ("reserved_0x208", c_uint8 * 152),
        ("signature", EcdsaSignature),
    )

    @property
    def signing_key(self) -> SigningKey:
        """What signed it."""
        return SigningKey(self.flags >> 2 & 7)

    @property
    def family(self) -> int:
        """The CPU's family, 0 in reports of version 2, which do not say."""
        return self.cpuid_family if self.version >= CPUID_VERSION else 0

    @property
    def generation(self) -> Generation | None:
        """The processors that this one is of; None if the report does not say, or they are not known here."""
        model = self.cpuid_model
        return next(
            (
                g
                for g in GENERATIONS
                if g.family == self.family and any(model in models for models in g.models)
            ),
            None,
        )

    @property
    def has_masked_chip_id(self) -> bool:
        """Whether the host has its firmware leave the chip's ID out (SNP_CONFIG, MASK_CHIP_ID)."""
        return not any(self.chip_id)


class VcekExtension(NamedTuple):
    """An extension of AMD's certificates for VCEKs (AMD 57230 VCEK certificate specification)."""

    oid: str
    part: str
    """The field of ``Tcb`` that it states, empty for what is no version."""


VCEK_TCB = (
    VcekExtension("1.3.6.1.4.1.3704.1.3.1", "bootloader"),
    VcekExtension("1.3.6.1.4.1.3704.1.3.2", "tee"),
    VcekExtension("1.3.6.1.4.1.3704.1.3.3", "snp"),
    VcekExtension("1.3.6.1.4.1.3704.1.3.8", "microcode"),
)
VCEK_FMC = VcekExtension("1.3.6.1.4.1.3704.1.3.9", "fmc")
VCEK_CHIP_ID = VcekExtension("1.3.6.1.4.1.3704.1.4", "")
VCEK_PRODUCT_NAME = VcekExtension("1.3.6.1.4.1.3704.1.2", "")
VLEK_CSP_ID = VcekExtension("1.3.6.1.4.1.3704.1.5", "")
"""The cloud that the key was loaded by."""
