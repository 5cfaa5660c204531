"""Which KVM modules this machine has loaded, and their parameters (Linux sysfs, /sys/module)."""

from __future__ import annotations

import os

VENDOR_MODULES = ("kvm_amd", "kvm_intel", "kvm_pvm")
"""Exactly one of them runs guests; kvm_pvm does it in software, with supervisor code interpreted."""

_SYSFS = "/sys/module"


def loaded_vendor_module() -> str | None:
    """The one of ``VENDOR_MODULES`` that is loaded or built in."""
    return next((name for name in VENDOR_MODULES if os.path.isdir(f"{_SYSFS}/{name}")), None)


def module_parameters(name: str) -> dict[str, str] | None:
    """Parameters of a module, as far as they can be read; None if it is not loaded."""
    if not os.path.isdir(f"{_SYSFS}/{name}"):
        return None
    try:
        names = sorted(os.listdir(f"{_SYSFS}/{name}/parameters"))
    except OSError:
        return {}
    values = {parameter: module_parameter(name, parameter) for parameter in names}
    return {parameter: value for parameter, value in values.items() if value is not None}


def module_parameter(name: str, parameter: str) -> str | None:
    """One parameter of a module; None if it is not loaded, has none of this name, or it cannot be read."""
    try:
        with open(f"{_SYSFS}/{name}/parameters/{parameter}", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None
