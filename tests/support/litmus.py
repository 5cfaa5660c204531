"""Litmus tests for two vCPUs: what one may see of the other's stores (Intel SDM volume 3A, 9.1 and 9.2).

Each guest ends with the number of rounds that showed what no x86 processor shows, at most 255, on the exit port.
"""

from __future__ import annotations

from support.assembler import assemble
from support.second_vcpu import ICR_HIGH, ICR_LOW, NMI, TRAMPOLINE, start_second

X, Y, SEEN0, SEEN1, DONE0, DONE1, GO, BAD = range(0x9000, 0x9080, 0x10)
CODE = 0xA000
"""Of the code that is rewritten: MOV EAX with a number, RET."""
_EXECUTE = f"call {CODE - TRAMPOLINE}; mov [{SEEN1}], eax; inc dword [{DONE1}];"
_WAIT = "wait{0}: pause; mov eax, [{1}]; cmp eax, {2}; jne wait{0};"
_END = f"""
        end:    mov eax, [{BAD}]
                cmp eax, 255
                jbe tell
                mov eax, 255
        tell:   out 0xf4, al
                jmp $
"""
_COUNT = f"""
        count:  lock inc dword [{X}]
                mov eax, 1
                lock xadd [{Y}], eax
        again:  mov eax, [{SEEN0}]
                lea ebx, [eax + 3]
                lock cmpxchg [{SEEN0}], ebx
                jne again
                dec ecx
                jnz count
"""


def locked_counters(rounds: int) -> bytes:
    """Both count by LOCK INC, XADD and CMPXCHG; a count that is lost is bad."""
    second = f"mov ecx, {rounds}; {_COUNT} mov dword [{DONE1}], 1; hang: cli; hlt; jmp hang"
    checks = "".join(
        f"cmp dword [{place}], {2 * each * rounds}; je good{place}; inc dword [{BAD}]; good{place}:;"
        for place, each in ((X, 1), (Y, 1), (SEEN0, 3))
    )
    first = f"mov ecx, {rounds}; {_COUNT} {_WAIT.format('_other', DONE1, 1)} {checks} {_END}"
    return start_second(second) + assemble(first)


def message_passing(rounds: int) -> bytes:
    """One stores data, then a flag; the other must not see the flag without the data."""
    second = f"""
                mov ecx, {rounds}
                xor eax, eax
        next:   inc eax
                mov [{X}], eax
                mov [{Y}], eax
                dec ecx
                jnz next
                mov dword [{DONE1}], 1
        hang:   cli; hlt; jmp hang
    """
    first = f"""
        look:   mov ebx, [{Y}]
                mov edx, [{X}]
                cmp edx, ebx
                jae good
                inc dword [{BAD}]
        good:   cmp dword [{DONE1}], 1
                jne look
                {_END}
    """
    return start_second(second) + assemble(first)


def store_buffering(rounds: int) -> bytes:
    """Each stores by XCHG, which is locked, and then loads what the other one stores: one of them sees it."""

    def side(mine: int, other: int, seen: int, done: int) -> str:
        return f"mov eax, ecx; xchg [{mine}], eax; mov eax, [{other}]; mov [{seen}], eax; mov [{done}], ecx;"

    second = f"""
                mov ecx, 1
        next:   {_WAIT.format("_go", GO, "ecx")}
                {side(Y, X, SEEN1, DONE1)}
                inc ecx
                jmp next
    """
    first = f"""
                mov ecx, 1
        next:   mov [{GO}], ecx
                {side(X, Y, SEEN0, DONE0)}
                {_WAIT.format("_other", DONE1, "ecx")}
                cmp [{SEEN0}], ecx
                jae good
                cmp [{SEEN1}], ecx
                jae good
                inc dword [{BAD}]
        good:   inc ecx
                cmp ecx, {rounds}
                jbe next
                {_END}
    """
    return start_second(second) + assemble(first)


def cross_modifying_code(rounds: int, before: str = "") -> bytes:
    """One rewrites an instruction and says so in memory; the other serializes, and must execute the new one."""
    second = f"""
                mov ecx, 1
        next:   {_WAIT.format("_go", GO, "ecx")}
                push ecx
                xor eax, eax
                cpuid
                pop ecx
                {_EXECUTE}
                inc ecx
                jmp next
    """
    return start_second(second) + _rewrite(rounds, f"mov [{GO}], ecx", before)


def cross_modifying_code_beside_data(rounds: int) -> bytes:
    """The same, on a page that the first one mostly stores data to."""
    stores = f"""
                mov byte [{CODE + 0x1000}], 0xc3
                mov eax, {CODE + 0x1000}
                mov edx, 20
        store:  mov [{CODE + 64}], edx
                call eax
                dec edx
                jne store
    """
    return cross_modifying_code(rounds, stores)


def cross_modifying_code_by_interrupt(rounds: int) -> bytes:
    """The same, told by an NMI that wakes the other one out of HLT."""
    second = f"""
                mov dword [8], handler + {TRAMPOLINE << 12}
                mov dword [{GO}], 1
        idle:   hlt
                jmp idle
        handler: {_EXECUTE}
                iret
    """
    send = f"mov dword [{ICR_HIGH}], 0x1000000; mov dword [{ICR_LOW}], {NMI}"
    return start_second(second) + assemble(_WAIT.format("_ready", GO, 1)) + _rewrite(rounds, send)


def _rewrite(rounds: int, tell: str, before: str = "") -> bytes:
    return assemble(f"""
                mov byte [{CODE}], 0x66
                mov byte [{CODE + 1}], 0xb8
                mov byte [{CODE + 6}], 0xc3
                mov ecx, 1
        next:   {before}
                mov [{CODE + 2}], ecx
                {tell}
                {_WAIT.format("_other", DONE1, "ecx")}
                cmp [{SEEN1}], ecx
                je good
                inc dword [{BAD}]
        good:   inc ecx
                cmp ecx, {rounds}
                jbe next
                {_END}
    """)


KINDS = {
    "locked counters": locked_counters,
    "message passing": message_passing,
    "store buffering": store_buffering,
    "cross-modifying code": cross_modifying_code,
    "cross-modifying code beside data": cross_modifying_code_beside_data,
    "cross-modifying code by interrupt": cross_modifying_code_by_interrupt,
}
