"""Features of a SEV-ES or SNP guest's save area, by the names that users give them (QEMU qapi/qom.json, sev-guest)."""

from __future__ import annotations

from collections.abc import Iterable

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.features import SevFeatures
from casemate.errors import SpecError

_BY_NAME = {
    feature.name.lower().replace("_", "-"): feature
    for feature in SevFeatures
    if feature is not SevFeatures.SNP_ACTIVE and feature.name
}


def parse_features(names: Iterable[str], kind: GuestKind) -> int:
    """The bits of ``sev_features``. Raises SpecError for an unknown name, or a guest without save area."""
    bits = 0
    for name in names:
        if name not in _BY_NAME:
            raise SpecError(f"--feature {name!r} is not known", f"the features are {', '.join(_BY_NAME)}")
        if kind not in (GuestKind.SEV_ES, GuestKind.SNP):
            raise SpecError(
                f"--feature {name}: a {kind} guest has no SEV-ES save area, which features belong to",
                "use --guest sev-es, or leave the feature out",
            )
        bits |= _BY_NAME[name]
    return bits


def feature_names(bits: int) -> list[str]:
    """The names of all known bits."""
    return [name for name, feature in _BY_NAME.items() if bits & feature]
