"""SNP launch commands as bytes: a C program fills the kernel's own structs, our ioctls must hand over the same."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from errno import EAGAIN, EINVAL, EIO
from pathlib import Path

import pytest
from firmware_images import firmware_roots

from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.sev import SevCmd
from casemate.abi.layout import Struct
from casemate.abi.sev.commands import SevCommand
from casemate.abi.sev.snp import SnpPageType
from casemate.address import Gpa, GuestRange, Hva
from casemate.errors import FirmwareStatusError, HostError
from casemate.host.kvm.snp import KvmSnp
from casemate.host.slots import MemorySlot
from casemate.host.snp_processor import SnpFinish, SnpUpdate

PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include <linux/kvm.h>

static void show(const char *name, const void *data, size_t size)
{
    printf("%s ", name);
    for (size_t i = 0; i < size; i++)
        printf("%02x", ((const unsigned char *)data)[i]);
    printf("\n");
}

#define SHOW(name, value) show(name, &(value), sizeof(value))

int main(void)
{
    struct kvm_sev_init init = { .vmsa_features = 0x20 };
    SHOW("init", init);
    struct kvm_create_guest_memfd memfd = { .size = 0x200000 };
    SHOW("memfd", memfd);
    struct kvm_userspace_memory_region2 region = {
        .slot = 3, .flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = 0xffe00000, .memory_size = 0x200000,
        .userspace_addr = 0x7f0000000000, .guest_memfd_offset = 0x1000, .guest_memfd = 9 };
    SHOW("region", region);
    struct kvm_memory_attributes attributes = {
        .address = 0xffe00000, .size = 0x200000, .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE };
    SHOW("attributes", attributes);
    struct kvm_sev_snp_launch_start start = { .policy = 0xb0000 };
    memset(start.gosvw, 0xab, sizeof(start.gosvw));
    SHOW("start", start);
    struct kvm_sev_snp_launch_update update = {
        .gfn_start = 0xffe00, .uaddr = 0x7f0000000000, .len = 0x3000, .type = KVM_SEV_SNP_PAGE_TYPE_NORMAL };
    SHOW("update", update);
    struct kvm_sev_snp_launch_finish finish = { .id_block_en = 1, .auth_key_en = 1, .vcek_disabled = 1 };
    memset(finish.host_data, 0xcd, sizeof(finish.host_data));
    SHOW("finish", finish);
    printf("ids %d %d %d %d\n", KVM_SEV_INIT2, KVM_SEV_SNP_LAUNCH_START, KVM_SEV_SNP_LAUNCH_UPDATE,
           KVM_SEV_SNP_LAUNCH_FINISH);
    printf("sizes %d %d %zu\n", KVM_SEV_SNP_ID_BLOCK_SIZE, KVM_SEV_SNP_ID_AUTH_SIZE, sizeof(struct kvm_sev_cmd));
    printf("types %d %d %d %d %d\n", KVM_SEV_SNP_PAGE_TYPE_NORMAL, KVM_SEV_SNP_PAGE_TYPE_ZERO,
           KVM_SEV_SNP_PAGE_TYPE_UNMEASURED, KVM_SEV_SNP_PAGE_TYPE_SECRETS, KVM_SEV_SNP_PAGE_TYPE_CPUID);
    return 0;
}
"""
SINCE = "needs linux-libc-dev of 6.11 or newer (kvm_sev_snp_launch_start), older headers lack it"


def header_folders() -> Iterator[list[Path]]:
    """Include paths of unpacked and installed kernel headers."""
    for root in firmware_roots():
        include = root / "usr" / "include"
        if (include / "linux" / "kvm.h").exists():
            yield [include, include / "x86_64-linux-gnu"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the program printed, by name."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")
    folder = tmp_path_factory.mktemp("headers")
    (folder / "probe.c").write_text(PROGRAM)
    for include in header_folders():
        if "kvm_sev_snp_launch_start" not in (include[1] / "asm" / "kvm.h").read_text():
            continue
        options = [f"-isystem{path}" for path in include]
        subprocess.run([compiler, *options, "-o", folder / "probe", folder / "probe.c"], check=True)
        output = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
        return dict(line.split(" ", 1) for line in output.splitlines())
    pytest.skip(SINCE)


class Recorder:
    """A VM that writes every ioctl down; SEV commands without their envelope, which holds a pointer."""

    def __init__(self) -> None:
        self.calls: list[tuple[Ioctl, bytes]] = []
        self.commands: list[tuple[int, bytes]] = []
        self.failure: tuple[int, int] | None = None
        self.done = 0
        self.identity = b"", b""

    def __call__(self, request: Ioctl, struct: Struct) -> int:
        if request is not Ioctl.MEMORY_ENCRYPT_OP:
            self.calls.append((request, struct.to_bytes()))
            return 9
        assert isinstance(struct, SevCmd)
        assert (struct.pad0, struct.error, struct.sev_fd) == (0, 0, 5)
        size = {22: 48, 100: 64, 101: 64, 102: 88}[struct.id]
        self.commands.append((struct.id, ctypes.string_at(struct.data, size)))
        if struct.id == SevCommand.SNP_LAUNCH_UPDATE:
            fields = (ctypes.c_uint64 * 3).from_address(struct.data)
            done = self.done or fields[2]
            fields[0], fields[1], fields[2] = fields[0] + done // 4096, fields[1] + done, fields[2] - done
        if struct.id == SevCommand.SNP_LAUNCH_FINISH and self.commands[-1][1][16]:
            block, auth = (ctypes.c_uint64 * 2).from_address(struct.data)
            self.identity = ctypes.string_at(block, 96), ctypes.string_at(auth, 4096)
        if self.failure:
            struct.error, errno = self.failure
            raise HostError(request.kernel_name, errno)
        return 0


def launcher() -> tuple[KvmSnp, Recorder]:
    recorder = Recorder()
    return KvmSnp(recorder, 5), recorder


def test_memory_is_asked_for_in_the_kernels_bytes(expected: dict[str, str]) -> None:
    snp, recorder = launcher()
    memory = GuestRange(Gpa(0xFFE00000), 0x200000)
    assert snp.create_memory(0x200000) == 9
    snp.add_slot(MemorySlot(3, memory, Hva(0x7F0000000000)), 9, 0x1000)
    snp.set_private(memory)
    assert [(request, data.hex()) for request, data in recorder.calls] == [
        (Ioctl.CREATE_GUEST_MEMFD, expected["memfd"]),
        (Ioctl.SET_USER_MEMORY_REGION2, expected["region"]),
        (Ioctl.SET_MEMORY_ATTRIBUTES, expected["attributes"]),
    ]


def test_commands_are_the_kernels_bytes(expected: dict[str, str]) -> None:
    snp, recorder = launcher()
    snp.initialize(0x20)
    snp.launch_start(0xB0000, b"\xab" * 16)
    snp.launch_update(SnpUpdate(Gpa(0xFFE00000), Hva(0x7F0000000000), 0x3000, SnpPageType.NORMAL))
    snp.launch_finish(SnpFinish(b"b" * 96, b"a" * 4096, True, True, b"\xcd" * 32))
    init, start, update, (identifier, finish) = recorder.commands
    assert [data.hex() for _, data in (init, start, update)] == [
        expected[n] for n in ("init", "start", "update")
    ]
    assert finish[16:].hex() == expected["finish"][32:]  # the two addresses before it are ours to choose
    assert recorder.identity == (b"b" * 96, b"a" * 4096)
    assert [command for command, _ in recorder.commands] == [int(n) for n in expected["ids"].split()]
    assert identifier == SevCommand.SNP_LAUNCH_FINISH
    assert expected["sizes"] == f"96 4096 {SevCmd.SIZE}"
    types = [kind for kind in SnpPageType if kind is not SnpPageType.VMSA]
    assert expected["types"] == " ".join(str(int(kind)) for kind in types)


def test_update_is_left_where_the_kernel_was_interrupted() -> None:
    snp, recorder = launcher()
    recorder.failure, recorder.done = (0, EAGAIN), 0x2000
    update = SnpUpdate(Gpa(0xFFE00000), Hva(0x10000), 0x3000, SnpPageType.NORMAL)
    with pytest.raises(HostError) as caught:
        snp.launch_update(update)
    assert caught.value.errno == EAGAIN
    assert (update.gpa, update.hva, update.size) == (0xFFE02000, 0x12000, 0x1000)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [((0x0B, EIO), FirmwareStatusError), ((0xFFFFFFFF, EINVAL), HostError), ((0, EINVAL), HostError)],
)
def test_status_and_errno_are_told_apart(failure: tuple[int, int], kind: type[Exception]) -> None:
    snp, recorder = launcher()
    recorder.failure = failure
    with pytest.raises(kind, match="KVM_SEV_SNP_LAUNCH_FINISH"):
        snp.launch_finish(SnpFinish())
