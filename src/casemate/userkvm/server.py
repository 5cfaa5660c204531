"""Answers the preloaded library: every ioctl comes here but KVM_RUN (docs/design/user-space-kvm.md).

The library starts Python when a monitor first opens /dev/kvm, and has it call ``start``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import threading
from errno import EBADF, EINVAL, EIO
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from casemate.abi.kvm.ioctls import Ioctl
from casemate.errors import FirmwareStatusError, HostError, UnsupportedError
from casemate.userkvm.call_log import CallLog, call_name
from casemate.userkvm.cpuid import ENCRYPTION_LEAF
from casemate.userkvm.faults import parse_fault
from casemate.userkvm.kernel import Kernel, tell_user
from casemate.userkvm.library import (
    AfterRunCallback,
    BeforeRunCallback,
    FallocateCallback,
    FinishCallback,
    IoctlCallback,
    Kind,
    LoopCallback,
    ProtectionCallback,
    ReleaseCallback,
    address_of,
    load,
)
from casemate.userkvm.options import OPTIONS, Options
from casemate.userkvm.summary import Summary
from casemate.userkvm.system import System
from casemate.userkvm.table import Descriptor, Refused
from casemate.userkvm.vm import Vm

if TYPE_CHECKING:
    from casemate.userkvm.trace import Tracer

_kept: list[Any] = []
"""Callbacks that the library has."""


class Server:
    """One process's KVM."""

    def __init__(self, options: Options) -> None:
        self.kernel = Kernel(
            options.era,
            has_sev=options.has_sev,
            faults=map(parse_fault, options.faults),
            platform=None if options.platform is None else Path(options.platform),
        )
        self._system = System(self.kernel)
        self._tracer = _tracer() if options.traces else None
        self.summary = Summary(self.kernel, self._system, self._tracer)
        self._sev: Descriptor | None = None
        self._log = None if options.log is None else CallLog(Path(options.log), tell_user)
        self.kernel.sees_all_calls |= self._log is not None or self._tracer is not None
        self._left: set[int] = set()
        """VMs whose own descriptor was closed."""
        self._socket = None if options.socket is None else _connect(options.socket)
        self._run_started = 0

    @property
    def watches_runs(self) -> bool:
        """Whether every KVM_RUN is logged or traced, or one is to fail."""
        return self._log is not None or self._tracer is not None or "KVM_RUN" in self.kernel.faults.calls

    # Called by the library, on any thread.

    def ioctl(self, kind: int, number: int, request: int, argument: int) -> int:
        """The result, or a negative errno."""
        name, began, value, why = call_name(request), monotonic_ns(), None, ""
        self.summary.calls[name] += 1
        fault = self.kernel.faults.next(name)
        try:
            if fault is not None:
                raise Refused(fault.errno, "as planned by --fault")
            result, value = self._target(kind, number).answer(request, argument)
        except Refused as refusal:
            result, why = -refusal.errno, refusal.why
            if why == "no such ioctl":
                self.summary.unknown[name] += 1
        except HostError as error:
            result, why = -error.errno, str(error)
            self.kernel.say(str(error))
        except OSError as error:
            result, why = -(error.errno or EIO), f"{name}: {error}"
        except (FirmwareStatusError, UnsupportedError) as error:
            result, why = -EIO if isinstance(error, FirmwareStatusError) else -EINVAL, str(error)
            self.kernel.say(str(error))
        except Exception as error:
            result, why = -EIO, f"internal error: {type(error).__name__}: {error}"
            self.kernel.say(f"{name}: {why}; please report it")
        if self._log is not None:
            shown = argument if value is None else value
            self._log.write(Kind(kind).name.lower(), request, shown, result, monotonic_ns() - began, why)
        if self._tracer is not None and kind == Kind.VM and number in self._system.vms:
            self._tracer.ioctl(self._system.vms[number], request, argument, value, result)
        return result

    def _target(self, kind: int, number: int) -> Descriptor:
        if kind == Kind.SYSTEM:
            return self._system
        if kind == Kind.SEV:
            if self._sev is None:
                from casemate.userkvm.sev_device import SevDevice  # loads cryptography

                self._sev = SevDevice(self.kernel, self._system)
            return self._sev
        found: Descriptor | None = (
            self._system.vms.get(number) if kind == Kind.VM else self._system.vcpu(number)
        )
        if found is None:
            raise Refused(EBADF, "it is closed")
        return found

    def loop(self, address: int) -> None:
        """A vCPU's first KVM_RUN."""
        vcpu = self._system.vcpu(address)
        assert vcpu is not None, "the library has its descriptor"
        vcpu.loop()

    def release(self, kind: int, number: int) -> None:
        """The last descriptor of something was closed. A VM lives as long as its vCPUs and its files do."""
        vm: Vm | None = None
        if kind == Kind.GUEST_MEMFD:
            vm = self._system.close_memfd(number)
        elif kind == Kind.VM:
            vm = self._system.vms.get(number)
            self._left.add(number)
        elif kind == Kind.VCPU:
            vm = self._close_vcpu(number)
        if vm is not None and vm.number in self._left and not vm.is_referenced:
            self.summary.keep(vm)
            self._system.release(vm)

    def _close_vcpu(self, address: int) -> Vm | None:
        vcpu = self._system.vcpu(address)
        if vcpu is None:
            return None
        vcpu.is_closed = True
        return self._system.vms[vcpu.vm.number]

    def protection_changed(self, address: int, size: int) -> None:
        """The monitor changed the protection of a mapping."""
        for vm in list(self._system.vms.values()):
            vm.mapping_changed(address, size)
            if self._tracer is not None:
                self._tracer.mapping_changed(vm, address, size)

    def fallocate(self, number: int, mode: int, offset: int, size: int) -> int:
        """On private memory; 0 or an errno."""
        try:
            self._system.allocate(number, mode, offset, size)
        except Refused as refusal:
            return refusal.errno
        return 0

    def before_run(self, address: int) -> int:
        """The errno that this KVM_RUN is to fail with, or 0."""
        self._run_started = monotonic_ns()
        vcpu = self._system.vcpu(address)
        if self._tracer is not None and vcpu is not None:
            self._tracer.run(self._system.vms[vcpu.vm.number])
        fault = self.kernel.faults.next("KVM_RUN")
        return 0 if fault is None else fault.errno

    def after_run(self, address: int, result: int) -> None:
        """Log it, and trace it."""
        vcpu = self._system.vcpu(address)
        if self._tracer is not None and vcpu is not None:
            self._tracer.ran(self._system.vms[vcpu.vm.number], result)
        if self._log is not None:
            reason = None if vcpu is None else vcpu.exit_reason
            self._log.write("vcpu", Ioctl.RUN, reason, result, monotonic_ns() - self._run_started, "")

    def finish(self) -> None:
        """The process exits."""
        self._send(is_last=True)

    # Summaries.

    def listen(self) -> None:
        """Answer ``casemate kvm``, which asks for a summary when it gets SIGUSR1."""
        assert self._socket is not None
        with contextlib.suppress(OSError):
            while self._socket.recv(1):
                self._send(is_last=False)

    def _send(self, *, is_last: bool) -> None:
        if self._socket is not None:
            text = json.dumps(self.summary.to_json() | {"last": is_last})
            with contextlib.suppress(OSError):
                self._socket.sendall(text.encode() + b"\n")

    def start_listening(self) -> None:
        """On a thread of its own."""
        if self._socket is not None:
            threading.Thread(target=self.listen, name="casemate-summary", daemon=True).start()


def _tracer() -> Tracer:
    from casemate.userkvm.trace import Tracer

    return Tracer()


def _connect(path: str) -> socket.socket | None:
    found = socket.socket(socket.AF_UNIX)
    try:
        found.connect(path)
    except OSError:  # casemate kvm is gone, its command lives on
        found.close()
        return None
    return found


def _show_encryption(library: Any) -> None:
    """Let QEMU find the C-bit of the modelled processor, and not that of the one that it runs on."""
    try:
        function = address_of(ctypes.CDLL(None).host_cpuid)
    except AttributeError:  # another monitor, or one that exports nothing
        return
    library.kvm_show_cpuid(ctypes.c_void_p(function), (ctypes.c_uint32 * 4)(*ENCRYPTION_LEAF))


def start() -> None:
    """Make the process's KVM, and register it with the library. Raises CasemateError."""
    options = json.loads(os.environ[OPTIONS])
    server = Server(Options(**options))
    callbacks = (
        IoctlCallback(server.ioctl),
        LoopCallback(server.loop),
        ReleaseCallback(server.release),
        ProtectionCallback(server.protection_changed),
        FallocateCallback(server.fallocate),
        FinishCallback(server.finish),
    )
    library = load()
    if server.watches_runs:
        watchers = BeforeRunCallback(server.before_run), AfterRunCallback(server.after_run)
        _kept.extend(watchers)
        library.kvm_watch_runs(*(ctypes.c_void_p(address_of(each)) for each in watchers))
    _kept.extend((server, *callbacks))
    if options["has_sev"]:
        _show_encryption(library)
    server.start_listening()
    library.kvm_register(*(ctypes.c_void_p(address_of(each)) for each in callbacks))
