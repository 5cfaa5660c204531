"""Finds the assumption that reproduces an observed MRTD (docs/guide/explain.md)."""

from __future__ import annotations

from collections.abc import Iterator

from casemate.digest.explain import Explanation, Match, validate_size
from casemate.digest.hypotheses import Claim, Deviation, Option, firmware_options
from casemate.digest.mrtd import predict_mrtd
from casemate.digest.plan_tdx import AddOrder, plan_tdx
from casemate.errors import ImageError
from casemate.firmware.image import FirmwareImage

MRTD_SIZE = 48
"""Bytes."""

_ORDERS = {
    AddOrder.INTERLEAVED: "each page was measured as it was added (Linux 6.16, and most patches before it)",
    AddOrder.TWO_PASS: "the pages of a section were all added before they were measured (version 19 of the KVM"
    " patches, Ubuntu 24.04's QEMU 8.2.2)",
}


def explain_mrtd(claim: Claim, order: AddOrder, observed: bytes) -> Explanation:
    """All matches with the fewest deviations from the firmware and the order of pages that are claimed."""
    validate_size(observed, MRTD_SIZE)
    matches, tried = list[Match](), 0
    for firmware in firmware_options(claim):
        for other in _order_options(order):
            mrtd = _predict(firmware.value, claim.image.name, other.value)
            tried += mrtd is not None
            if mrtd == observed:
                matches.append(Match((*firmware.deviations, *other.deviations), None, mrtd))
    fewest = min((len(match.deviations) for match in matches), default=0)
    return Explanation(tuple(match for match in matches if len(match.deviations) == fewest), tried)


def _order_options(given: AddOrder) -> Iterator[Option[AddOrder]]:
    for order, cause in _ORDERS.items():
        remedy = f"--page-order {order}"
        deviations = () if order is given else (Deviation("page-order", cause, remedy),)
        yield Option(order, deviations)


def _predict(firmware: bytes, name: str, order: AddOrder) -> bytes | None:
    try:
        return predict_mrtd(plan_tdx(FirmwareImage.from_bytes(firmware, name), order))
    except ImageError:
        return None
