"""What lies in each root: suite, packages, and whether it is a folder or a disk (mmdebstrap(1))."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

SUITES = ("bookworm", "trixie", "sid")

_PYTHON = ("ca-certificates", "python3")
_VENV = ("python3-venv",)
_HYPERVISORS = (
    "libpython3-dev",
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-system",
    "ovmf",
    "procps",
    "qemu-system-x86",
)
_DISK = ("e2fsprogs", "kmod", "linux-image-cloud-amd64", "systemd-sysv", "udev")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One root: its name, what it is for, and what mmdebstrap is asked for."""

    name: str
    suite: str
    packages: tuple[str, ...]
    what: str
    is_disk: bool = False

    @property
    def fingerprint(self) -> str:
        """Changes when a root of this name must be made anew."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def _of_suite(suite: str) -> tuple[Recipe, ...]:
    return (
        Recipe(f"{suite}-bare", suite, _PYTHON, "python3 alone, without python3-venv"),
        Recipe(suite, suite, _PYTHON + _VENV, "python3 and python3-venv"),
        Recipe(
            f"{suite}-full", suite, _PYTHON + _VENV + _HYPERVISORS, "and QEMU, libvirt, OVMF and libpython3"
        ),
    )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        *(recipe for suite in SUITES for recipe in _of_suite(suite)),
        Recipe("disk", "bookworm", _DISK, "an ext4 root disk for guests, its kernel and its initrd", True),
        Recipe(
            "disk-trixie", "trixie", _DISK, "the same with Linux 6.12, which has reports in configfs", True
        ),
    )
}
"""Every root, by name."""
