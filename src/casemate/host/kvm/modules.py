"""Which KVM modules this machine has loaded, and their parameters (Linux sysfs, /sys/module)."""

from __future__ import annotations

from pathlib import Path

VENDOR_MODULES = ("kvm_amd", "kvm_intel", "kvm_pvm")
"""Exactly one of them runs guests; kvm_pvm does it in software, with supervisor code interpreted."""

_SYSFS = Path("/sys/module")


def loaded_vendor_module() -> str | None:
    """The one of ``VENDOR_MODULES`` that is loaded or built in."""
    return next((name for name in VENDOR_MODULES if (_SYSFS / name).is_dir()), None)


def module_parameters(name: str) -> dict[str, str] | None:
    """Parameters of a module, as far as they can be read; None if it is not loaded."""
    folder = _SYSFS / name
    if not folder.is_dir():
        return None
    found = {}
    for path in sorted(folder.glob("parameters/*")):
        try:
            found[path.name] = path.read_text(errors="replace").strip()
        except OSError:
            continue
    return found
