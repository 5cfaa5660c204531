"""Finds the assumption that reproduces an observed launch digest (docs/guide/explain.md).

Combinations of assumptions are tried by the number of deviations from what was given. What many have in common,
firmware and kernel hashes, is hashed once; each further vCPU costs one page, so that every count is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from casemate.abi.guest_kind import GuestKind
from casemate.digest.chains import Sha256Chain, SnpChain, State
from casemate.digest.hypotheses import (
    Claim,
    Deviation,
    Option,
    Registers,
    combine,
    firmware_options,
    register_options,
    table_options,
    vcpus_deviation,
)
from casemate.digest.measurement import PlatformVersion, predict_measurement
from casemate.digest.vmm_flavours import Launcher, launcher_page
from casemate.digest.vmsa_pages import RESET_VECTOR
from casemate.errors import SpecError

DIGEST_SIZES = {GuestKind.SEV: 32, GuestKind.SEV_ES: 32, GuestKind.SNP: 48}
"""Bytes of the launch digest."""
MOST_VCPUS = 512
DEPTH = 3
"""Deviations at once that are tried, the number of vCPUs not counted."""

_LOW_POLICIES = range(64)
_UNIT_SIZE = 16


class Owner(NamedTuple):
    """What a measurement is signed with."""

    tik: bytes
    nonce: bytes
    policy: int
    version: PlatformVersion

    def sign(self, digest: bytes) -> bytes:
        """The measurement of a launch with this digest."""
        return predict_measurement(digest, self.tik, self.nonce, self.policy, self.version)


class Unit(NamedTuple):
    """A piece of the search: the options of registers to try behind one firmware and table."""

    prefix: int
    registers: tuple[int, ...]


class Match(NamedTuple):
    """Assumptions that give the observed value; no deviations at all: it is as given."""

    deviations: tuple[Deviation, ...]
    vcpus: int | None
    digest: bytes


class Found(NamedTuple):
    """The outcome of one unit."""

    matches: tuple[Match, ...]
    tried: int


class Explanation(NamedTuple):
    """All matches with the fewest deviations, and how many launches were tried."""

    matches: tuple[Match, ...]
    tried: int

    @property
    def is_certain(self) -> bool:
        """Whether exactly one set of assumptions fits."""
        return len(self.matches) == 1


Apply = Callable[[Callable[[Unit], Found], list[Unit]], Iterable[Found]]


class Search:
    """All launches near a claim, compared with ``observed``: a digest, or with ``owner`` a measurement (32 bytes)."""

    def __init__(self, claim: Claim, observed: bytes, owner: Owner | None = None, depth: int = DEPTH) -> None:
        validate_size(observed, DIGEST_SIZES[claim.kind])
        self._claim = claim
        self._observed = observed
        self._owner = owner
        self._depth = depth
        self._prefixes = [
            Option((firmware, table), deviations)
            for (firmware, table), deviations in combine(
                firmware_options(claim), table_options(claim, depth), most=depth
            )
        ]
        self._registers = register_options(claim, depth)
        self._chain = SnpChain(claim.image.name) if claim.kind is GuestKind.SNP else Sha256Chain()
        self._states: dict[tuple[int, Launcher], State | None] = {}

    def explain(self, apply: Apply = map) -> Explanation:
        """Search until no launch with fewer deviations is left; ``apply`` may spread ``run`` over processes."""
        matches, tried = list(self._other_signatures()), 0
        for depth in range(self._depth + 1):
            if matches and depth > min(len(match.deviations) for match in matches):
                break
            for found in apply(self.run, self._units(depth)):
                matches += found.matches
                tried += found.tried
        fewest = min((len(match.deviations) for match in matches), default=0)
        return Explanation(tuple(match for match in matches if len(match.deviations) == fewest), tried)

    def run(self, unit: Unit) -> Found:
        """Try one piece."""
        prefix, matches, tried = self._prefixes[unit.prefix], list[Match](), 0
        for index in unit.registers:
            registers = self._registers[index]
            for vcpus, value in self._digests_of(unit.prefix, registers.value):
                tried += 1
                if self._fits(value):
                    count = () if vcpus is None else vcpus_deviation(vcpus, self._claim.vcpus)
                    deviations = (*prefix.deviations, *registers.deviations, *count)
                    matches.append(Match(deviations, vcpus, value))
        return Found(tuple(matches), tried)

    def _units(self, depth: int) -> list[Unit]:
        units = []
        for prefix, option in enumerate(self._prefixes):
            rest = depth - len(option.deviations)
            registers = [
                index for index, register in enumerate(self._registers) if len(register.deviations) == rest
            ]
            units += [
                Unit(prefix, tuple(registers[start : start + _UNIT_SIZE]))
                for start in range(0, len(registers), _UNIT_SIZE)
            ]
        return units

    def _prefix_state(self, prefix: int, launcher: Launcher) -> State | None:
        key = prefix, self._chain.launcher_that_matters(launcher)
        if key not in self._states:
            firmware, table = self._prefixes[prefix].value
            self._states[key] = self._chain.start(firmware or b"", table, launcher)
        return self._states[key]

    def _digests_of(self, prefix: int, registers: Registers | None) -> Iterator[tuple[int | None, bytes]]:
        """The digest of a SEV guest, or that of another for each number of vCPUs."""
        state = self._prefix_state(prefix, registers.launcher if registers else Launcher.INIT2)
        if state is None:
            return
        if registers is None:
            yield None, state.digest()
            return
        first = launcher_page(registers.launcher, RESET_VECTOR, registers.signature, registers.features)
        state = state.with_page(first)
        yield 1, state.digest()
        others = self._claim.image.sev_es_reset
        if others is None:
            return
        page = launcher_page(registers.launcher, others, registers.signature, registers.features)
        yield from enumerate(state.with_more(page, MOST_VCPUS - 1), 2)

    def _fits(self, digest: bytes) -> bool:
        return (self._owner.sign(digest) if self._owner else digest) == self._observed

    def _other_signatures(self) -> Iterator[Match]:
        """The launch as given, signed under another policy or by another firmware."""
        owner, given = self._owner, self._digest_as_given()
        if owner is None or given is None:
            return
        for signer, deviation in _other_owners(owner):
            if signer.sign(given) == self._observed:
                yield Match((deviation,), self._claim.vcpus, given)

    def _digest_as_given(self) -> bytes | None:
        registers = next((option for option in self._registers if not option.deviations), None)
        if registers is None:
            return None
        digests = self._digests_of(0, registers.value)
        return next((digest for vcpus, digest in digests if vcpus in (None, self._claim.vcpus)), None)


def validate_size(observed: bytes, size: int) -> None:
    """Check the length of an observed value. Raises SpecError if it is another."""
    if len(observed) != size:
        cause = f"the observed value has {len(observed)} bytes, not {size}"
        remedy = (
            "give the SHA-256 digest or the HMAC of a SEV or SEV-ES launch, the SHA-384 of an SNP or TDX one"
        )
        raise SpecError(cause, remedy)


def _other_owners(owner: Owner) -> Iterator[tuple[Owner, Deviation]]:
    for policy in _LOW_POLICIES:
        if policy != owner.policy:
            cause = f"the guest was launched under policy {policy:#x}, not {owner.policy:#x}"
            yield owner._replace(policy=policy), Deviation("policy", cause, f"--policy {policy:#x}")
    given = owner.version
    for number in range(256):
        for version, name, option in (
            (PlatformVersion(given.api_major, given.api_minor, number), "build", "--build-id"),
            (PlatformVersion(given.api_major, number, given.build), "API minor version", "--api-minor"),
        ):
            if version != given:
                cause = f"the SEV firmware that measured has {name} {number}"
                remedy = f"{option} {number}"
                yield owner._replace(version=version), Deviation("sev-firmware-version", cause, remedy)
