"""Model-specific register numbers (Intel SDM volume 4; AMD APM volume 2, appendix A)."""

from __future__ import annotations

from typing import Final

TSC: Final = 0x10
APIC_BASE: Final = 0x1B
FEATURE_CONTROL: Final = 0x3A
SPEC_CTRL: Final = 0x48
PRED_CMD: Final = 0x49
MICROCODE_REVISION: Final = 0x8B
MTRR_CAP: Final = 0xFE
ARCH_CAPABILITIES: Final = 0x10A
SYSENTER_CS: Final = 0x174
SYSENTER_ESP: Final = 0x175
SYSENTER_EIP: Final = 0x176
MCG_CAP: Final = 0x179
MCG_STATUS: Final = 0x17A
MISC_ENABLE: Final = 0x1A0
MTRR_PHYS_BASE0: Final = 0x200
MTRR_PHYS_MASK7: Final = 0x20F
MTRR_FIX64K_00000: Final = 0x250
MTRR_FIX4K_F8000: Final = 0x26F
PAT: Final = 0x277
TSC_DEADLINE: Final = 0x6E0
MTRR_DEF_TYPE: Final = 0x2FF
EFER: Final = 0xC0000080
STAR: Final = 0xC0000081
LSTAR: Final = 0xC0000082
CSTAR: Final = 0xC0000083
FMASK: Final = 0xC0000084
FS_BASE: Final = 0xC0000100
KERNEL_GS_BASE: Final = 0xC0000102
TSC_AUX: Final = 0xC0000103

NOT_VULNERABLE: Final = 0b1111011 | 1 << 8 | 0b111 << 13 | 1 << 20 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 62
"""All bits of ARCH_CAPABILITIES that deny a weakness (Intel SDM volume 4, table 2-2)."""

APIC_BASE_BSP: Final = 1 << 8
APIC_BASE_X2APIC: Final = 1 << 10
APIC_BASE_ENABLE: Final = 1 << 11
EFER_LMA: Final = 1 << 10
APIC_BASE_RESET: Final = 0xFEE00000 | APIC_BASE_ENABLE | APIC_BASE_BSP
