"""The processor of a modelled guest: QEMU's model less what the engine does not execute (Unicorn 2.1.4, Intel SDM).

What CPUID offers is executed, and what it hides is #UD where the manual says so.
"""

import functools
import struct
from typing import NamedTuple

from casemate.abi.guest_kind import GuestKind
from casemate.abi.x86.cpu_models import MAX, CpuChoice, CpuModel, features, find_model, model_names
from casemate.errors import SpecError

ADDRESS_BITS = 40
"""Of guest-physical addresses, as the engine has them; the hooks add more where they are asked for."""
SEV_DEFAULT = "EPYC-v4"
"""What QEMU's examples, and the digests here, take for guests of SEV."""

EXECUTED = frozenset({
    "fpu", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca", "cmov", "pat", "pse36",
    "clflush", "mmx", "fxsr", "sse", "sse2", "ss", "pni", "pclmulqdq", "ssse3", "cx16", "sse4.1", "sse4.2", "movbe",
    "popcnt", "aes", "xsave", "rdrand", "rdseed", "hypervisor", "arat", "fsgsbase", "bmi1", "smep", "bmi2", "erms",
    "smap", "adx", "clflushopt", "clwb", "umip", "pku", "la57", "syscall", "nx", "mmxext", "pdpe1gb", "rdtscp", "lm",
    "3dnow", "3dnowext", "lahf-lm", "cr8legacy", "abm", "sse4a", "3dnowprefetch", "xsaveopt", "xgetbv1", "wbnoinvd",
    "spec-ctrl", "stibp", "ssbd", "arch-capabilities", "md-clear", "x2apic",
})  # fmt: skip
"""QEMU's names of what the engine and its hooks execute."""
_ONLY_ASKED_FOR = {"la57", "3dnow", "3dnowext", "sse4a", "cr8legacy", "mmxext"}
"""Of what ``max`` could have: page tables of five levels, and what Intel's processors have not."""
_INTELS = {"spec-ctrl", "stibp", "ssbd", "arch-capabilities", "md-clear"}

_REASONS = {
    "the engine has no registers of 256 bits": ("avx", "fma", "f16c", "xop", "vaes", "vpclmul", "tbm", "amx", "gfni"),
    "there is no virtualization inside of the modelled processor": (
        "svm", "vmx", "npt", "nrip-save", "avic", "vgif", "vnmi", "x2avic", "tsc-scale", "vmcb-clean", "lbrv", "skinit",
        "svme-addr-chk", "decodeassists", "flushbyasid", "pause-filter", "pfthreshold", "v-vmsave-vmload",
    ),
    "the model has not its model-specific registers": (
        "ibpb", "ibrs", "amd-ssbd", "amd-stibp", "virt-ssbd",
        "flush-l1d", "core-capability", "pdcm", "perfctr", "osvw", "ibs", "acpi", "tm", "ds", "pbe", "est", "dca",
        "lwp", "intel-pt", "arch-lbr", "split-lock", "tsc-adjust",
    ),
    "the modelled local APIC has it not": ("tsc-deadline", "extapic"),
    "it follows from the number of vCPUs, which are cores without threads": ("ht", "cmp-legacy", "topoext"),
}  # fmt: skip
"""Why a feature is not executed, by how its name begins; of all others the engine does not know the instruction."""
_UNKNOWN = "the engine does not know it"

ENGINE_WORDS = {
    "1.edx": 0, "1.ecx": 1, "7.ebx": 2, "7.ecx": 3, "7.edx": 4, "80000001.edx": 6, "80000001.ecx": 7, "80000008.ebx": 9,
    "d.1.eax": 19, "6.eax": 20,
}  # fmt: skip
"""Where the engine keeps CPUID's words, as numbers of its ``FeatureWord``."""
XSAVE_COMPONENTS_WORD = 21

_ALIASES = 0x0183F3FF
"""Bits of leaf 1, EDX, that AMD repeats in leaf 0x80000001."""
_X87_SSE, _PKRU = 0b11, 1 << 9
_LEGACY_AREA, _PKRU_AT, _PKRU_BYTES = 0x240, 0xA80, 8
_HIGHEST, _HIGHEST_EXTENDED = 0xD, 0x80000008
_HYPERVISOR_SIGNATURE, _HYPERVISOR_HIGHEST = b"TCGTCGTCGTCG", 0x40000001
"""As QEMU's TCG shows itself, whose translator the engine's is."""
_CACHE_LINE = 64
_CACHES = ((1, 1, 64, 8), (2, 1, 64, 8), (3, 2, 1024, 8), (3, 3, 16384, 16))
"""Type, level, sets and ways of each cache: 32 KiB of data and of code, 512 KiB and 16 MiB."""
_CR4_BITS = {
    "tsc": 2, "de": 3, "pse": 4, "pae": 5, "mce": 6, "pge": 7, "fxsr": 9, "sse": 10, "umip": 11, "la57": 12,
    "fsgsbase": 16, "xsave": 18, "smep": 20, "smap": 21, "pku": 22,
}  # fmt: skip
_CR4_PCE = 1 << 8
_EFER_BITS = {"syscall": 1 << 0, "lm": 1 << 8 | 1 << 10, "nx": 1 << 11}
_ALL = (1 << 64) - 1


class Leaf(NamedTuple):
    """EAX, EBX, ECX and EDX of one CPUID leaf."""

    eax: int
    ebx: int
    ecx: int
    edx: int


_ZERO = Leaf(0, 0, 0, 0)


class Processor(NamedTuple):
    """What one modelled processor is and has."""

    model: CpuModel
    features: frozenset[str]
    left_out: tuple[str, ...]
    """What QEMU's model has besides, by name."""
    address_bits: int = ADDRESS_BITS
    """Of guest-physical addresses."""

    @property
    def is_amd(self) -> bool:
        """Whether it says that it is AMD's (or Hygon's, which is the same)."""
        return self.model.vendor in ("AuthenticAMD", "HygonGenuine")

    @property
    def cr4_reserved(self) -> int:
        """Bits of CR4 that raise #GP where they are set."""
        return _ALL & ~(_CR4_PCE | sum(1 << bit for name, bit in _CR4_BITS.items() if name in self.features))

    @property
    def efer_reserved(self) -> int:
        """Bits of EFER that raise #GP where they are set."""
        return _ALL & ~sum(bit for name, bit in _EFER_BITS.items() if name in self.features)

    @property
    def xsave_components(self) -> int:
        """Bits of XCR0 that may be set."""
        return 0 if "xsave" not in self.features else _X87_SSE | (_PKRU if "pku" in self.features else 0)

    def word(self, name: str) -> int:
        """One of CPUID's words of features."""
        return _words(self.features).get(name, 0)

    def answer(self, leaf: int, index: int) -> Leaf:
        """CPUID; what follows the processor's state is as after reset."""
        highest = max(self.model.level, _HIGHEST if "xsave" in self.features else 7)
        if leaf >= 0x80000000:
            return self._extended(leaf)
        if 0x40000000 <= leaf <= _HYPERVISOR_HIGHEST and "hypervisor" in self.features:
            words = struct.unpack("<3I", _HYPERVISOR_SIGNATURE)
            return Leaf(_HYPERVISOR_HIGHEST, *words) if leaf == 0x40000000 else _ZERO
        if leaf == 0:
            return self._vendor(min(highest, _HIGHEST))
        if leaf == 1:
            one_processor = 1 << 16 | _CACHE_LINE // 8 << 8
            return Leaf(self.model.signature, one_processor, self.word("1.ecx"), self.word("1.edx"))
        if leaf == 2 and not self.is_amd:
            return Leaf(0x01, 0, 0xFF, 0)  # the caches are in leaf 4
        if leaf == 4 and not self.is_amd:
            return _cache(index)
        if leaf == 6:
            return Leaf(self.word("6.eax"), 0, 0, 0)
        if leaf == 7 and index == 0:
            return Leaf(0, self.word("7.ebx"), self.word("7.ecx"), self.word("7.edx"))
        if leaf == 0xB:
            return Leaf(0, 1, index | (index + 1) << 8, 0) if index < 2 else Leaf(0, 0, index & 0xFF, 0)
        return self._extended_state(index) if leaf == 0xD else _ZERO

    def _vendor(self, highest: int) -> Leaf:
        ebx, edx, ecx = struct.unpack("<3I", self.model.vendor.encode())
        return Leaf(highest, ebx, ecx, edx)

    def _extended_state(self, index: int) -> Leaf:
        components = self.xsave_components
        if not components:
            return _ZERO
        if index == 0:
            size = _PKRU_AT + _PKRU_BYTES if components & _PKRU else _LEGACY_AREA
            return Leaf(components, _LEGACY_AREA, size, 0)
        if index == 1:
            return Leaf(self.word("d.1.eax"), 0, 0, 0)
        return Leaf(_PKRU_BYTES, _PKRU_AT, 0, 0) if 1 << index == components & _PKRU else _ZERO

    def _extended(self, leaf: int) -> Leaf:
        number = leaf - 0x80000000
        if number == 0:
            highest = min(self.model.xlevel, _HIGHEST_EXTENDED)
            return self._vendor(highest) if self.is_amd else Leaf(highest, 0, 0, 0)
        if number == 1:
            repeated = self.word("1.edx") & _ALIASES if self.is_amd else 0
            signature = self.model.signature if self.is_amd else 0
            return Leaf(signature, 0, self.word("80000001.ecx"), self.word("80000001.edx") | repeated)
        if 2 <= number <= 4:
            words = struct.unpack_from(
                "<4I", self.model.model_id.encode().ljust(48, b"\0"), 16 * (number - 2)
            )
            return Leaf(*words)
        if number == 5 and self.is_amd:
            return Leaf(
                0, 0, 32 << 24 | 8 << 16 | 1 << 8 | _CACHE_LINE, 32 << 24 | 8 << 16 | 1 << 8 | _CACHE_LINE
            )
        if number == 6:
            l2 = 512 << 16 | 6 << 12 | 1 << 8 | _CACHE_LINE
            return Leaf(0, 0, l2, 32 << 18 | 8 << 12 | 1 << 8 | _CACHE_LINE if self.is_amd else 0)
        if number == 8:
            linear = 57 if "la57" in self.features else 48
            return Leaf(linear << 8 | self.address_bits, self.word("80000008.ebx"), 0, 0)
        return _ZERO


def default_cpu(kind: GuestKind) -> CpuChoice:
    """What a guest gets that asks for none."""
    return CpuChoice(SEV_DEFAULT if kind.is_confidential else MAX)


@functools.cache
def everything() -> Processor:
    """AMD's with all that is executed, for VMMs that say themselves what of it their guests see."""
    return Processor(find_model("EPYC-Milan"), EXECUTED - {"la57"} - _INTELS, ())


@functools.cache
def _words(found: frozenset[str]) -> dict[str, int]:
    """CPUID's words of features that have these."""
    words: dict[str, int] = {}
    for feature, (word, bit) in features().items():
        if feature in found:
            words[word] = words.get(word, 0) | 1 << bit
    return words


def _cache(index: int) -> Leaf:
    if index >= len(_CACHES):
        return _ZERO
    kind, level, sets, ways = _CACHES[index]
    return Leaf(kind | level << 5 | 1 << 8, (ways - 1) << 22 | _CACHE_LINE - 1, sets - 1, 0)


def reason(feature: str) -> str:
    """Why a feature is not executed."""
    return next((why for why, starts in _REASONS.items() if feature.startswith(starts)), _UNKNOWN)


@functools.cache
def make_processor(choice: CpuChoice) -> Processor:
    """The processor of that choice. Raises SpecError if it is to have what is not executed."""
    model = find_model(choice.model)
    wanted = EXECUTED - _ONLY_ASKED_FOR if choice.model == MAX else model.features
    for name in sorted(choice.added - EXECUTED):
        raise SpecError(f"CPU feature {name} cannot be had: {reason(name)}", "leave it out")
    left_out = sorted(wanted - EXECUTED - choice.removed)
    if left_out and choice.enforce:
        why = "; ".join(f"{name}: {reason(name)}" for name in left_out[:3])
        raise SpecError(f"CPU model {choice.model} has what cannot be had ({why})", "leave enforce out")
    found = (wanted & EXECUTED | choice.added) - choice.removed
    return Processor(model, _without_dependents(found), tuple(left_out), choice.phys_bits or ADDRESS_BITS)


_NEEDED = {
    "rdseed": "rdrand", "xsaveopt": "xsave", "xgetbv1": "xsave", "pku": "xsave", "sse2": "sse", "pni": "sse2",
    "ssse3": "pni", "sse4.1": "ssse3", "sse4.2": "sse4.1", "aes": "sse2", "pclmulqdq": "sse2", "sse": "fxsr",
    "3dnowext": "3dnow",
}  # fmt: skip


def _without_dependents(found: frozenset[str]) -> frozenset[str]:
    """Without what makes no sense alone, as XSAVEOPT without XSAVE."""
    while lost := {name for name, needed in _NEEDED.items() if name in found and needed not in found}:
        found -= lost
    return found


def list_models() -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, description and what is left out of each model that can be chosen."""
    found = []
    for name in model_names():
        processor = make_processor(CpuChoice(name))
        text = "all that can be executed" if name == MAX else processor.model.model_id
        found.append((name, text, processor.left_out))
    return found
