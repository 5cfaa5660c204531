"""Launches with one known deviation, made by a recipe of the test's own and sev-snp-measure's save areas."""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sevsnpmeasure", reason="sev-snp-measure is not installed (./dev test says why)")

from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType
from sevsnpmeasure.vmsa import VMSA

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import find_era
from casemate.digest.digest_sev import predict_digest
from casemate.digest.explain import Explanation, Owner, Search
from casemate.digest.hypotheses import PROCESSORS, Claim, DirectBoot
from casemate.digest.measurement import PlatformVersion
from casemate.digest.plan_sev import plan_sev_es
from casemate.digest.sev_init import SevInit
from casemate.errors import SpecError
from casemate.firmware.image import FirmwareImage
from casemate.testing.images import ImageBuilder, variable_store

RESET = 0x80B004
CODE = ImageBuilder(volume=True).reset_block(RESET).hashes(0x80CC00).build()
STORE = variable_store(0x20000)
EPYC, MILAN = 0x800F12, 0xA00F11
CMDLINE = b"console=ttyS0 quiet"
INITRD = b"an initrd" * 500
TIK, NONCE = bytes(range(16)), bytes(range(16, 32))
TABLE, CMDLINE_ENTRY, INITRD_ENTRY, KERNEL_ENTRY = (
    uuid.UUID(text).bytes_le
    for text in (
        "9438d606-4f22-4cc9-b479-a793d411fd21",
        "97d02dd8-bd20-4c94-aa78-e7714d36ab2a",
        "44baf731-3a2f-4bd7-9af1-41e29169781d",
        "4de79437-abd2-427f-b835-d5b172d2045b",
    )
)


def bzimage() -> bytearray:
    """As much of a kernel as a loader looks at: boot protocol 2.15."""
    kernel = bytearray(b"\x90" * 4096)
    kernel[0x202:0x208] = b"HdrS" + struct.pack("<H", 0x20F)
    kernel[0x210], kernel[0x211] = 0, 0x01
    kernel[0x218:0x220] = bytes(8)
    struct.pack_into("<I", kernel, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<H", kernel, 0x236, 0x3F)
    return kernel


KERNEL = bytes(bzimage())


def loaded_kernel(initrd: int) -> bytes:
    """The kernel as QEMU changes it, with the initrd of ``INITRD`` at ``initrd`` unless that is 0."""
    kernel = bzimage()
    kernel[0x210], kernel[0x211] = 0xB0, 0x81
    struct.pack_into("<H", kernel, 0x224, 0xFE00)
    struct.pack_into("<I", kernel, 0x228, 0x20000)
    if initrd:
        struct.pack_into("<II", kernel, 0x218, initrd, len(INITRD))
    return bytes(kernel)


def table(kernel: bytes = KERNEL, initrd: bytes = INITRD, cmdline: bytes = CMDLINE + b"\0") -> bytes:
    """The table of kernel hashes by an independent recipe."""
    contents = ((CMDLINE_ENTRY, cmdline), (INITRD_ENTRY, initrd), (KERNEL_ENTRY, kernel))
    entries = b"".join(
        name + struct.pack("<H", 50) + hashlib.sha256(content).digest() for name, content in contents
    )
    return (TABLE + struct.pack("<H", 168) + entries).ljust(176, b"\0")


def launch(
    *,
    firmware: bytes = CODE,
    hashes: bytes = b"",
    vcpus: int = 4,
    signature: int = EPYC,
    features: int = 0,
    monitor: VMMType = VMMType.QEMU,
    legacy: bool = False,
    registers: bool = True,
) -> bytes:
    """The digest of such a launch."""
    digest = hashlib.sha256(firmware + hashes)
    if registers:
        for page in VMSA(SevMode.SEV_ES, RESET, signature, features, monitor).pages(vcpus):
            area = bytearray(page)
            if legacy:
                area[0x408:0x40C] = bytes(4)
                area[0x410:0x412] = bytes(2)
            digest.update(area)
    return digest.digest()


def measure(digest: bytes, policy: int, minor: int, build: int) -> bytes:
    """LAUNCH_MEASURE by an independent recipe."""
    message = bytes((4, 1, minor, build)) + struct.pack("<I", policy) + digest + NONCE
    return hmac.new(TIK, message, "sha256").digest()


def claim(**changes: Any) -> Claim:
    """Four EPYC vCPUs, firmware in a file of its own, no kernel."""
    image = FirmwareImage.from_bytes(CODE, "code")
    return Claim(image, GuestKind.SEV_ES, 4, EPYC)._replace(**changes)


def explain(given: Claim, observed: bytes, owner: Owner | None = None) -> Explanation:
    return Search(given, observed, owner, depth=2).explain()


BOOT = DirectBoot(KERNEL, CMDLINE, INITRD)
OWNER = Owner(TIK, NONCE, 0x5, PlatformVersion(1, 55, 21))
Mutation = tuple[str, Claim, bytes, Owner | None]


def register_mutations() -> Iterator[Mutation]:
    for vcpus in (1, 2, 3, 5, 8, 16, 64, 100, 256, 512):
        yield "vcpus", claim(), launch(vcpus=vcpus), None
    for signature in sorted(set(PROCESSORS.values()) - {EPYC}):
        yield "vcpu-signature", claim(), launch(signature=signature), None
    for features in (0x20, 0x200, 0x220, 0x1, 0x21, 0x8, 0x10):
        yield "guest-features", claim(), launch(features=features), None
    for boot, hashes in ((None, b""), (BOOT, table())):
        given = claim(boot=boot)
        yield "launcher-legacy", given, launch(legacy=True, hashes=hashes), None
        yield "launcher-ec2", given, launch(monitor=VMMType.ec2, hashes=hashes), None
        yield "launcher-gce", given, launch(monitor=VMMType.gce, hashes=hashes), None
        yield "guest-kind", given, launch(registers=False, hashes=hashes), None
        yield "launcher-init2", given._replace(init=SevInit.LEGACY), launch(hashes=hashes), None


def file_mutations() -> Iterator[Mutation]:
    store, both = (FirmwareImage.from_bytes(data, "file") for data in (STORE, STORE + CODE))
    for kind, registers in ((GuestKind.SEV_ES, True), (GuestKind.SEV, False)):
        given = claim(kind=kind)
        combined = launch(firmware=STORE + CODE, registers=registers)
        yield "firmware-combined", given._replace(variables=store), combined, None
        yield "firmware-code-alone", given._replace(image=both), launch(registers=registers), None
        given = given._replace(boot=BOOT)
        for name, hashes in (
            ("kernel-hashes-off", b""),
            ("initrd-missing", table(initrd=b"")),
            ("cmdline-no-nul", table(cmdline=CMDLINE)),
            ("cmdline-space", table(cmdline=CMDLINE + b" \0")),
            ("cmdline-newline", table(cmdline=CMDLINE + b"\n\0")),
            ("cmdline-newline", table(cmdline=CMDLINE + b"\n")),
            ("cmdline-missing", table(cmdline=b"\0")),
            ("kernel-header-patched", table(kernel=loaded_kernel((0x7FFD7FFF - len(INITRD)) & ~0xFFF))),
        ):
            yield name, given, launch(hashes=hashes, registers=registers), None
        spaced = given._replace(boot=BOOT._replace(cmdline=CMDLINE + b" \n"))
        yield "cmdline-stripped", spaced, launch(hashes=table(), registers=registers), None
        bare = given._replace(boot=DirectBoot(KERNEL))
        patched = table(loaded_kernel(0), b"", b"\0")
        yield "kernel-header-patched", bare, launch(hashes=patched, registers=registers), None


def owner_mutations() -> Iterator[Mutation]:
    digest = launch()
    for policy in (0x4, 0x7, 0x1):
        yield "policy", claim(), measure(digest, policy, 55, 21), OWNER
    yield "sev-firmware-version", claim(), measure(digest, 5, 55, 24), OWNER
    yield "sev-firmware-version", claim(), measure(digest, 5, 51, 21), OWNER
    yield "vcpu-signature", claim(), measure(launch(signature=MILAN), 5, 55, 21), OWNER


MUTATIONS = [*register_mutations(), *file_mutations(), *owner_mutations()]


def test_there_are_sixty_mutations_and_more() -> None:
    assert len(MUTATIONS) >= 60


@pytest.mark.parametrize("index", range(len(MUTATIONS)), ids=[mutation[0] for mutation in MUTATIONS])
def test_deviation_is_named_first_and_alone(index: int) -> None:
    name, given, observed, owner = MUTATIONS[index]
    explanation = explain(given, observed, owner)
    assert [deviation.id for deviation in explanation.matches[0].deviations] == [name]
    assert explanation.is_certain


@pytest.mark.parametrize("boot", [None, BOOT])
def test_launch_as_given_has_no_deviations(boot: DirectBoot | None) -> None:
    explanation = explain(claim(boot=boot), launch(hashes=table() if boot else b""))
    assert [match.deviations for match in explanation.matches] == [()]


def test_nothing_is_claimed_of_a_launch_of_other_firmware() -> None:
    explanation = explain(claim(boot=BOOT), launch(firmware=CODE[:-16] + bytes(16)))
    assert explanation.matches == ()
    assert explanation.tried > 100_000


def test_two_deviations_and_another_count_are_found_together() -> None:
    observed = launch(signature=MILAN, features=0x20, vcpus=7)
    names = [deviation.id for deviation in explain(claim(), observed).matches[0].deviations]
    assert names == ["vcpu-signature", "guest-features", "vcpus"]


def test_unknown_vcpus_are_found() -> None:
    (match,) = explain(claim(vcpus=None, signature=None), launch(vcpus=9, signature=MILAN)).matches
    assert match.vcpus == 9
    assert "0xa00f11" in match.deviations[0].cause


def test_same_bytes_by_two_names_are_one_explanation() -> None:
    given = claim(boot=BOOT._replace(cmdline=b"", initrd=b""))
    explanation = explain(given, launch(hashes=table(initrd=b"", cmdline=b"\0")))
    assert explanation.is_certain
    assert explanation.matches[0].deviations == ()


def test_plan_of_another_era_is_explained_by_the_fpu_state() -> None:
    image = FirmwareImage.from_bytes(CODE, "code")
    launches = {
        era: SevInit.INIT2 if find_era(era).init2_saves_fpu else SevInit.LEGACY
        for era in ("linux-6.1", "linux-6.18")
    }
    for given, other in (("linux-6.1", "linux-6.18"), ("linux-6.18", "linux-6.1")):
        observed = predict_digest(plan_sev_es(image, 4, EPYC, init=launches[other]))
        (match,) = explain(claim(init=launches[given]), observed).matches
        assert "FPU state" in match.deviations[0].cause


def test_sixteen_processors_and_eight_features_are_tried_with_512_vcpus() -> None:
    explanation = Search(claim(), bytes(32)).explain()
    assert len(set(PROCESSORS.values())) >= 16
    assert explanation.tried > 512 * 16 * 8


def test_image_without_reset_block_has_one_vcpu() -> None:
    image = FirmwareImage.from_bytes(ImageBuilder().build(), "plain")
    assert explain(claim(image=image), bytes(32)).tried < 1000


def test_digest_of_another_size_is_refused() -> None:
    with pytest.raises(SpecError, match="48 bytes"):
        Search(claim(), bytes(48))


def test_every_deviation_has_a_paragraph_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "explain.md").read_text("utf-8")
    source = Path(__file__).parents[2] / "src" / "casemate" / "digest"
    text = (source / "hypotheses.py").read_text("utf-8") + (source / "explain.py").read_text("utf-8")
    names = {mutation[0] for mutation in MUTATIONS}
    assert set(re.findall(r'Deviation\("([\w-]+)"', text)) <= names
    assert names <= set(re.findall(r"^### `([\w-]+)`", guide, re.MULTILINE))
