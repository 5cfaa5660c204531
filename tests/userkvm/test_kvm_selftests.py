"""The kernel's own KVM selftests on the modelled KVM, and how the task judges them (Linux selftests/kvm)."""

from __future__ import annotations

import pytest

from casemate import native
from tools.kvm_selftests import (
    PLACE,
    Outcome,
    find_programs,
    page_results,
    page_rows,
    rows_of,
    run,
    table,
)

QUICK = (
    "coalesced_io_test", "cpuid_test", "cr4_cpuid_sync_test", "debug_regs", "demand_paging_test",
    "fix_hypercall_test", "get_msr_index_features", "guest_memfd_test", "guest_print_test", "hwcr_msr_test",
    "kvm_create_max_vcpus", "kvm_pv_test", "max_vcpuid_cap_test", "platform_info_test",
    "pre_fault_memory_test", "private_mem_conversions_test", "private_mem_kvm_exits_test",
    "set_memory_region_test", "set_sregs_test", "sev_init2_tests", "sev_smoke_test_without_sync_vmsa",
    "system_counter_offset_test", "tsc_msrs_test", "xcr0_cpuid_test",
)  # fmt: skip
"""They take half a minute together; ``python -m tools.kvm_selftests`` runs every program."""


@pytest.mark.skipif(not native.KVM.exists(), reason="casemate's library for other VMMs was not built")
@pytest.mark.parametrize("name", QUICK)
def test_the_kernels_own_test_passes(name: str) -> None:
    program = find_programs().get(name)
    if program is None:
        pytest.skip("the selftests were not built: python -m tools.kvm_selftests")
    outcome = run(name, program)
    assert outcome.result == "pass", f"{outcome.reason}\n{outcome.output[-2000:]}"


def test_the_page_says_of_the_quick_ones_that_they_pass() -> None:
    results = page_results()
    assert {name: results.get(name) for name in QUICK} == dict.fromkeys(QUICK, "pass")


def test_at_least_half_of_what_is_not_left_out_passes() -> None:
    results = page_results()
    counted = [results[name] for name in results if Outcome(name, 0, 0.0, "").topic is None]
    assert len(counted) > 50
    assert counted.count("pass") * 2 >= len(counted)


@pytest.mark.parametrize(
    ("code", "output", "result", "reason"),
    [
        (0, "", "pass", ""),
        (4, "1..0 # SKIP - Requirement not met: kvm_has_cap(KVM_CAP_X)", "skip", "`kvm_has_cap(KVM_CAP_X)`"),
        (4, "1..0 # SKIP - CONFIG_X is not enabled", "fail", "`CONFIG_X is not enabled`"),
        (4, "no file", "fail", "exit code 4: `no file`"),
        (254, "==== Test Assertion Failure ====\n  x86_64/a.c:7: b == c\n", "fail", "a.c:7: `b == c`"),
        (None, "", "fail", "not done after 120 s"),
    ],
)
def test_outcomes_are_told_apart(code: int | None, output: str, result: str, reason: str) -> None:
    outcome = Outcome("a_test", code, 1.0, output)
    assert (outcome.result, outcome.reason) == (result, reason)


def test_only_crashes_and_hangs_count_as_broken() -> None:
    assert [Outcome("a", code, 1.0, "").is_broken for code in (0, 4, 254, 1, 139, None)] == [
        False,
        False,
        False,
        False,
        True,
        True,
    ]


def test_what_is_left_out_on_purpose_is_counted_apart() -> None:
    outcomes = [Outcome("pmu_counters_test", 254, 1.0, ""), Outcome("cpuid_test", 0, 1.0, "")]
    text = table(rows_of(outcomes))
    assert text.startswith("Of 1 programs 1 pass, 0 skip themselves and 0 fail; 1 more are")
    assert "| pmu_counters_test | fail | PMU is left out: exit code 254 |" in text


def test_a_program_that_is_run_again_gets_its_row_and_the_others_keep_theirs() -> None:
    rows = page_rows()
    assert list(rows) == list(page_results())
    again = rows | rows_of([Outcome("cpuid_test", 1, 1.0, "")])
    assert list(again) == list(rows)
    assert again["cpuid_test"].startswith("| cpuid_test | fail |")
    assert PLACE.shown() == table(rows)
