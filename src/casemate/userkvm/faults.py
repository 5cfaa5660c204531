"""Faults on demand: the n-th call of an ioctl fails as it is told to (docs/guide/kvm.md)."""

import errno
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.sev.commands import SevCommand
from casemate.errors import SpecError

_FIRMWARE = "fw:"
_NAMES = {each.kernel_name for each in (*Ioctl, *SevCommand)}


class Fault(NamedTuple):
    """``call`` fails at its ``number``-th time, counted from 1, with ``errno``; ``firmware`` is a command's status."""

    call: str
    number: int
    errno: int
    firmware: int | None = None


def parse_fault(text: str) -> Fault:
    """``KVM_RUN:3=EFAULT`` or ``KVM_SEV_LAUNCH_START:1=fw:0x0b``. Raises SpecError."""
    call, _, rest = text.partition(":")
    number, _, result = rest.partition("=")
    remedy = "write CALL:N=ERRNO as KVM_CREATE_VCPU:1=ENOMEM, or KVM_SEV_...:N=fw:STATUS"
    if call not in _NAMES:
        raise SpecError(f"--fault {text!r}: there is no ioctl or launch command {call!r}", remedy)
    if not number.isdigit() or int(number) < 1:
        raise SpecError(f"--fault {text!r}: {number!r} is no count from 1 on", remedy)
    if result.startswith(_FIRMWARE):
        try:
            status = int(result.removeprefix(_FIRMWARE), 0)
        except ValueError:
            status = -1
        if not 0 < status < 0x10000 or not call.startswith("KVM_SEV_"):
            raise SpecError(f"--fault {text!r}: {result!r} is no status of a launch command", remedy)
        return Fault(call, int(number), errno.EIO, status)
    value = getattr(errno, result, None)
    if not isinstance(value, int) or not result.startswith("E"):
        raise SpecError(f"--fault {text!r}: {result!r} is no errno", remedy)
    return Fault(call, int(number), value)


class FaultPlan:
    """Counts calls, and says which are to fail."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._faults = {(fault.call, fault.number): fault for fault in faults}
        self._counts: Counter[str] = Counter()
        self.calls = {call for call, _ in self._faults}
        self.injected: Counter[str] = Counter()
        """Those that happened, as ``KVM_RUN:3``."""

    def next(self, call: str) -> Fault | None:
        """``call`` is being made: the fault that is planned for it."""
        if call not in self.calls:
            return None
        self._counts[call] += 1
        fault = self._faults.get((call, self._counts[call]))
        if fault is not None:
            self.injected[f"{call}:{fault.number}"] += 1
        return fault
