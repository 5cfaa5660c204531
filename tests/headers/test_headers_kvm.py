"""The numbers of ``casemate.abi.kvm`` against the kernel headers that are installed, asked by a C compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.abi.kvm import structs
from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.exit_reasons import ExitReason, InternalErrorSuberror, SystemEvent
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.layout import Struct

HEADER = Path("/usr/include/linux/kvm.h")
FLAGS = {
    "KVM_MEM_LOG_DIRTY_PAGES": structs.MEM_LOG_DIRTY_PAGES,
    "KVM_MEM_READONLY": structs.MEM_READONLY,
    "KVM_MEM_GUEST_MEMFD": structs.MEM_GUEST_MEMFD,
    "KVM_MEMORY_ATTRIBUTE_PRIVATE": structs.MEMORY_ATTRIBUTE_PRIVATE,
    "KVM_CPUID_FLAG_SIGNIFCANT_INDEX": structs.CPUID_FLAG_SIGNIFICANT_INDEX,
    "KVM_PIT_SPEAKER_DUMMY": structs.PIT_SPEAKER_DUMMY,
    "KVM_IOEVENTFD_FLAG_DATAMATCH": structs.IOEVENTFD_DATAMATCH,
    "KVM_IOEVENTFD_FLAG_PIO": structs.IOEVENTFD_PIO,
    "KVM_IOEVENTFD_FLAG_DEASSIGN": structs.IOEVENTFD_DEASSIGN,
    "KVM_IRQFD_FLAG_DEASSIGN": structs.IRQFD_DEASSIGN,
    "KVM_IRQFD_FLAG_RESAMPLE": structs.IRQFD_RESAMPLE,
    "KVM_IRQ_ROUTING_IRQCHIP": structs.IRQ_ROUTING_IRQCHIP,
    "KVM_IRQ_ROUTING_MSI": structs.IRQ_ROUTING_MSI,
    "KVM_IRQCHIP_PIC_MASTER": structs.IRQCHIP_PIC_MASTER,
    "KVM_IRQCHIP_PIC_SLAVE": structs.IRQCHIP_PIC_SLAVE,
    "KVM_IRQCHIP_IOAPIC": structs.IRQCHIP_IOAPIC,
}
IN_MEMBER = {
    **dict.fromkeys((("kvm_irq_routing_entry", field) for field in ("irqchip", "pin")), "u.irqchip"),
    **dict.fromkeys(
        (("kvm_irq_routing_entry", field) for field in ("address_lo", "address_hi", "data")), "u.msi"
    ),
    ("kvm_guest_debug", "debugreg"): "arch",
}
"""Fields that are in a member of the struct, and that member."""
NEWER = {
    "KVM_SET_USER_MEMORY_REGION2": "6.8",
    "KVM_SET_MEMORY_ATTRIBUTES": "6.8",
    "KVM_CREATE_GUEST_MEMFD": "6.8",
    "KVM_MEMORY_ATTRIBUTE_PRIVATE": "6.8",
    "KVM_MEM_GUEST_MEMFD": "6.8",
    "KVM_EXIT_MEMORY_FAULT": "6.8",
    "KVM_CAP_USER_MEMORY2": "6.8",
    "KVM_CAP_MEMORY_FAULT_INFO": "6.8",
    "KVM_CAP_MEMORY_ATTRIBUTES": "6.8",
    "KVM_CAP_GUEST_MEMFD": "6.8",
    "KVM_CAP_VM_TYPES": "6.8",
    "KVM_X86_DEFAULT_VM": "6.8",
    "KVM_X86_SW_PROTECTED_VM": "6.8",
    "KVM_X86_SEV_VM": "6.10",
    "KVM_X86_SEV_ES_VM": "6.10",
    "KVM_X86_SNP_VM": "6.11",
    "KVM_X86_TDX_VM": "6.16",
    "KVM_PRE_FAULT_MEMORY": "6.11",
    "KVM_CAP_PRE_FAULT_MEMORY": "6.11",
    "KVM_CAP_X86_APIC_BUS_CYCLES_NS": "6.11",
    "KVM_CAP_X86_GUEST_MODE": "6.13",
}
"""Names that older headers lack, and the release that brought them."""
NEWER_STRUCTS = {
    "kvm_run.memory_fault": "KVM_EXIT_MEMORY_FAULT",
    "kvm_pre_fault_memory": "KVM_PRE_FAULT_MEMORY",
    "kvm_run.hypercall": "KVM_EXIT_MEMORY_FAULT",  # its flags had another name in Linux 6.1
}
"""Structs that older headers lack or have without a field, and a name that came with them or later."""


def macros() -> dict[str, int]:
    enums = (Ioctl, Capability, ExitReason, VmType)
    found = {member.kernel_name: int(member) for enum in enums for member in enum}
    found |= {f"KVM_INTERNAL_ERROR_{error.name}": int(error) for error in InternalErrorSuberror}
    found |= {f"KVM_SYSTEM_EVENT_{event.name}": int(event) for event in SystemEvent}
    return found | FLAGS


def declared() -> Iterator[tuple[str, type[Struct]]]:
    """Structs by the C names in their docstrings; ``kvm_run.io`` is a member of the union."""
    for kind in vars(structs).values():
        if isinstance(kind, type) and issubclass(kind, Struct) and kind is not Struct:
            name = re.search(r"``(kvm_[\w.]+)``", kind.__doc__ or "")
            assert name is not None, kind
            yield name[1], kind


def fields(kind: type[Struct]) -> list[str]:
    """Names of all fields but those that only fill."""
    return [field for field, *_ in kind._fields_ if not field.startswith("pad")]


def struct_probe(name: str, kind: type[Struct]) -> Iterator[str]:
    """Lines of C that print offsets and, of whole structs, sizes."""
    struct, _, member = name.partition(".")
    path = f"{member}." if member else ""
    for field in fields(kind):
        union = IN_MEMBER.get((name, field))
        where = f"{union}.{field}" if union else f"{path}{field}"
        yield f'printf("{name}.{field} %zu\\n", offsetof(struct {struct}, {where}));'
    if kind is not structs.RunHead:
        what = f"((struct {struct} *)0)->{member}" if member else f"struct {struct}"
        yield f'printf("{name} %zu\\n", sizeof({what}));'


def struct_values(name: str, kind: type[Struct]) -> dict[str, int]:
    base = structs.RUN_UNION if "." in name else 0
    values = {f"{name}.{field}": base + getattr(kind, field).offset for field in fields(kind)}
    return values if kind is structs.RunHead else values | {name: kind.SIZE}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the installed header says, by name."""
    compiler = shutil.which("cc")
    if compiler is None or not HEADER.exists():
        pytest.skip(f"needs a C compiler (cc) and {HEADER} (linux-libc-dev)")
    lines = [
        f'#ifdef {name}\nprintf("{name} %llu\\n", (unsigned long long){name});\n#endif' for name in macros()
    ]
    for name, kind in declared():
        lines += [f"#ifdef {NEWER_STRUCTS[name]}" if name in NEWER_STRUCTS else "#if 1"]
        lines += [*struct_probe(name, kind), "#endif"]
    source = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\nint main(void) {\n"
    folder = tmp_path_factory.mktemp("headers")
    (folder / "probe.c").write_text(source + "\n".join(lines) + "\nreturn 0; }\n")
    subprocess.run([compiler, "-o", folder / "probe", folder / "probe.c"], check=True)
    output = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in map(str.split, output.splitlines())}


def test_every_name_that_the_header_has_is_right(header: dict[str, int]) -> None:
    ours = macros()
    for name, kind in declared():
        ours |= struct_values(name, kind)
    assert {name: ours[name] for name in header} == header


def test_names_that_the_header_lacks_are_known_to_be_newer(header: dict[str, int]) -> None:
    lacking = [name for name in macros() if name not in header]
    print("not in this header:", ", ".join(f"{name} ({NEWER.get(name)})" for name in lacking) or "nothing")
    assert set(lacking) <= set(NEWER)
