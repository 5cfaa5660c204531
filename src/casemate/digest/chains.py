"""How a launch digest grows, so that a search hashes what many launches have in common once (docs/guide/explain.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

from casemate.abi.sev.snp import SnpPageType
from casemate.digest.digest_snp import INITIAL, extend, extend_vmsa, hash_page
from casemate.digest.steps import SnpPages
from casemate.digest.steps_snp import firmware_step, section_steps
from casemate.digest.vmm_flavours import Launcher
from casemate.errors import ImageError
from casemate.firmware.image import FirmwareImage
from casemate.firmware.sev_metadata import SevSectionType


class State(Protocol):
    """A digest that can go on in more than one way."""

    def digest(self) -> bytes:
        """Its value if the launch ended here."""

    def with_page(self, page: bytes) -> State:
        """The one after a save area."""

    def with_more(self, page: bytes, most: int) -> Iterator[bytes]:
        """The values after one save area more, two, and so on, all with the same contents."""


class Sha256State:
    """Of a SEV or SEV-ES guest."""

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest

    def digest(self) -> bytes:
        """Its value if the launch ended here."""
        return self._digest.digest()

    def with_page(self, page: bytes) -> Sha256State:
        """The one after a save area."""
        digest = self._digest.copy()
        digest.update(page)
        return Sha256State(digest)

    def with_more(self, page: bytes, most: int) -> Iterator[bytes]:
        """The values after one save area more, two, and so on."""
        digest = self._digest.copy()
        for _ in range(most):
            digest.update(page)
            yield digest.digest()


class Sha256Chain:
    """Launches of SEV and SEV-ES guests."""

    def start(self, firmware: bytes, table: bytes | None, launcher: Launcher) -> Sha256State | None:
        """After firmware and table of kernel hashes."""
        return Sha256State(hashlib.sha256(firmware + (table or b"")))

    def launcher_that_matters(self, launcher: Launcher) -> Launcher:
        """Launchers differ in save areas alone."""
        return Launcher.INIT2


class SnpState:
    """Of an SNP guest."""

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def digest(self) -> bytes:
        """Its value if the launch ended here."""
        return self._digest

    def with_page(self, page: bytes) -> SnpState:
        """The one after a save area."""
        return SnpState(extend_vmsa(self._digest, hash_page(page)))

    def with_more(self, page: bytes, most: int) -> Iterator[bytes]:
        """The values after one save area more, two, and so on."""
        digest, contents = self._digest, hash_page(page)
        for _ in range(most):
            digest = extend_vmsa(digest, contents)
            yield digest


class SnpChain:
    """Launches of SNP guests; ``name`` is the firmware's, for errors."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._firmware: dict[bytes, bytes] = {}

    def start(self, firmware: bytes, table: bytes | None, launcher: Launcher) -> SnpState | None:
        """After firmware and sections; None if no SNP guest can be given this firmware."""
        image = FirmwareImage.from_bytes(firmware, self._name)
        try:
            steps = list(section_steps(image, table))
            known = self._firmware.get(firmware) or extend(INITIAL, firmware_step(image))
        except ImageError:
            return None
        self._firmware[firmware] = digest = known
        for step in _in_order(steps, launcher):
            digest = extend(digest, step)
        return SnpState(digest)

    def launcher_that_matters(self, launcher: Launcher) -> Launcher:
        """They treat sections differently."""
        return launcher


def _in_order(steps: list[SnpPages], launcher: Launcher) -> list[SnpPages]:
    if launcher is Launcher.EC2:  # the CPUID page comes last
        return sorted(steps, key=lambda step: step.page_type is SnpPageType.CPUID)
    if launcher is Launcher.GCE:
        return [
            step._replace(page_type=SnpPageType.UNMEASURED)
            if step.what == SevSectionType.SNP_SEC_MEM.name
            else step
            for step in steps
        ]
    return steps
