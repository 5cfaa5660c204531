"""Exceptions, interrupts and SYSCALL by the engine's own code (Intel SDM volume 3, chapter 6; AMD APM volume 2, 6.1).

Unicorn carries QEMU's delivery of exceptions - gates, privilege change, TSS and IST, error codes, double and triple
faults - and leaves it unused: it calls a hook instead. Here the hooks are machine code that goes on to that delivery.
It may leave by a jump past all of its callers, so that no Python function may stand between.

- Interrupts: the engine takes vector 0 for want of a controller; a stub asks for the vector at that moment.
- SYSCALL: the engine's helper only skips the instruction; a stub does what long mode does, and raises #UD elsewhere.
- A task state segment that is not there makes the engine abort the process; the guest gets its #TS instead.
- #VC has an error code, which the engine's table of such vectors is too old to know; it is changed where it lies.
"""

from __future__ import annotations

import ctypes
import struct

from casemate.host.model.cpu.vc import Stub, absolute_jump

INTERRUPT_REQUEST, HARD_INTERRUPT = 0x1C, 1 << 1
"""Where a CPU keeps what is asked of it, and the bit of a device's interrupt."""
NO_VECTOR = -1
"""What a controller answers that has thought better of it."""
DOUBLE_FAULT = 8
InstructionDecider = ctypes.CFUNCTYPE(ctypes.c_uint32)
"""Says of an instruction that the engine does not know: ``UNDEFINED``, ``EXECUTED``, or the code of its #VC."""
UNDEFINED, EXECUTED = 0, 1

PROLOGUES = {
    "x86_cpu_do_interrupt_x86_64": "538bb7a08100004889fb8b8f589f0000",
    "do_interrupt_x86_hardirq_x86_64": "4189d14881ef508a00004531c031c931d2e9",
    "helper_syscall_x86_64": "41574989ff415641554c63ee",
    "helper_read_eflags_x86_64": "55534889fb4883ec088bb7a8000000",
    "helper_write_eflags_x86_64": "c787a8000000010000004889f089d6",
    "cpu_abort_x86_64": "50e8",
    "raise_exception_err_ra_x86_64": "4989c94883ec0889d14531c031d2e8",
}

_VMM_COMMUNICATION = 29
_EXIT_CODES = 0x800
_HARD_INTERRUPT_JUMP = 17
_ERROR_CODE_TESTS = ((0xA87, 0xA96), (0xB38, 0xB49), (0xB70, 0xB81))
"""In the engine's delivery: ``cmp ebx, last`` and ``test edx, set`` of vectors with error code, in three places."""
_COMPARE_VECTOR, _TEST_SET = b"\x83\xfb", b"\xf7\xc2"
_LAST_WITH_ERROR_CODE, _WITH_ERROR_CODE = 17, 0x27D00

DEAD_CODE_OF_SYSCALL = 16
"""From here on the engine's helper for SYSCALL is never run: room for a jump that others can reach."""

_EFLAGS_KEPT_APART = 0xCD5
"""The flags that the engine keeps outside of its EFLAGS field: CF, PF, AF, ZF, SF, OF and DF."""


class DeliveryRecord(ctypes.Structure):
    """What the hooks of one CPU know; its address is their user data, and must not change while they are in place."""

    _fields_ = (
        ("cpu", ctypes.c_uint64),
        ("on_pseudo_exception", ctypes.c_uint64),
        ("on_invalid", ctypes.c_uint64),
        ("vc", ctypes.c_uint64 * _EXIT_CODES),
    )

    def vc_counts(self) -> dict[int, int]:
        """#VCs that were raised, by exit code."""
        return {code: count for code, count in enumerate(self.vc) if count}


def delivery_function(hard_interrupt: int) -> int:
    """Address of the function that ``do_interrupt_x86_hardirq`` at ``hard_interrupt`` jumps to."""
    at = hard_interrupt + _HARD_INTERRUPT_JUMP
    return at + 5 + ctypes.c_int32.from_address(at + 1).value


def error_code_changes(delivery: int) -> list[tuple[int, bytes, bytes]]:
    """Address, old and new bytes, so that vector 29 comes with its error code."""
    changes = []
    for compare, test in _ERROR_CODE_TESTS:
        old = _COMPARE_VECTOR + bytes([_LAST_WITH_ERROR_CODE])
        new = _COMPARE_VECTOR + bytes([_VMM_COMMUNICATION])
        changes.append((delivery + compare, old, new))
        old_set = _TEST_SET + struct.pack("<I", _WITH_ERROR_CODE)
        new_set = _TEST_SET + struct.pack("<I", _WITH_ERROR_CODE | 1 << _VMM_COMMUNICATION)
        changes.append((delivery + test, old_set, new_set))
    return changes


def interrupt_hook(do_interrupt: int) -> bytes:
    """A hook on exceptions (esi vector, rdx record): counts #VCs, delivers all; pseudo exceptions are Python's."""
    return (
        b"\x81\xfe\xff\x00\x00\x00\x77\x27"  # cmp esi, 255; ja pseudo
        + b"\x48\x8b\x3a"  # mov rdi, [rdx]
        + b"\x83\xfe" + bytes([_VMM_COMMUNICATION]) + b"\x75\x13"  # cmp esi, 29; jne deliver
        + b"\x8b\x87\x58\x9f\x00\x00"  # mov eax, [rdi + error code]
        + b"\x25" + struct.pack("<I", _EXIT_CODES - 1)  # and eax, EXIT_CODES - 1
        + b"\x48\xff\x84\xc2" + struct.pack("<I", DeliveryRecord.vc.offset)  # inc qword [rdx + rax*8 + vc]
        + b"\x48\xb8" + struct.pack("<Q", do_interrupt) + b"\xff\xe0"  # deliver: mov rax, do_interrupt; jmp rax
        + b"\xff\x62\x08"  # pseudo: jmp [rdx + on_pseudo_exception]
    )  # fmt: skip


def invalid_hook(do_interrupt: int) -> bytes:
    """A hook on invalid instructions (rsi record): as the ``InstructionDecider`` in ``on_invalid`` says."""
    return (
        b"\x53\x48\x89\xf3\xff\x56\x10"  # push rbx; mov rbx, rsi; call [rsi + on_invalid]
        + b"\x83\xf8" + bytes([EXECUTED]) + b"\x74\x36"  # cmp eax, EXECUTED; je done
        + b"\x48\x8b\x3b\xb9\x06\x00\x00\x00"  # mov rdi, [rbx]; mov ecx, 6
        + b"\x85\xc0\x74\x18"  # test eax, eax; jz deliver
        + b"\x89\x87\x58\x9f\x00\x00"  # mov [rdi + error code], eax
        + b"\x25" + struct.pack("<I", _EXIT_CODES - 1)  # and eax, EXIT_CODES - 1
        + b"\x48\xff\x84\xc3" + struct.pack("<I", DeliveryRecord.vc.offset)  # inc qword [rbx + rax*8 + vc]
        + b"\xb9" + struct.pack("<I", _VMM_COMMUNICATION)  # mov ecx, 29
        + b"\x89\x8f\xa0\x81\x00\x00"  # deliver: mov [rdi + exception index], ecx
        + b"\x48\xb8" + struct.pack("<Q", do_interrupt) + b"\xff\xd0"  # mov rax, do_interrupt; call rax
        + b"\xb8\x01\x00\x00\x00\x5b\xc3"  # done: mov eax, 1; pop rbx; ret
    )  # fmt: skip


def hard_interrupt(acknowledge: int) -> Stub:
    """Delivery of an interrupt (rdi CPU state, esi vector): a vector of 0 is replaced by the controller's."""
    return lambda original: (
        b"\x85\xf6\x75\x1e"  # test esi, esi; jnz original
        + b"\x57\x52\x48\x83\xec\x08"  # push rdi; push rdx; sub rsp, 8
        + b"\x48\xb8" + struct.pack("<Q", acknowledge) + b"\xff\xd0"  # mov rax, acknowledge; call rax
        + b"\x48\x83\xc4\x08\x5a\x5f"  # add rsp, 8; pop rdx; pop rdi
        + b"\x85\xc0\x78" + bytes([2 + 14])  # test eax, eax; js none
        + b"\x89\xc6"  # mov esi, eax
        + absolute_jump(original)
        + b"\xc3"  # none: ret
    )  # fmt: skip


def abort(raiser: int) -> bytes:
    """In place of the engine's abort (rdi CPU), which only delivery calls: #TS with the task register's selector."""
    return (
        b"\x48\x81\xc7\x50\x8a\x00\x00"  # add rdi, env
        + b"\xbe\x0a\x00\x00\x00\x8b\x97\x60\x01\x00\x00"  # mov esi, 10; mov edx, [rdi + tr]
        + b"\x81\xe2\xfc\xff\x00\x00\x31\xc9"  # and edx, 0xfffc; xor ecx, ecx
        + absolute_jump(raiser)
    )


def near_jump(source: int, target: int) -> bytes:
    """jmp of 5 bytes, between addresses of one library."""
    return b"\xe9" + struct.pack("<i", target - source - 5)


def syscall(read_eflags: int, write_eflags: int, raiser: int) -> Stub:
    """SYSCALL (rdi CPU state, esi length of the instruction; RIP is up to date)."""

    def call(function: int) -> bytes:
        return (
            b"\x57\x48\xb8" + struct.pack("<Q", function) + b"\xff\xd0\x5f"
        )  # push rdi; call function; pop rdi

    work = (
        b"\x48\x63\xf6\x48\x03\xb7\x80\x00\x00\x00\x48\x89\x77\x08"  # rcx = rip + movsxd(esi)
        + call(read_eflags)
        + b"\x25\xff\xff\xfe\xff\x48\x89\x47\x58"  # and eax, ~RF; r11 = rax
        + b"\x8b\xb7\xf8\x12\x00\x00\xf7\xd6\x21\xc6"  # mov esi, [sfmask]; not esi; and esi, eax
        + b"\xba" + struct.pack("<I", 0xFFFFFFFF & ~_EFLAGS_KEPT_APART)  # mov edx, which bits of the field
        + call(write_eflags)
        + b"\x0f\xb7\x87\xdc\x12\x00\x00\x25\xfc\xff\x00\x00"  # movzx eax, word [star + 4]; and eax, 0xfffc
        + b"\x89\x87\xd0\x00\x00\x00\x83\xc0\x08\x89\x87\xe8\x00\x00\x00"  # cs = eax; ss = eax + 8
        + b"\x31\xc0\x48\x89\x87\xd8\x00\x00\x00\x48\x89\x87\xf0\x00\x00\x00"  # both bases 0
        + b"\xff\xc8\x89\x87\xe0\x00\x00\x00\x89\x87\xf8\x00\x00\x00"  # both limits 0xffffffff
        + b"\xc7\x87\xe4\x00\x00\x00\x00\x9b\xa0\x00"  # cs: 64-bit code, accessed
        + b"\xc7\x87\xfc\x00\x00\x00\x00\x93\xc0\x00"  # ss: writable data, accessed
        + b"\x8b\x87\xb0\x00\x00\x00"  # mov eax, [hidden flags]
        + b"\x48\x8b\x97\xf0\x12\x00\x00\x0f\xba\xe0\x0f"  # mov rdx, [cstar]; bt eax, 15 (64-bit code)
        + b"\x48\x0f\x42\x97\xe8\x12\x00\x00\x48\x89\x97\x80\x00\x00\x00"  # cmovc rdx, [lstar]; rip = rdx
        + b"\x83\xe0\xbc\x0d\x30\x80\x00\x00\x89\x87\xb0\x00\x00\x00"  # privilege 0, 64-bit code and stack
        + b"\xc3"
    )  # fmt: skip
    undefined = b"\x48\x8b\x14\x24\xbe\x06\x00\x00\x00" + absolute_jump(raiser)  # mov rdx, [rsp]; mov esi, 6
    enabled = b"\xf6\x87\x50\x02\x00\x00\x01\x0f\x84" + struct.pack(
        "<I", len(work)
    )  # test byte [efer], SCE; jz
    return lambda original: (
        b"\x8b\x87\xb0\x00\x00\x00\x0f\xba\xe0\x0e"  # mov eax, [hidden flags]; bt eax, 14 (long mode)
        + b"\x0f\x83" + struct.pack("<I", len(enabled) + len(work))  # jnc undefined
        + enabled + work + undefined
    )  # fmt: skip
