"""``casemate boot --kernel`` of multiboot and PVH kernels, and ``--test-device`` (docs/guide/boot.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.booting import BootCli
from support.elf_images import LOAD_AT, code, elf, multiboot_header, pvh_note

RUN = ("--host", "model", "--json", "--timeout", "20")
TELL = "out 0xf4, al; hlt;"


def written(path: Path, image: bytes) -> Path:
    path.write_bytes(image)
    return path


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """Prints its command line, and its first module's words and contents."""
    source = f"""
        cmp eax, 0x2badb002
        jne wrong
        mov esi, [ebx + 16]
        call print
        mov edi, [ebx + 24]         # the first module
        mov esi, [edi + 8]
        call print
        mov esi, [edi]
        call print
        mov al, 3
        {TELL}
        wrong: mov al, 1; {TELL}
    """
    return written(tmp_path / "hello.elf", elf(code(source) + multiboot_header(), LOAD_AT))


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_multiboot_kernel_prints_what_it_was_given(hello: Path, machine: str, boot_cli: BootCli) -> None:
    module = written(hello.parent / "module", b"contents\0")
    ended = boot_cli(
        *RUN, "--machine", machine, "--kernel", hello, "--initrd", f"{module} words;", "--append", "one two;"
    )
    assert ended.document["serial"] == f"{hello} one two;{module} words;contents"
    assert (ended.code, ended.document["exit_port"]) == (0, 3)


def test_kernel_finds_the_rsdp_where_a_bios_has_it(tmp_path: Path, boot_cli: BootCli) -> None:
    source = f"""
        mov esi, 0xf0000
        xor eax, eax
        mov ecx, 20
    sum: add al, [esi]; inc esi; loop sum
        or al, [0xf0000]            # R
        {TELL}
    """
    kernel = written(tmp_path / "k", elf(code(source), note=pvh_note()))
    assert boot_cli(*RUN, "--kernel", kernel).document["exit_port"] == ord("R")


def test_test_device_makes_the_guests_value_the_exit_code(hello: Path, boot_cli: BootCli) -> None:
    module = written(hello.parent / "module", b"\0")
    ended = boot_cli(*RUN, "--test-device", "--kernel", hello, "--initrd", module)
    assert (ended.code, ended.document["exit_code"], ended.document["exit_port"]) == (7, 7, 3)
    line = (
        "--",
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=0x4",
        "-device",
        "pc-testdev",
        "-kernel",
        hello,
    )
    assert boot_cli(*RUN, *line, "-initrd", module).code == 7


def test_zero_of_the_guest_is_no_success(tmp_path: Path, boot_cli: BootCli) -> None:
    kernel = written(
        tmp_path / "k", elf(code("xor eax, eax; mov edx, 0xf6; out dx, eax; hlt;"), note=pvh_note())
    )
    assert boot_cli(*RUN, "--test-device", "--kernel", kernel).code == 1


def test_pc_testdev_keeps_what_is_written_and_pulls_interrupts(tmp_path: Path, boot_cli: BootCli) -> None:
    source = """
        mov edx, 0xe0; mov eax, 0x04030201; out dx, eax
        mov edx, 0xe9; in al, dx                    # its second byte
        mov [0x5000], al
        mov edx, 0xe4; mov eax, 0x5000; out dx, eax
        mov dword [0xff000010], 0x5040
        mov al, [0xff000010]
        mov [0x5001], al
        mov al, 0x11; out 0x20, al; mov al, 0x20; out 0x21, al; mov al, 4; out 0x21, al; mov al, 1; out 0x21, al
        mov edx, 0x2005; mov al, 1; out dx, al      # line 5
        mov al, 0x0a; out 0x20, al; in al, 0x20     # the 8259's requests
        add al, [0x5000]
        add al, [0x5001]
    """
    kernel = written(tmp_path / "k", elf(code(source + TELL), note=pvh_note()))
    assert boot_cli(*RUN, "--test-device", "--kernel", kernel).document["exit_port"] == 2 + 0x40 + 0x20
    without = boot_cli(*RUN, "--kernel", kernel).document
    assert without["exit_port"] != 2 + 0x40 + 0x20
    assert {"kind": "port write", "where": 0xE0, "count": 1} in without["unclaimed"]


def test_pvh_kernel_starts_in_protected_mode_without_paging(tmp_path: Path, boot_cli: BootCli) -> None:
    source = f"""
        cmp dword [ebx], 0x336ec578
        jne wrong
        mov esi, [ebx + 24]
        call print
        mov eax, cr0
        {TELL}
        wrong: mov al, 2; {TELL}
    """
    kernel = written(tmp_path / "k", elf(code(source), bits=64, note=pvh_note(size=8)))
    document = boot_cli(*RUN, "--kernel", kernel, "--append", "words").document
    assert (document["serial"], document["exit_port"]) == ("words", 0x11)


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (bytes(8192), "no Linux kernel (no HdrS), no multiboot image and no ELF file with a PVH entry"),
        (elf(b"code"), "no ELF file with a PVH entry"),
        (elf(b"code", machine=183), "this ELF file is for machine 183"),
        (elf(multiboot_header(1 << 7)), "requires unknown features 0x80"),
        (elf(b"code", note=pvh_note(), at=0x80000000), "wants memory at 0x80000000"),
        (elf(b"code", note=pvh_note())[:100], "ends inside of a segment"),
    ],
)
def test_wrong_kernels_are_refused_in_words(
    image: bytes, cause: str, tmp_path: Path, boot_cli: BootCli
) -> None:
    kernel = written(tmp_path / "k", image)
    ended = boot_cli(*RUN, "--kernel", kernel)
    assert ended.code == 4
    assert cause in ended.err


@pytest.mark.parametrize("words", [("--guest", "sev"), ("--guest", "snp")])
def test_confidential_guests_start_no_such_kernel(
    words: tuple[str, ...], tmp_path: Path, boot_cli: BootCli
) -> None:
    kernel = written(tmp_path / "k", elf(b"code", note=pvh_note()))
    ended = boot_cli(*RUN, *words, "--kernel", kernel)
    assert ended.code == 4
    assert "start in plain guests alone" in ended.err
    assert boot_cli(*RUN, *words, "--test-device", "--kernel", kernel).code == 4
