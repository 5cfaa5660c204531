"""CPUID against what executes: nothing offered is undefined, nothing hidden is there (Intel SDM volume 2, CPUID)."""

from __future__ import annotations

import pytest
from support.assembler import assemble
from support.guest_rig import ModelRig
from test_model_delivery import DUMP, HALTED, HANDLER, USER, Delivery, enter_user

from casemate.abi.guest_kind import GuestKind
from casemate.abi.x86.cpu_models import CpuChoice, features, find_model, model_names
from casemate.digest.cpu_models import CPU_MODELS
from casemate.errors import SpecError
from casemate.host.exits import Hlt, Shutdown
from casemate.host.model.cpu.processor import EXECUTED, Processor, default_cpu, make_processor

AREA = 0x8000
OSXSAVE = "mov rax, cr4; or eax, 0x40000; mov cr4, rax; xor ecx, ecx;"


def set_cr4(bit: int) -> str:
    return f"mov rax, cr4; or eax, {1 << bit}; mov cr4, rax;"


def read_msr(index: int) -> str:
    return f"mov ecx, {index}; rdmsr"


REFUSED = {
    "de": set_cr4(3),
    "pse": set_cr4(4),
    "mce": set_cr4(6),
    "pge": set_cr4(7),
    "umip": set_cr4(11),
    "nx": "mov ecx, 0xc0000080; rdmsr; or eax, 0x800; wrmsr",
    "cmov": "cmove eax, ebx",
    "cx8": f"cmpxchg8b qword [{AREA}]",
    "clflush": f"clflush byte [{AREA}]",
    "ssse3": "pshufb xmm0, xmm1",
    "pclmulqdq": "pclmulqdq xmm0, xmm1, 0",
    "cx16": f"cmpxchg16b [{AREA}]",
    "sse4.1": "ptest xmm0, xmm1",
    "sse4.2": "crc32 eax, al",
    "movbe": f"movbe eax, [{AREA}]",
    "popcnt": "popcnt eax, ecx",
    "aes": "aesenc xmm0, xmm1",
    "xsave": OSXSAVE + "xgetbv",
    "xsaveopt": OSXSAVE + f"xor edx, edx; lea eax, [rdx + 3]; xsaveopt [{AREA}]",
    "xgetbv1": OSXSAVE + "inc ecx; xgetbv",
    "rdrand": "rdrand eax",
    "fsgsbase": set_cr4(16) + "rdfsbase rax",
    "bmi1": "db 0xc4, 0xe2, 0x78, 0xf2, 0xc1",  # ANDN
    "bmi2": "db 0xc4, 0xe2, 0x71, 0xf7, 0xc0",  # SHLX
    "adx": "adcx eax, ecx",
    "clflushopt": f"clflushopt byte [{AREA}]",
    "clwb": f"clwb byte [{AREA}]",
    "smap": "clac",
    "pku": set_cr4(22) + "xor ecx, ecx; rdpkru",
    "rdtscp": "rdtscp",
    "lahf-lm": "lahf",
    "3dnow": "db 0x0f, 0x0f, 0xc1, 0x9e",  # PFADD
    "3dnowext": "db 0x0f, 0x0f, 0xc1, 0xbb",  # PSWAPD
}
"""What a processor without the feature refuses, by #UD or #GP."""

EXECUTED_ANYWAY = {
    "fpu": "fninit",
    "tsc": "rdtsc",
    "msr": read_msr(0x10),
    "mca": read_msr(0x179),
    "mtrr": read_msr(0xFE),
    "pat": read_msr(0x277),
    "mmx": "emms",
    "fxsr": f"fxsave [{AREA}]",
    "sse": "xorps xmm0, xmm0",
    "sse2": "pxor xmm0, xmm0",
    "pni": "haddps xmm0, xmm1",
    "mmxext": "pshufw mm0, mm1, 0",
    "abm": "lzcnt eax, ecx",
    "cr8legacy": "db 0xf0, 0x0f, 0x20, 0xc0",  # MOV EAX, CR8, else CR0
    "rdseed": "rdseed eax",
    "sse4a": "extrq xmm0, xmm1",
    "3dnowprefetch": f"prefetchw byte [{AREA}]",
    "wbnoinvd": "wbnoinvd",
    "spec-ctrl": "mov ecx, 0x48; mov eax, 1; xor edx, edx; wrmsr",
    "arch-capabilities": read_msr(0x10A),
}
"""What is there with and without, as every 64-bit processor has it, or as other encodings of older instructions."""

NO_INSTRUCTION = {
    "smep", "pae", "apic", "sep", "pse36", "ss", "hypervisor", "arat", "erms", "la57", "syscall", "pdpe1gb", "lm",
    "x2apic", "stibp", "ssbd", "md-clear",
}  # fmt: skip
"""A mode, a hint, or shown by tests of their own."""

HIDDEN = {
    "avx": "db 0xc5, 0xf8, 0x58, 0xc0",
    "avx2": "db 0xc4, 0xe2, 0x7d, 0x00, 0xc1",
    "fma": "db 0xc4, 0xe2, 0x79, 0x98, 0xc0",
    "f16c": "db 0xc4, 0xe2, 0x79, 0x13, 0xc0",
    "avx512f": "db 0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0",
    "sha-ni": "sha1msg1 xmm0, xmm1",
    "invpcid": f"mov edi, {AREA}; xor eax, eax; db 0x66, 0x0f, 0x38, 0x82, 0x07",
    "xsavec": OSXSAVE + "mov edi, 0x8000; db 0x0f, 0xc7, 0x27",
    "xsaves": OSXSAVE + "mov edi, 0x8000; db 0x0f, 0xc7, 0x2f",
    "clzero": "db 0x0f, 0x01, 0xfc",
    "serialize": "db 0x0f, 0x01, 0xe8",
    "rdpid": "db 0xf3, 0x0f, 0xc7, 0xf8",
    "movdiri": f"mov edi, {AREA}; db 0x0f, 0x38, 0xf9, 0x07",
    "monitor": "monitor",
    "svm": "db 0x0f, 0x01, 0xd8",
    "gfni": "db 0x66, 0x0f, 0x38, 0xcf, 0xc1",
}
"""What is never offered, and undefined."""


def vector_of(code: str, cpu: str) -> int | None:
    """The exception that 64-bit code raises, #UD or #GP; None if none."""
    with Delivery(code + "; hlt", cpu=cpu) as rig:
        for vector in (6, 13):
            rig.gate(vector, handler=HANDLER + 0x100 * vector)
            rig.put(HANDLER + 0x100 * vector, f"mov byte [{DUMP}], {vector}; hlt")
        assert rig.run() == HALTED
        return rig.ram_at(DUMP, 1)[0] or None


def test_every_feature_that_is_offered_has_its_test() -> None:
    assert set(REFUSED) | set(EXECUTED_ANYWAY) | NO_INSTRUCTION == EXECUTED
    assert features().keys() >= EXECUTED


@pytest.mark.parametrize("feature", [*REFUSED, *EXECUTED_ANYWAY])
def test_offered_feature_does_not_fault(feature: str) -> None:
    assert vector_of({**REFUSED, **EXECUTED_ANYWAY}[feature], f"max,+3dnow,+{feature}") is None


@pytest.mark.parametrize(
    ("instruction", "source", "cpu", "result"),
    [
        ("lzcnt", 0x10, "max", 27),
        ("lzcnt", 0x10, "max,-abm", 4),
        ("lzcnt", 0x10, "SandyBridge", 4),
        ("tzcnt", 0, "max", 32),
        ("tzcnt", 0, "max,-bmi1", 7),
    ],
)
def test_counts_of_zeros_are_bit_scans_where_the_processor_has_them_not(
    instruction: str, source: int, cpu: str, result: int
) -> None:
    with ModelRig(
        f"mov eax, 7; mov ecx, {source}; {instruction} eax, ecx; out 0x80, eax; hlt", cpu=cpu
    ) as rig:
        assert rig.run() == HALTED
        assert rig.bus.log == [("out", 0x80, 4, result)]


@pytest.mark.parametrize("feature", REFUSED)
def test_feature_that_is_switched_off_faults(feature: str) -> None:
    assert vector_of(REFUSED[feature], f"max,-{feature}") in (6, 13)


@pytest.mark.parametrize("feature", HIDDEN)
def test_feature_that_cannot_be_had_is_undefined(feature: str) -> None:
    assert vector_of(HIDDEN[feature], "max") == 6
    with pytest.raises(SpecError, match=f"CPU feature {feature} cannot be had: "):
        make_processor(CpuChoice.parse(f"max,+{feature}"))


def cpuid(leaf: int, index: int, at: int) -> str:
    stores = "".join(
        f"mov [{at + 4 * number}], {name};" for number, name in enumerate(("eax", "ebx", "ecx", "edx"))
    )
    return f"mov eax, {leaf}; mov ecx, {index}; cpuid; {stores}"


def leaves(cpu: str, *asked: tuple[int, int], before: str = "") -> list[tuple[int, ...]]:
    code = before + "".join(
        cpuid(leaf, index, AREA + 16 * number) for number, (leaf, index) in enumerate(asked)
    )
    with Delivery(code + "hlt", cpu=cpu) as rig:
        assert rig.run() == HALTED
        words = rig.ram_at(AREA, 16 * len(asked))
    return [
        tuple(int.from_bytes(words[at + 4 * number : at + 4 * number + 4], "little") for number in range(4))
        for at in range(0, len(words), 16)
    ]


WORDS = {
    "1.ecx": (1, 0, 2), "1.edx": (1, 0, 3), "6.eax": (6, 0, 0), "7.ebx": (7, 0, 1), "7.ecx": (7, 0, 2),
    "7.edx": (7, 0, 3), "80000001.ecx": (0x80000001, 0, 2), "80000001.edx": (0x80000001, 0, 3),
    "80000008.ebx": (0x80000008, 0, 1), "d.1.eax": (0xD, 1, 0), "8000000a.edx": (0x8000000A, 0, 3),
    "80000007.edx": (0x80000007, 0, 3), "7.1.eax": (7, 1, 0),
}  # fmt: skip


@pytest.mark.parametrize(
    "cpu", ["max", "EPYC-Milan", "EPYC-v4", "Haswell", "qemu64", "Westmere,-aes", "max,-xsave"]
)
def test_guest_sees_the_features_of_its_processor_and_no_others(cpu: str) -> None:
    processor = make_processor(CpuChoice.parse(cpu))
    found = leaves(cpu, *((leaf, index) for leaf, index, _ in WORDS.values()))
    shown = set()
    for (word, (_, _, register)), leaf in zip(WORDS.items(), found, strict=True):
        for name, (where, bit) in features().items():
            if where == word and leaf[register] >> bit & 1:
                shown.add(name)
        if word != "80000001.edx":  # of which AMD repeats others
            assert leaf[register] == processor.word(word), word
    assert shown == processor.features
    assert "la57" not in shown


@pytest.mark.parametrize("name", model_names())
def test_every_model_shows_its_own_signature_name_and_vendor(name: str) -> None:
    model, processor = find_model(name), make_processor(CpuChoice(name))
    assert processor.answer(1, 0).eax == model.signature
    words = [word for leaf in (0x80000002, 0x80000003, 0x80000004) for word in processor.answer(leaf, 0)]
    text = b"".join(word.to_bytes(4, "little") for word in words)
    assert text.rstrip(b"\0").decode() == model.model_id
    ebx, ecx, edx = processor.answer(0, 0)[1:]
    assert b"".join(word.to_bytes(4, "little") for word in (ebx, edx, ecx)).decode() == model.vendor
    assert processor.features.isdisjoint(processor.left_out)
    assert processor.features <= EXECUTED


def test_processors_that_are_measured_have_the_signature_that_is_shown() -> None:
    assert {name: find_model(name).signature for name in CPU_MODELS} == CPU_MODELS


def test_reset_shows_the_signature_in_edx() -> None:
    with Delivery(f"mov [{DUMP}], edx; hlt", bits=16, cpu="EPYC-Milan") as rig:
        assert rig.run() == HALTED
        assert rig.word(DUMP) == find_model("EPYC-Milan").signature


@pytest.mark.parametrize(
    ("cpu", "components", "size"), [("max", 0x203, 0xA88), ("max,-pku", 3, 0x240), ("EPYC-v4", 3, 0x240)]
)
def test_xsave_areas_are_those_of_what_is_there(cpu: str, components: int, size: int) -> None:
    enable = OSXSAVE + f"xor edx, edx; mov eax, {components}; xsetbv;"
    found = leaves(cpu, (0xD, 0), (0xD, 1), (0xD, 2), (0xD, 9), before=enable)
    assert found[0] == (components, size, size, 0)
    assert found[2] == (0, 0, 0, 0), "no YMM"
    assert found[3][:2] == ((8, 0xA80) if components > 3 else (0, 0))
    before = leaves(cpu, (0xD, 0))[0]
    assert before[1:3] == (0x240, size)
    with_ymm = OSXSAVE + "xor edx, edx; mov eax, 7; xsetbv"
    assert vector_of(with_ymm, cpu) == 13


def test_bits_that_follow_cr4_follow_it() -> None:
    (one,), (seven,) = leaves("max", (1, 0)), leaves("max", (7, 0))
    assert not one[2] >> 27 & 1
    assert not seven[2] >> 4 & 1
    enable = set_cr4(18) + set_cr4(22)
    one, seven = leaves("max", (1, 0), (7, 0), before=enable)
    assert one[2] >> 27 & 1
    assert seven[2] >> 4 & 1


@pytest.mark.parametrize(
    "store",
    ["sgdt [rdi]", "sidt [rdi]", "sldt ax", "str ax", "smsw rax", "smsw word [rdi]", "sldt word [rdi]"],
)
@pytest.mark.parametrize("is_on", [False, True])
def test_umip_keeps_user_mode_from_the_kernels_tables(store: str, is_on: bool) -> None:
    user = f"mov edi, {DUMP + 0x100}; {store}; ud2"
    with Delivery((set_cr4(11) if is_on else "") + enter_user(), user) as rig:
        rig.gate(6)
        rig.gate(13)
        assert rig.run() == HALTED
        if is_on:
            assert rig.frame()[:2] == (0, USER + len(assemble(f"mov edi, {DUMP + 0x100}", 64)))
        else:
            assert rig.frame()[0] == USER + len(assemble(user, 64)) - 2


def test_umip_holds_for_code_that_was_executed_before() -> None:
    user = f"mov edi, {DUMP + 0x100}; again: sgdt [rdi]; int 0x40; jmp again"
    switch = set_cr4(11).replace("rax", "r8").replace("eax", "r8d") + "iretq"
    with Delivery(enter_user(), user) as rig:
        rig.gate(0x40, 0xEE, handler=HANDLER + 0x800)
        rig.put(HANDLER + 0x800, switch)
        rig.gate(13)
        assert rig.run() == HALTED
        assert rig.frame()[1] == USER + 5


@pytest.mark.parametrize("access", ["mov al, [rdi]", "mov [rdi], al"])
@pytest.mark.parametrize("allowed", [False, True])
def test_smap_keeps_the_kernel_from_pages_of_user_mode(access: str, allowed: bool) -> None:
    code = set_cr4(21) + f"mov edi, {USER};" + ("stac;" if allowed else "clac;") + access + "; hlt"
    with Delivery(code) as rig:  # where every page is the user's, the stack of handlers, too
        assert isinstance(rig.run(), Hlt if allowed else Shutdown)


def test_smep_keeps_the_kernel_from_executing_pages_of_user_mode() -> None:
    with Delivery(set_cr4(20) + "hlt") as rig:
        assert isinstance(rig.run(), Shutdown)
    assert vector_of(set_cr4(20), "max,-smep") == 13


@pytest.mark.parametrize("kind", GuestKind)
def test_usual_processors_are_modern(kind: GuestKind) -> None:
    processor: Processor = make_processor(default_cpu(kind))
    assert {"smap", "smep"} <= processor.features
    assert kind.is_confidential or {"umip", "pku", "fsgsbase"} <= processor.features


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("EPYC-Milann", "did you mean EPYC-Milan"),
        ("epyc", "did you mean EPYC"),
        ("max,+smapp", "did you mean smap"),
        ("host", "use max"),
        ("max,smap=yes", "NAME=on"),
    ],
)
def test_words_that_are_wrong_name_the_nearest_right_one(text: str, nearest: str) -> None:
    with pytest.raises(SpecError, match=nearest):
        CpuChoice.parse(text)


def test_enforce_refuses_a_model_that_cannot_be_had_whole() -> None:
    with pytest.raises(SpecError, match="avx: the engine has no registers of 256 bits"):
        make_processor(CpuChoice.parse("EPYC-Milan,enforce"))
    assert make_processor(CpuChoice.parse("qemu64,-svm,enforce")).left_out == ()


def test_choice_is_written_as_it_is_read() -> None:
    text = "EPYC-v4,+smap,-pku,enforce"
    assert str(CpuChoice.parse(text)) == text
    assert CpuChoice.parse("max,sse4_2=off,lahf_lm,-sse3") == CpuChoice.parse("max,-sse4.2,+lahf-lm,-pni")
