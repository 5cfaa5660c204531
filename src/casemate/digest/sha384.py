"""SHA-384 for short commands (CPython Modules/sha2module.c): OpenSSL, which hashlib loads, takes longer than a digest.

Where CPython's own is not there, or goes by another name, it is hashlib's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import sha384
else:
    try:
        from _sha2 import sha384
    except ImportError:
        try:
            from _sha512 import sha384  # until Python 3.11
        except ImportError:
            from hashlib import sha384

__all__ = ["sha384"]
