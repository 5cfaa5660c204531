"""Which ioctls a descriptor answers, and how their arguments come and go (Linux asm-generic/ioctl.h, api.rst)."""

import ctypes
import itertools
from collections.abc import Callable, Sequence
from errno import E2BIG, EFAULT
from typing import Any, ClassVar, NamedTuple

from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import CpuidEntry2, MsrEntry
from casemate.abi.layout import Struct
from casemate.userkvm.library import load

_READ = 2 << 30
_MAX_MSRS = 4096


class Refused(Exception):
    """An ioctl fails with this errno; ``why`` is for the log."""

    def __init__(self, errno: int, why: str = "") -> None:
        super().__init__(why)
        self.errno = errno
        self.why = why


def copy_in(address: int, size: int) -> bytes:
    """Bytes of the monitor's memory. Raises Refused EFAULT where it has none."""
    buffer = ctypes.create_string_buffer(size)
    if load().kvm_copy_in(buffer, address, size):
        raise _unreachable(address, size)
    return buffer.raw


def copy_out(address: int, data: bytes) -> None:
    """Write into the monitor's memory. Raises Refused EFAULT where that cannot be."""
    if load().kvm_copy_out(data, address, len(data)):
        raise _unreachable(address, len(data))


def _unreachable(address: int, size: int) -> Refused:
    return Refused(EFAULT, f"{size} bytes at {address:#x} cannot be reached")


def answer_msrs(address: int, take: Callable[[MsrEntry], bool], *, is_read: bool) -> int:
    """Show ``take`` the entries of ``kvm_msrs`` up to the first that it refuses; returns how many it took."""
    count = int.from_bytes(copy_in(address, 4), "little")
    if count >= _MAX_MSRS:
        raise Refused(E2BIG, f"{count} registers")
    data = copy_in(address + 8, MsrEntry.SIZE * count)
    places = range(0, len(data), MsrEntry.SIZE)
    entries = [MsrEntry.from_bytes(data[at : at + MsrEntry.SIZE]) for at in places]
    taken = sum(1 for _ in itertools.takewhile(take, entries))
    if is_read:
        copy_out(address + 8, b"".join(entry.to_bytes() for entry in entries))
    return taken


def copy_out_cpuid(address: int, entries: Sequence[CpuidEntry2]) -> None:
    """Fill in ``kvm_cpuid2``. Raises Refused E2BIG where there is no room."""
    if int.from_bytes(copy_in(address, 4), "little") < len(entries):
        raise Refused(E2BIG, f"{len(entries)} leaves")
    copy_out(address, len(entries).to_bytes(4, "little"))
    copy_out(address + 8, b"".join(entry.to_bytes() for entry in entries))


class Answer(NamedTuple):
    """One row: ``run`` gets the descriptor's object and the argument, a number or a struct that was copied in."""

    ioctl: Ioctl
    struct: type[Struct] | None
    run: Callable[[Any, Any], int | None]


def answers(ioctl: Ioctl, struct: type[Struct] | None = None) -> Callable[[Any], Any]:
    """Mark a method as the answer to an ioctl; without a ``struct`` it gets the argument as it is."""

    def mark(method: Any) -> Any:
        method.answers = (*getattr(method, "answers", ()), (ioctl, struct))
        return method

    return mark


class Descriptor:
    """Something that ioctls are made on. Subclasses have methods that are marked by ``answers``."""

    table: ClassVar[dict[int, Answer]] = {}
    unknown_errno = EFAULT

    def __init_subclass__(cls) -> None:
        found = {}
        for name in dir(cls):
            method = getattr(cls, name)
            for ioctl, struct in getattr(method, "answers", ()):
                found[int(ioctl)] = Answer(ioctl, struct, method)
        cls.table = found

    def answer(self, request: int, argument: int) -> tuple[int, Struct | None]:
        """The result and, where it has one, the struct as it is after. Raises Refused, HostError."""
        row = self.table.get(request)
        if row is None:
            raise Refused(self.unknown_errno, "no such ioctl")
        if row.struct is None:
            return row.run(self, argument) or 0, None
        # Always in: some numbers say that the kernel only writes, and it reads (KVM_MEMORY_ENCRYPT_REG_REGION).
        value = row.struct.from_bytes(copy_in(argument, row.struct.SIZE))
        result = row.run(self, value) or 0
        if request & _READ:
            copy_out(argument, value.to_bytes())
        return result, value
