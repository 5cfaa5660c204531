"""Features of an encrypted vCPU (AMD APM volume 2, table B-4, SEV_FEATURES)."""

from __future__ import annotations

from enum import IntFlag

from casemate.abi.sev import save_area


class SevFeatures(IntFlag):
    """``sev_features`` of the save area, as far as Linux allows them (arch/x86/include/asm/svm.h)."""

    SNP_ACTIVE = save_area.SNP_ACTIVE
    RESTRICTED_INJECTION = 1 << 3
    ALTERNATE_INJECTION = 1 << 4
    DEBUG_SWAP = save_area.DEBUG_SWAP
    SECURE_TSC = 1 << 9
    SECURE_AVIC = 1 << 16
