"""What a process gives up before it runs a guest (Linux landlock(7), seccomp(2), PR_SET_NO_NEW_PRIVS).

Everything that the run needs is open by then. From here on the process may use what it has: read, write, wait, map
memory. It may open no path, make no socket, start no program and signal nobody else. The filter of system calls is in
force for all threads, Landlock for the caller and the threads that it starts, which those of the vCPUs are.
"""

import ctypes
import errno
import os
import struct
from typing import Any, NamedTuple

from casemate.errors import HostError

_SECCOMP, _LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 317, 444, 446
"""Numbers of system calls (x86-64); Landlock's third one, 445, adds exceptions, of which there are none."""
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1
_LANDLOCK_VERSION = 1
_ARCH_X86_64 = 0xC000003E
_CLONE, _CLONE3, _TGKILL, _IOCTL = 56, 435, 234, 16
_CLONE_THREAD = 0x10000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
"""Requests that type into the user's terminal."""

# Numbers of Linux's arch/x86/entry/syscalls/syscall_64.tbl.
_ALLOWED = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18,
    "readv": 19, "writev": 20, "select": 23, "sched_yield": 24, "mremap": 25, "msync": 26, "mincore": 27,
    "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39, "sendto": 44, "recvfrom": 45, "sendmsg": 46,
    "recvmsg": 47, "shutdown": 48, "getsockname": 51, "getpeername": 52, "setsockopt": 54, "getsockopt": 55,
    "exit": 60, "wait4": 61, "uname": 63, "fcntl": 72, "flock": 73, "fsync": 74, "fdatasync": 75, "ftruncate": 77,
    "gettimeofday": 96, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107,
    "getegid": 108, "rt_sigtimedwait": 128, "sigaltstack": 131, "gettid": 186, "futex": 202, "sched_getaffinity": 204,
    "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231,
    "epoll_wait": 232, "epoll_ctl": 233, "waitid": 247, "newfstatat": 262, "pselect6": 270, "ppoll": 271,
    "set_robust_list": 273, "fallocate": 285, "accept4": 288, "eventfd2": 290, "epoll_create1": 291, "dup3": 292,
    "pipe2": 293, "preadv": 295, "pwritev": 296, "getrandom": 318, "memfd_create": 319, "membarrier": 324,
    "rseq": 334,
}  # fmt: skip
"""What a running guest needs of the kernel: Python's, the engine's and KVM's calls. Others answer EPERM."""

_LOAD_WORD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_RETURN_ALLOW, _RETURN_ERRNO = 0x7FFF_0000, 0x0005_0000
_AT_NUMBER, _AT_ARCH = 0, 4
_AT_ARGUMENT = (16, 24, 32)
"""Offsets in struct seccomp_data; of 64-bit arguments the low half."""

_FS_RIGHTS = (0, 13, 14, 15, 15, 16)
"""How many rights over files Landlock's ABI 0 to 5 knows; later ones know as many as 5."""
_NET_RIGHTS, _SCOPE_ABSTRACT_SOCKETS = 0b11, 0b1

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant: struct sock_filter."""


class Sandbox(NamedTuple):
    """What is in force; ``landlock`` is the ABI version of the kernel's Landlock, 0 without."""

    no_new_privileges: bool
    seccomp: bool
    landlock: int

    def to_json(self) -> dict[str, Any]:
        """The documented form, as in ``host.sandbox`` of a run."""
        return self._asdict()


def enter() -> Sandbox:
    """Give up what a run does not need, for good; says what the kernel has put in force.

    A kernel without Landlock or without filters is said, not refused. Raises HostError if the process may not even
    renounce new privileges.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise HostError("prctl", ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS", "use --no-sandbox")
    landlock = _restrict_files(libc)
    return Sandbox(True, _filter_calls(libc), landlock)


def _restrict_files(libc: ctypes.CDLL) -> int:
    abi = max(libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION), 0)
    if not abi:
        return 0
    rights = [(1 << _FS_RIGHTS[min(abi, len(_FS_RIGHTS) - 1)]) - 1]
    rights += [_NET_RIGHTS] if abi >= 4 else []
    rights += [_SCOPE_ABSTRACT_SOCKETS] if abi >= 6 else []
    handled = struct.pack(f"<{len(rights)}Q", *rights)
    ruleset = libc.syscall(_LANDLOCK_CREATE, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0:
        return 0
    try:
        return abi if libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _filter_calls(libc: ctypes.CDLL) -> bool:
    if os.uname().machine != "x86_64":
        return False
    program = _program(os.getpid())
    filters = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(filters))
    return bool(libc.syscall(_SECCOMP, _SET_MODE_FILTER, _FLAG_TSYNC, header) == 0)


def _program(pid: int) -> list[Instruction]:
    """The filter, in the order of its checks; every rule about one call ends in an answer."""
    refuse = (_RETURN, 0, 0, _RETURN_ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _RETURN_ALLOW)
    lines: list[Instruction] = [
        (_LOAD_WORD, 0, 0, _AT_ARCH),
        (_JUMP_EQUAL, 1, 0, _ARCH_X86_64),
        refuse,
        (_LOAD_WORD, 0, 0, _AT_NUMBER),
        # glibc then makes its threads with clone, whose flags can be seen.
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _RETURN_ERRNO | errno.ENOSYS),
    ]
    lines += _when(
        _CLONE, (_LOAD_WORD, 0, 0, _AT_ARGUMENT[0]), (_JUMP_SET, 0, 1, _CLONE_THREAD), allow, refuse
    )
    lines += _when(_TGKILL, (_LOAD_WORD, 0, 0, _AT_ARGUMENT[0]), (_JUMP_EQUAL, 0, 1, pid), allow, refuse)
    lines += _when(
        _IOCTL,
        (_LOAD_WORD, 0, 0, _AT_ARGUMENT[1]),
        (_JUMP_EQUAL, 2, 0, _TIOCSTI),
        (_JUMP_EQUAL, 1, 0, _TIOCLINUX),
        allow,
        refuse,
    )
    for number in _ALLOWED.values():
        lines += _when(number, allow)
    return [*lines, refuse]


def _when(number: int, *then: Instruction) -> list[Instruction]:
    return [(_JUMP_EQUAL, 0, len(then), number), *then]
