"""Where the tests find real firmware: unpacked or installed (Debian packages ovmf, seabios, linux-image)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def firmware_roots() -> Iterator[Path]:
    """Folders that hold usr/share/...: $CASEMATE_FIRMWARE, the user's cache, the system."""
    for name in os.environ.get("CASEMATE_FIRMWARE", "").split(":"):
        if name:
            yield Path(name)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "casemate" / "firmware"
    yield from sorted(cache.glob("*/"))
    yield Path("/")


def find_images() -> list[Path]:
    """Every x86 firmware file there is, without links to others."""
    patterns = ("usr/share/OVMF/*.fd", "usr/share/ovmf/*.fd", "usr/share/seabios/bios*.bin")
    found = [path for root in firmware_roots() for pattern in patterns for path in sorted(root.glob(pattern))]
    return [path for path in found if not path.is_symlink()]


def require_kernel(release: str = "") -> Path:
    """A cloud kernel of a release, or of any; skips without one."""
    for root in firmware_roots():
        if release in str(root):
            for path in sorted(root.glob("boot/vmlinuz-*cloud-amd64")):
                return path
    pytest.skip(
        f"no kernel of {release or 'Debian'}: unpack linux-image-...-cloud-amd64 into $CASEMATE_FIRMWARE"
    )


def require_image(name: str, release: str = "") -> Path:
    """The first image called ``name`` in a folder whose name contains ``release``; skips without one."""
    for path in find_images():
        if path.name == name and release in str(path):
            return path
    where = f" of {release}" if release else ""
    pytest.skip(f"no {name}{where}: unpack the package into $CASEMATE_FIRMWARE or install it")
