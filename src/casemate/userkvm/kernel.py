"""The modelled kernel of one process: its era, its VMs, and whom it tells (Linux virt/kvm/kvm_main.c)."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import find_era
from casemate.abi.kvm.vm_types import VmType
from casemate.files import write_file
from casemate.host import vma
from casemate.host.clock import GuestClock
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.slots import MemorySlot
from casemate.host.snp_processor import Certificates
from casemate.userkvm.capabilities import Capabilities
from casemate.userkvm.faults import Fault, FaultPlan
from casemate.userkvm.library import load

if TYPE_CHECKING:
    from casemate.host.model.sev.platform import ModelPlatform

_MOST_SAID = 20
_NO_MORE = "further messages are not shown"


class Kernel:
    """``era`` as ``linux-6.18``. Raises SpecError if there is none."""

    def __init__(
        self, era: str, *, has_sev: bool, faults: Iterable[Fault], platform: Path | None = None
    ) -> None:
        self.era = find_era(era)
        self.has_sev = has_sev
        self._platform_folder = platform
        self.clock = GuestClock()
        self.vm_types = self.era.vm_types if has_sev else self.era.vm_types - SEV_TYPES
        self.capabilities = Capabilities(self.era, self.vm_types)
        self.said: list[str] = []
        self.watches_code = not load().kvm_watch_code()
        """Whether code that a monitor rewrites is seen by its guest; else userfaultfd(2) is forbidden here."""
        self.faults = FaultPlan(faults)
        self.sees_all_calls = bool(self.faults.calls)
        """Every ioctl is answered here, the library answers none by itself: some are to fail, or all are logged."""
        self._numbers = itertools.count(1)

    @cached_property
    def platform(self) -> ModelPlatform:
        """The secure processor; there is one in the computer."""
        from casemate.host.model.sev.platform import ModelPlatform  # loads cryptography

        return ModelPlatform(self._platform_folder)

    @property
    def keeps_keys(self) -> bool:
        """Whether there is a folder for them."""
        return self._platform_folder is not None

    def keep_certificates(self, certificates: Certificates) -> None:
        """Those that verify the reports of the SNP guest that was launched. Raises HostError if the disk refuses."""
        assert self._platform_folder is not None
        for name, data in certificates._asdict().items():
            write_file(self._platform_folder / f"{name}.pem", data)

    def hypervisor(self, kind: GuestKind) -> ModelHypervisor:
        """Who makes VMs for such guests."""
        platform = self.platform if kind.is_signed_at_launch else None
        return ModelHypervisor(self.clock, era=self.era, platform=platform)

    def next_number(self) -> int:
        """Of a VM."""
        return next(self._numbers)

    def say(self, text: str) -> None:
        """One line for the user, on the monitor's standard error; a guest that never stops erring gets some."""
        if len(self.said) > _MOST_SAID:
            return
        line = text if len(self.said) < _MOST_SAID else _NO_MORE
        self.said.append(line)
        tell_user(line)

    def is_writable(self, slot: MemorySlot) -> bool:
        """Whether a slot's mapping takes writes now."""
        return vma.is_writable(slot.hva, slot.range.size)

    def tsc_khz(self) -> int:
        """Of the host's time-stamp counter; it never changes."""
        return int(load().kvm_tsc_khz())


def tell_user(text: str) -> None:
    """One line on the monitor's standard error; where that takes none the guest goes on."""
    with contextlib.suppress(OSError):
        print(f"casemate: {text}", file=sys.stderr, flush=True)


SEV_TYPES = frozenset({VmType.SEV, VmType.SEV_ES, VmType.SNP})
