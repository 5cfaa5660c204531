"""The instruction behind a write, found by decoding what could end at RIP (no host needed)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from casemate.abi.kvm.structs import Regs, Sregs
from casemate.host.write_target import find_write, write_targets

RIP = 0x100000
TARGET = 0xFFE00010
PAD = bytes.fromhex("48894d48") * 4  # what precedes may look like a prefix: it ends in 0x48


def registers(**values: int) -> Regs:
    regs = Regs()
    for name, value in {
        "rip": RIP,
        "rbx": TARGET,
        "rdi": TARGET,
        "rcx": 0x1122334455667788,
        **values,
    }.items():
        setattr(regs, name, value)
    return regs


def found(code: str, size: int, regs: Regs, after: str = "90") -> int | None:
    """How many bytes before RIP the write begins."""
    before = (PAD + bytes.fromhex(code))[-15:]
    start = find_write(before, bytes.fromhex(after), 64, regs, Sregs(), lambda gva: gva == TARGET, size)
    return None if start is None else RIP - start


@pytest.mark.parametrize(
    ("code", "size", "length"),
    [
        ("c60377", 1, 3),  # mov byte [rbx], 0x77
        ("890b", 4, 2),  # mov [rbx], ecx
        ("48890b", 8, 3),  # mov [rbx], rcx
        ("66890b", 2, 3),  # mov [rbx], cx
        ("408833", 1, 3),  # mov [rbx], sil, which without its prefix would be dh
        ("f00fba2b00", 4, 4),  # lock bts dword [rbx], 0: 0xF0 can as well end what precedes
        ("0f1103", 8, 3),  # movups, the first half
        ("c60510fddeff77", 1, None),  # RIP-relative, to somewhere else
        ("9090", 1, None),
    ],
)
def test_store_is_found_behind_its_back(code: str, size: int, length: int | None) -> None:
    assert found(code, size, registers()) == length


def test_string_store_that_repeats_is_the_one_at_rip() -> None:
    assert found("90", 1, registers(rdi=TARGET + 1), after="f3aa") == 0


def test_push_is_found_although_it_moved_its_pointer() -> None:
    assert found("51", 8, registers(rsp=TARGET)) == 1


@pytest.mark.parametrize(
    ("code", "size", "value"),
    [
        ("c60377", 1, 0x77),
        ("48890b", 8, 0x1122334455667788),
        ("882b", 1, 0x77),  # mov [rbx], ch
        ("66c7033412", 2, 0x1234),
        ("48c703ffffffff", 8, 0xFFFFFFFFFFFFFFFF),  # mov qword [rbx], -1
        ("800b01", 1, None),  # or: what it writes depends on what is there
    ],
)
def test_value_of_a_plain_mov(code: str, size: int, value: int | None) -> None:
    targets = list(write_targets(bytes.fromhex(code), 64, registers(), Sregs()))
    assert [(target.gva, target.size, target.value) for target in targets] == [(TARGET, size, value)]


_ALONE = """
import sys
from casemate.host.decoder import Decoder
assert "iced_x86.Code" not in sys.modules and "iced_x86" not in sys.modules
import iced_x86
assert iced_x86.Decoder is Decoder and iced_x86.Code.NOPD and iced_x86.Mnemonic.MOV
"""
_AFTER = """
import iced_x86
from casemate.host import decoder
assert iced_x86.Decoder is decoder.Decoder and iced_x86.OpKind is decoder.OpKind
"""


@pytest.mark.parametrize("program", [_ALONE, _AFTER])
def test_the_decoder_is_loaded_without_the_names_of_its_package_which_can_be_loaded_before_and_after(
    program: str,
) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)
