"""The numbers of ``casemate.abi.userfaultfd`` against the kernel headers that are installed, asked by a C compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from casemate.abi import userfaultfd as abi
from casemate.abi.layout import Struct

HEADER = Path("/usr/include/linux/userfaultfd.h")
NUMBERS = {
    **{ioctl.name: int(ioctl) for ioctl in abi.Ioctl},
    **{f"UFFD_FEATURE_{feature.name}": int(feature) for feature in abi.Feature},
    "UFFD_EVENT_PAGEFAULT": abi.EVENT_PAGEFAULT,
    "UFFD_PAGEFAULT_FLAG_WP": abi.PAGEFAULT_FLAG_WP,
    "UFFDIO_REGISTER_MODE_WP": abi.REGISTER_MODE_WP,
    "UFFDIO_WRITEPROTECT_MODE_WP": abi.WRITEPROTECT_MODE_WP,
    "SYS_userfaultfd": abi.SYSCALL,
    "UFFD_API": abi.API,
}
STRUCTS: dict[str, type[Struct]] = {
    "uffdio_api": abi.UffdioApi,
    "uffdio_range": abi.UffdioRange,
    "uffdio_register": abi.UffdioRegister,
    "uffdio_writeprotect": abi.UffdioWriteprotect,
    "uffd_msg": abi.UffdMsg,
}
FIELDS = {
    "offsetof(struct uffd_msg, arg.pagefault.flags)": abi.UffdMsg.flags.offset,
    "offsetof(struct uffd_msg, arg.pagefault.address)": abi.UffdMsg.address.offset,
    "offsetof(struct uffdio_register, mode)": abi.UffdioRegister.mode.offset,
    "offsetof(struct uffdio_writeprotect, mode)": abi.UffdioWriteprotect.mode.offset,
}


def test_header_userfaultfd_numbers(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not HEADER.exists():
        pytest.skip("no C compiler, or no kernel headers")
    sizes = {f"sizeof(struct {name})": ctypes.sizeof(struct) for name, struct in STRUCTS.items()}
    expected = NUMBERS | sizes | FIELDS
    lines = [f'printf("%llu\\n", (unsigned long long)({name}));' for name in expected]
    includes = ["<stdio.h>", "<stddef.h>", "<sys/syscall.h>", "<sys/ioctl.h>", "<linux/userfaultfd.h>"]
    source = "".join(f"#include {name}\n" for name in includes) + "int main(void) {" + "".join(lines) + "}"
    if "USERFAULTFD_IOC_NEW" not in HEADER.read_text():
        pytest.skip("the installed header is older than /dev/userfaultfd (Linux 6.1)")
    (tmp_path / "numbers.c").write_text(source)
    subprocess.run([compiler, "-o", tmp_path / "numbers", tmp_path / "numbers.c"], check=True)
    found = subprocess.check_output([tmp_path / "numbers"], text=True).split()
    assert dict(zip(expected, map(int, found), strict=True)) == expected
