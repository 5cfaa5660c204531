"""What one monitor asked of the modelled KVM, and what became of it, as plain data (docs/guide/kvm.md)."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.ioctls import Ioctl
from casemate.host.clock import NANOSECONDS
from casemate.userkvm.call_log import call_name
from casemate.userkvm.kernel import Kernel
from casemate.userkvm.library import Count
from casemate.userkvm.system import System
from casemate.userkvm.vm import Vm

if TYPE_CHECKING:
    from casemate.userkvm.trace import Tracer


class Summary:
    """Collects for one process; with a ``tracer`` also the steps of each VM."""

    def __init__(self, kernel: Kernel, system: System, tracer: Tracer | None = None) -> None:
        self._tracer = tracer
        self._kernel = kernel
        self._system = system
        self._started = monotonic_ns()
        self.calls: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self._gone: list[dict[str, Any]] = []

    def keep(self, vm: Vm) -> None:
        """A VM is about to go."""
        self._gone.append(self._vm(vm))
        self.calls.update(_answered_by_library(vm))

    def to_json(self) -> dict[str, Any]:
        """Everything as of now."""
        asked = self._kernel.capabilities.asked
        return {
            "host": "modelled",
            "era": self._kernel.era.name,
            "pid": os.getpid(),
            "program": Path("/proc/self/exe").resolve().name,
            "python": sys.version.split()[0],
            "seconds": round((monotonic_ns() - self._started) / NANOSECONDS, 3),
            "vms": self._gone + [self._vm(vm) for vm in list(self._system.vms.values())],
            "capabilities": [
                {"asked_of": who, "capability": _capability(number), "answer": value}
                for (who, number), value in sorted(asked.items())
            ],
            "ioctls": dict(self._calls().most_common()),
            "unknown_ioctls": dict(self.unknown.most_common()),
            "injected_faults": dict(self._kernel.faults.injected),
            "messages": self._kernel.said,
        }

    def _calls(self) -> Counter[str]:
        calls = self.calls.copy()
        for vm in list(self._system.vms.values()):
            calls.update(_answered_by_library(vm))
        return calls

    def _vm(self, vm: Vm) -> dict[str, Any]:
        return {
            "type": vm.vm_type.kernel_name,
            "guest": str(vm.kind),
            "irqchip": vm.chips is not None,
            "digest": vm.digest,
            "slots": [
                {
                    "slot": slot.number,
                    "start": slot.range.start,
                    "size": slot.range.size,
                    "readonly": slot.readonly,
                    "mapping_writable": self._kernel.is_writable(slot),
                }
                for slot in vm.slots.values()
            ],
            "protection": vm.protections,
            "violations": [text for vcpu in vm.vcpus.values() for text in vcpu.faults],
            "conversions": dict(vm.conversions),
            "steps": self._steps(vm),
            "exits": self._exits(vm),
        }

    def _steps(self, vm: Vm) -> list[dict[str, Any]] | None:
        if self._tracer is None:
            return None
        trace = self._tracer.traces.get(vm.number)
        return [step.to_json() for step in trace.steps] if trace else []

    def _exits(self, vm: Vm) -> dict[str, int]:
        names = {
            "KVM_RUN": Count.RUNS,
            "KVM_EXIT_IO": Count.IO,
            "KVM_EXIT_MMIO": Count.MMIO,
            "KVM_EXIT_INTR": Count.INTERRUPTED,
            "immediate_exit": Count.IMMEDIATE,
            "other": Count.OTHER,
            "served_inside": Count.INSIDE,
        }
        return {
            name: sum(vcpu.record.count(place) for vcpu in vm.vcpus.values())
            for name, place in names.items()
            if vm.vcpus
        }


def _answered_by_library(vm: Vm) -> dict[str, int]:
    names = call_name(Ioctl.IRQ_LINE), call_name(Ioctl.IRQ_LINE_STATUS)
    return {name: count for name, count in zip(names, vm.inside.lowered, strict=True) if count}


def _capability(number: int) -> str:
    return Capability(number).kernel_name if number in set(Capability) else f"{number}"
