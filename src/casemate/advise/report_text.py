"""Every field of an attestation report in words (AMD 56860 SEV-SNP firmware ABI, table 23)."""

from __future__ import annotations

from casemate.abi.sev.report import (
    AUTHOR_KEY_EN,
    CPUID_VERSION,
    MASK_CHIP_KEY,
    MITIGATION_VERSION,
    AttestationReport,
    Tcb,
)
from casemate.abi.sev.snp_policy import policy_words
from casemate.advise.attestation import family_of

PLATFORM_FLAGS = ("smt", "tsme", "ecc", "rapl-dis", "ciphertext-hiding-dram", "alias-check-complete")
"""Bits of PLATFORM_INFO, from 0 on."""


def report_fields(report: AttestationReport) -> list[tuple[str, str]]:
    """Name and value of each field that a report of its version has."""
    fields = [
        ("version", str(report.version)),
        ("guest SVN", str(report.guest_svn)),
        ("policy", f"{report.policy:#x}: allows {policy_words(report.policy)}"),
        ("family ID", bytes(report.family_id).hex()),
        ("image ID", bytes(report.image_id).hex()),
        ("VMPL", str(report.vmpl)),
        ("signature algorithm", str(report.signature_algo)),
        ("platform info", _platform_info(report.platform_info)),
        ("signing key", report.signing_key.name),
        ("author key enabled", _yes(report.flags & AUTHOR_KEY_EN)),
        ("chip key masked", _yes(report.flags & MASK_CHIP_KEY)),
        ("report data", bytes(report.report_data).hex()),
        ("measurement", bytes(report.measurement).hex()),
        ("host data", bytes(report.host_data).hex()),
        ("ID key digest", bytes(report.id_key_digest).hex()),
        ("author key digest", bytes(report.author_key_digest).hex()),
        ("report ID", bytes(report.report_id).hex()),
        ("report ID, migration", bytes(report.report_id_ma).hex()),
    ]
    if report.version >= CPUID_VERSION:
        fields.append(("processor", _processor(report)))
    chip = "masked (MASK_CHIP_ID)" if report.has_masked_chip_id else bytes(report.chip_id).hex()
    fields.append(("chip ID", chip))
    family = family_of(report)
    for name, value in (
        ("current TCB", report.current_tcb),
        ("reported TCB", report.reported_tcb),
        ("committed TCB", report.committed_tcb),
        ("launch TCB", report.launch_tcb),
    ):
        fields.append((name, f"{value:#018x}: {Tcb.parse(value, family)}"))
    current = (report.current_major, report.current_minor, report.current_build)
    committed = (report.committed_major, report.committed_minor, report.committed_build)
    fields += [("current firmware", _firmware(current)), ("committed firmware", _firmware(committed))]
    if report.version >= MITIGATION_VERSION:
        fields.append(("mitigations at launch", f"{report.launch_mitigations:#x}"))
        fields.append(("mitigations now", f"{report.current_mitigations:#x}"))
    r, s = report.signature.numbers
    return [*fields, ("signature r", f"{r:096x}"), ("signature s", f"{s:096x}")]


def _processor(report: AttestationReport) -> str:
    generation = report.generation
    name = generation.name if generation else "not known here"
    return (
        f"{name}: family {report.cpuid_family:#x}, model {report.cpuid_model:#x}, "
        f"stepping {report.cpuid_stepping:#x}"
    )


def _platform_info(value: int) -> str:
    words = [name for bit, name in enumerate(PLATFORM_FLAGS) if value >> bit & 1]
    return f"{value:#x}: {', '.join(words) or 'nothing'}"


def _firmware(version: tuple[int, int, int]) -> str:
    major, minor, build = version
    return f"{major}.{minor}, build {build}"


def _yes(bit: int) -> str:
    return "yes" if bit else "no"
