"""Where kvm_amd in the lab does otherwise than the manual's rules, and who it is: KVM or the emulated processor.

The lab's KVM intercepts little, and what it does not is QEMU 7.2's translator.
"""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """Of a test, by its name without ``test_``, all cases whose identifier has ``case`` in it."""

    rule: str
    case: str
    why: str


_UPPER_HALF = (
    "KVM: without decode assists its interpreter executes MOV to CR0 and CR4, and takes 32 bits of the value"
)
_NOT_CANONICAL = "processor: QEMU takes addresses that are not canonical, and KVM does not intercept them"
_NO_RF = "processor: QEMU pushes no resume flag; KVM does for the faults that it delivers itself"
_GATE = "processor: QEMU's error code has 16 times the vector and no EXT, and RIP is behind INT"
_NO_SYSENTER = "AMD's processors have no SYSENTER in long mode"
_RESERVED_X2APIC = "KVM: it takes any value for the task priority and the end of an interrupt"

DIFFERENCES = (
    Difference("bits_of_cr4_that_the_processor_does_not_have_are_refused", "[32]", _UPPER_HALF),
    Difference("bits_of_cr4_that_the_processor_does_not_have_are_refused", "[63]", _UPPER_HALF),
    Difference(
        "values_of_control_registers_that_make_no_sense_are_refused",
        "mov rcx, 0x100000000; or rax, rcx-cr0",
        _UPPER_HALF,
    ),
    Difference(
        "values_of_control_registers_that_make_no_sense_are_refused",
        "-cr3",
        "processor: QEMU takes reserved bits of CR3, which KVM does not intercept with nested paging",
    ),
    Difference("addresses_in_registers_are_canonical", "-True-", _NOT_CANONICAL),
    Difference("segment_bases_that_are_set_without_a_register_are_canonical", "-True", _NOT_CANONICAL),
    Difference("faults_push_the_resume_flag_and_traps_do_not", "hlt", _NO_RF),
    Difference(
        "int_in_real_mode_uses_the_stack_pointer_that_the_stack_segment_has",
        "",
        "processor: QEMU pushes with 16 bits of ESP",
    ),
    Difference("fault_in_a_delivery_names_the_gate_and_is_the_instructions", "", _GATE),
    Difference("exception_in_user_mode_reaches_the_handler_on_the_task_segments_stack", "closed-gate", _GATE),
    Difference("page_fault_in_the_delivery_of_int_returns_to_it", "", _GATE),
    Difference(
        "sysenter_enters_the_kernel_and_sysexit_leaves_it",
        "",
        _NO_SYSENTER,
    ),
    Difference(
        "sysenter_is_refused_by_amd_in_long_mode_and_where_it_is_not_set_up",
        "max",
        _NO_SYSENTER,
    ),
    Difference(
        "sysenter_registers_of_amd_have_32_bits",
        "",
        "processor: QEMU keeps the upper halves, and KVM does not intercept the registers",
    ),
    Difference("x2apic_refuses_what_is_reserved", "2056-256", _RESERVED_X2APIC),
    Difference("x2apic_refuses_what_is_reserved", "2059-1", _RESERVED_X2APIC),
    Difference(
        "cmpxchg_of_two_words_changes_the_zero_flag_and_no_other",
        "",
        "processor: QEMU makes the flags out of the operands of the comparison before",
    ),
    Difference(
        "syscall_enters_and_sysret_leaves_with_flags_and_segments",
        "",
        "processor: QEMU's SYSCALL clears the arithmetic flags, whatever SFMASK says",
    ),
)
