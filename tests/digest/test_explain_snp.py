"""SNP and TDX launches with one known deviation, SNP's made by sev-snp-measure, and their differences in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sevsnpmeasure", reason="sev-snp-measure is not installed (./dev test says why)")

from sevsnpmeasure import guest
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType

from casemate.abi.guest_kind import GuestKind
from casemate.digest.diff import Difference, Step, find_difference, parse_launch
from casemate.digest.explain import Explanation, Search
from casemate.digest.explain_tdx import explain_mrtd
from casemate.digest.hypotheses import Claim, DirectBoot
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.mrtd import predict_mrtd
from casemate.digest.plan import LaunchPlan
from casemate.digest.plan_json import plan_to_json
from casemate.digest.plan_sev import plan_sev
from casemate.digest.plan_snp import plan_snp
from casemate.digest.plan_tdx import AddOrder, plan_tdx
from casemate.digest.trace import trace_digest
from casemate.errors import SpecError
from casemate.firmware.image import FirmwareImage
from casemate.testing.images import ImageBuilder, variable_store

SECTIONS = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3), (0x80F000, 0x1000, 0x10))
MOVED = (*SECTIONS[:3], (0x810000, 0x1000, 0x10))
EPYC, MILAN, GENOA = 0x800F12, 0xA00F11, 0xA10F10
BOOT = DirectBoot(b"kernel" * 100, b"console=ttyS0", b"initrd" * 100)
HASHES = KernelHashes.of(BOOT.kernel, BOOT.initrd, BOOT.cmdline.decode())
TDX_SIZE = 128 << 10


def snp_image(sections: tuple[tuple[int, int, int], ...] = SECTIONS, hashes: int = 0x80FC00) -> FirmwareImage:
    built = ImageBuilder(volume=True).reset_block(0x80B004).hashes(hashes).sev_metadata(*sections)
    return FirmwareImage.from_bytes(built.build(), "x.fd")


def launch(
    folder: Path,
    *,
    vcpus: int = 4,
    signature: int = EPYC,
    features: int = 1,
    monitor: VMMType = VMMType.QEMU,
    boot: DirectBoot | None = None,
    firmware: bytes = b"",
) -> bytes:
    """The digest of such a launch, by sev-snp-measure."""
    ovmf = folder / "ovmf.fd"
    ovmf.write_bytes(firmware or snp_image().data)
    files: list[str | None] = [None, None, None]
    if boot is not None:
        for index, (name, data) in enumerate((("kernel", boot.kernel), ("initrd", boot.initrd))):
            (folder / name).write_bytes(data)
            files[index] = str(folder / name)
        files[2] = boot.cmdline.decode()
    digest = guest.calc_launch_digest(
        SevMode.SEV_SNP, vcpus, signature, str(ovmf), *files, features, "", monitor
    )
    assert isinstance(digest, bytes)
    return digest


def explain(
    observed: bytes, boot: DirectBoot | None = None, image: FirmwareImage | None = None
) -> Explanation:
    given = Claim(image or snp_image(), GuestKind.SNP, 4, EPYC, 1, boot=boot)
    return Search(given, observed, depth=2).explain()


def names(explanation: Explanation) -> list[str]:
    assert explanation.is_certain
    return [deviation.id for deviation in explanation.matches[0].deviations]


@pytest.mark.parametrize("boot", [None, BOOT])
def test_launch_as_given_has_no_deviations(tmp_path: Path, boot: DirectBoot | None) -> None:
    assert names(explain(launch(tmp_path, boot=boot), boot)) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"vcpus": 1}, "vcpus"),
        ({"vcpus": 512}, "vcpus"),
        ({"signature": MILAN}, "vcpu-signature"),
        ({"signature": GENOA}, "vcpu-signature"),
        ({"features": 0x21}, "guest-features"),
        ({"features": 0x201}, "guest-features"),
        ({"monitor": VMMType.ec2}, "launcher-ec2"),
        ({"monitor": VMMType.gce}, "launcher-gce"),
    ],
)
def test_deviation_is_named_alone(tmp_path: Path, change: dict[str, object], name: str) -> None:
    assert names(explain(launch(tmp_path, **change))) == [name]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("boot", "name"),
    [
        (None, "kernel-hashes-off"),
        (BOOT._replace(initrd=b""), "initrd-missing"),
        (BOOT._replace(cmdline=BOOT.cmdline + b" "), "cmdline-space"),
    ],
)
def test_deviation_of_the_kernel_is_named_alone(tmp_path: Path, boot: DirectBoot | None, name: str) -> None:
    assert names(explain(launch(tmp_path, boot=boot), BOOT)) == [name]


def test_two_deviations_are_found_together(tmp_path: Path) -> None:
    observed = launch(tmp_path, signature=MILAN, features=0x21, vcpus=7)
    assert names(explain(observed)) == ["vcpu-signature", "guest-features", "vcpus"]


def test_variables_in_front_are_found(tmp_path: Path) -> None:
    store = FirmwareImage.from_bytes(variable_store(0x20000), "vars")
    given = Claim(snp_image(), GuestKind.SNP, 4, EPYC, 1, variables=store)
    observed = launch(tmp_path, firmware=store.data + snp_image().data)
    assert names(Search(given, observed, depth=1).explain()) == ["firmware-combined"]


def test_nothing_is_claimed_of_other_firmware_or_another_kind(tmp_path: Path) -> None:
    assert explain(bytes(48)).matches == ()
    with pytest.raises(SpecError, match="32 bytes, not 48"):
        explain(bytes(32))


def tdx_image() -> FirmwareImage:
    base = (1 << 32) - TDX_SIZE
    sections = ((0x20000, TDX_SIZE, base, TDX_SIZE, 0, 1), (0, 0, 0x809000, 0x2000, 2, 0))
    built = ImageBuilder(TDX_SIZE, volume=True).tdx_metadata(sections)
    return FirmwareImage.from_bytes(variable_store(0x20000) + built.build(), "tdx.fd")


def test_page_order_of_a_td_is_told() -> None:
    claim = Claim(tdx_image(), GuestKind.TDX)
    for given, other in (
        (AddOrder.INTERLEAVED, AddOrder.TWO_PASS),
        (AddOrder.TWO_PASS, AddOrder.INTERLEAVED),
    ):
        assert names(explain_mrtd(claim, given, predict_mrtd(plan_tdx(tdx_image(), given)))) == []
        assert names(explain_mrtd(claim, given, predict_mrtd(plan_tdx(tdx_image(), other)))) == ["page-order"]
    assert explain_mrtd(claim, AddOrder.INTERLEAVED, bytes(48)).matches == ()


def snp(
    vcpus: int = 2,
    features: int = 1,
    hashes: KernelHashes | None = HASHES,
    image: FirmwareImage | None = None,
) -> LaunchPlan:
    return plan_snp(image or snp_image(), vcpus, EPYC, hashes, features)


def as_trace(plan: LaunchPlan) -> list[Step]:
    """The launch as ``casemate measure --json`` shows it."""
    steps = [
        {
            "what": step.what,
            "gpa": None if step.gpa is None else f"{step.gpa:#x}",
            "length": step.length,
            "sha256": step.sha256.hex(),
            "kind": step.kind,
        }
        for step in trace_digest(plan)
    ]
    return parse_launch(json.dumps({"steps": steps}))


def differences(first: LaunchPlan, second: LaunchPlan) -> tuple[Difference, Difference]:
    """As plans and as traces."""
    by_plan = find_difference(parse_launch(plan_to_json(first)), parse_launch(plan_to_json(second)))
    by_trace = find_difference(as_trace(first), as_trace(second))
    assert by_plan is not None
    assert by_trace is not None
    return by_plan, by_trace


TWO_PASS = plan_tdx(tdx_image(), AddOrder.TWO_PASS)


@pytest.mark.parametrize(
    ("first", "second", "position", "words"),
    [
        (snp(), snp(hashes=None), 4, "the first launch measures a kernel"),
        (snp(features=0x21), snp(), 5, "VMSA features differ: 0x21 (snp-active, debug-swap) and 0x1"),
        (snp(), snp(vcpus=3), 7, "the number of vCPUs differs: 2 and 3"),
        (snp(image=snp_image(MOVED, 0x810C00)), snp(), 0, "contents differ"),
        (snp(), plan_sev(snp_image(), HASHES), 0, "different kinds: SNP and SEV"),
        (plan_tdx(tdx_image()), TWO_PASS, 0, "page order: the first launch measures page by page"),
        (plan_tdx(tdx_image()), snp(), 0, "different types"),
    ],
)
def test_first_difference_is_named_with_its_cause(
    first: LaunchPlan, second: LaunchPlan, position: int, words: str
) -> None:
    by_plan, by_trace = differences(first, second)
    assert by_plan.position == by_trace.position == position
    assert words in by_plan.causes[0]
    assert words.split(":", maxsplit=1)[0] in by_trace.causes[0]


def test_same_sections_elsewhere_are_named_by_their_places() -> None:
    first, second = snp(hashes=None), snp(hashes=None, image=snp_image(MOVED, 0x810C00))
    steps = (first.steps[0], *second.steps[1:])
    by_plan, by_trace = differences(first, second._replace(steps=steps))
    assert by_plan.causes == by_trace.causes
    assert "0x1000 bytes at 0x80f000 and 0x1000 bytes at 0x810000" in by_plan.causes[0]


def test_kernel_hashes_in_a_page_are_compared_one_by_one() -> None:
    other = HASHES._replace(cmdline=KernelHashes.of(b"", b"", "quiet").cmdline)
    by_plan, _ = differences(snp(), snp(hashes=other))
    assert by_plan.causes == ("the command line differs",)


def test_same_launch_has_no_difference() -> None:
    assert find_difference(as_trace(snp()), parse_launch(plan_to_json(snp()))) is None


def test_every_deviation_has_a_paragraph_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "explain.md").read_text("utf-8")
    assert "### `page-order`" in guide
