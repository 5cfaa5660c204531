"""What an SNP guest's launch digest has of each page (AMD 56860 SEV-SNP firmware ABI, 8.17.2)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint16, c_uint64

from casemate.abi.layout import Struct
from casemate.abi.sev.snp import DIGEST_SIZE


class PageInfo(Struct):
    """PAGE_INFO: what is hashed for each page; its SHA-384 is the next ``digest_cur``."""

    SIZE = 0x70
    SOURCE = "AMD 56860, table 67"
    _fields_ = (
        ("digest_cur", c_uint8 * DIGEST_SIZE),
        ("contents", c_uint8 * DIGEST_SIZE),
        ("length", c_uint16),
        ("page_type", c_uint8),
        ("imi_page", c_uint8),
        ("vmpl3_perms", c_uint8),
        ("vmpl2_perms", c_uint8),
        ("vmpl1_perms", c_uint8),
        ("reserved", c_uint8),
        ("gpa", c_uint64),
    )
