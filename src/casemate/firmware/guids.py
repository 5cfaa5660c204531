"""The GUIDs that guest firmware is put together from (edk2 OvmfPkg/ResetVector, MdePkg/Include/Guid).

A GUID is kept as the 16 bytes that files hold: its first three fields are little-endian there.
"""

from __future__ import annotations

GUID_SIZE = 16
"""Bytes."""


def guid(text: str) -> bytes:
    """The 16 bytes, as in a file, of a GUID written ``96b582de-1fb2-45f7-baea-a366c55a082d``."""
    big = bytes.fromhex(text.replace("-", ""))
    return big[3::-1] + big[5:3:-1] + big[7:5:-1] + big[8:]


def guid_text(raw: bytes) -> str:
    """How people write the GUID that a file holds as ``raw`` (16 bytes)."""
    parts = (raw[3::-1], raw[5:3:-1], raw[7:5:-1], raw[8:10], raw[10:16])
    return "-".join(part.hex() for part in parts)


TABLE_FOOTER = guid("96b582de-1fb2-45f7-baea-a366c55a082d")
"""Closes the GUIDed table at the end of the image."""
SEV_ES_RESET_BLOCK = guid("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
SEV_SECRET_BLOCK = guid("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
SEV_HASH_TABLE_BLOCK = guid("7255371f-3a3b-4b04-927b-1da6efa8d454")
SEV_METADATA_OFFSET = guid("dc886566-984a-4798-a75e-5585a7bf67cc")
TDX_METADATA_OFFSET = guid("e47a6535-984a-4798-865e-4685a7bf8ec2")
IGVM_PARAMETER_OFFSET = guid("784fa70e-3176-4677-8a20-04b68699e374")
SVSM_INFO = guid("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")

KERNEL_HASH_ENTRY = guid("4de79437-abd2-427f-b835-d5b172d2045b")
"""The kernel's entry in the table of kernel hashes."""

TABLE_ENTRY_NAMES = {
    SEV_ES_RESET_BLOCK: "SEV-ES reset block",
    SEV_SECRET_BLOCK: "SEV launch-secret area",
    SEV_HASH_TABLE_BLOCK: "SEV kernel-hashes area",
    SEV_METADATA_OFFSET: "SEV metadata",
    TDX_METADATA_OFFSET: "TDX metadata",
    IGVM_PARAMETER_OFFSET: "IGVM parameter metadata",
    SVSM_INFO: "SVSM info",
}

TDVF_HEADER = guid("e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae")
"""Lies right before the TDX metadata."""

FFS2 = guid("8c8ce578-8a3d-4f1c-9935-896185c32dd3")
FFS3 = guid("5473c07a-3dcb-4dca-bd6f-1e9689e7349a")
NVRAM_VOLUME = guid("fff12b8d-7696-4c8b-a985-2747075b4f50")
"""File system GUID of a volume that holds a variable store."""
VARIABLE_STORE = guid("ddcf3616-3275-4164-98b6-fe85707ffe7d")
AUTHENTICATED_VARIABLE_STORE = guid("aaf32c78-947b-439a-a180-2e144ec37792")

LZMA_SECTION = guid("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
"""A GUID-defined section that holds an LZMA stream."""
SMM_ACCESS_PEIM = guid("6c0e75b4-b0b9-44d1-8210-3377d7b4e066")
"""OvmfPkg/SmmAccess/SmmAccessPei: only in builds with SMM_REQUIRE."""
SECURE_BOOT_DRIVER = guid("f0e6a44f-7195-41c3-ac64-54f202cd0a21")
"""SecureBootConfigDxe, which is in builds with Secure Boot alone."""
AMD_SEV_DRIVER = guid("2ec9da37-ee35-4de9-86c5-6d9a81dc38a7")
"""OvmfPkg/AmdSevDxe: a build without it cannot run in encrypted memory."""
TDX_DRIVER = guid("e750224e-7bce-40af-b5bb-47e3611eb5c2")
"""OvmfPkg/TdxDxe."""

CAPSULES = {
    guid("3b6686bd-0d76-4030-b70e-b5519e2fc5a0"): "EFI capsule",
    guid("6dcbd5ed-e82d-4c44-bda1-7194199ad92a"): "firmware management capsule",
    guid("4a3ca68b-7723-48fb-803d-578cc1fec44d"): "APTIO capsule",
}
