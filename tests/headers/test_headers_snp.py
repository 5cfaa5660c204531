"""SNP launch commands as bytes: a C program fills the kernel's own structs, our ioctls must hand over the same."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from errno import EAGAIN, EINVAL, EIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.firmware_images import firmware_roots

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.guest_memfd import UserspaceMemoryRegion2
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.sev import SevCmd
from casemate.abi.kvm.snp import SnpLaunchUpdate
from casemate.abi.kvm.structs import CpuidEntry2
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.layout import Struct
from casemate.abi.sev.commands import SevCommand
from casemate.abi.sev.snp import SnpPageType
from casemate.address import Gpa, GuestRange, Hva
from casemate.confidential.preparation import LaunchOptions, prepare
from casemate.confidential.stages import launch
from casemate.errors import FirmwareStatusError, HostError, UnsupportedError
from casemate.host.clock import GuestClock
from casemate.host.kvm.snp import KvmSnp
from casemate.host.kvm.snp_cpuid import without_refused
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.secure_processor import SevSetup, VcpuReset
from casemate.host.slots import MemorySlot
from casemate.host.snp_processor import SnpFinish, SnpUpdate
from casemate.machine.console import Console
from casemate.machine.machine import Machine
from casemate.machine.recorder import Recorder as EventRecorder
from casemate.machine.spec import MachineSpec
from casemate.testing.images import ImageBuilder

if TYPE_CHECKING:
    from casemate.host.kvm.ioctl import Request

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
        .userspace_addr = 0x7f0000000000, .guest_memfd = 9 };
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
VM = -1
VCPUS = (VcpuReset(0xFFFFFFF0, 0x800F12),)
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
        self.calls: list[tuple[Request, bytes]] = []
        self.commands: list[tuple[int, bytes]] = []
        self.failure: tuple[int, int] | None = None
        self.done = 0
        self.identity = b"", b""

    def __call__(self, fd: int, request: Request, struct: Struct, /) -> int:
        assert fd == VM
        if request is not Ioctl.MEMORY_ENCRYPT_OP:
            self.calls.append((request, struct.to_bytes()))
            return os.memfd_create("private") if request is Ioctl.CREATE_GUEST_MEMFD else 0
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


@dataclass
class Rig:
    """A launcher on a recording VM; ``placed`` are the vCPUs that were about to be measured."""

    recorder: Recorder = field(default_factory=Recorder)
    placed: list[VcpuReset] = field(default_factory=list)
    cpuid: list[CpuidEntry2] = field(default_factory=list)

    def __post_init__(self) -> None:
        setup = SevSetup(VmType.SNP, 0x20)
        self.snp = KvmSnp(
            VM, 5, setup, place_vcpus=self.placed.extend, cpuid=lambda: self.cpuid, call=self.recorder
        )


def test_memory_is_asked_for_in_the_kernels_bytes(expected: dict[str, str]) -> None:
    rig = Rig()
    memory = GuestRange(Gpa(0xFFE00000), 0x200000)
    slot = MemorySlot(3, memory, Hva(0x7F0000000000))
    rig.snp.set_slot(slot, memory.size)
    rig.snp.set_private(memory)
    (memfd, (region_request, region), attributes) = rig.recorder.calls
    assert memfd == (Ioctl.CREATE_GUEST_MEMFD, bytes.fromhex(expected["memfd"]))
    assert region_request is Ioctl.SET_USER_MEMORY_REGION2
    assert region[:40] + b"\x09\0\0\0" + region[44:] == bytes.fromhex(expected["region"])
    assert attributes == (Ioctl.SET_MEMORY_ATTRIBUTES, bytes.fromhex(expected["attributes"]))


def test_private_memory_goes_with_its_slot() -> None:
    rig = Rig()
    slot = MemorySlot(3, GuestRange(Gpa(0), 0x1000), Hva(0x7F0000000000))
    rig.snp.set_slot(slot, 0x1000)
    memfd = UserspaceMemoryRegion2.from_bytes(rig.recorder.calls[-1][1]).guest_memfd
    assert os.fstat(memfd)
    rig.snp.set_slot(slot, 0)
    assert UserspaceMemoryRegion2.from_bytes(rig.recorder.calls[-1][1]).memory_size == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memfd)
    rig.snp.close()


def test_commands_are_the_kernels_bytes(expected: dict[str, str]) -> None:
    rig = Rig()
    rig.snp.launch_start(0xB0000, b"\xab" * 16)
    rig.snp.launch_update(SnpUpdate(Gpa(0xFFE00000), Hva(0x7F0000000000), 0x3000, SnpPageType.NORMAL))
    rig.snp.launch_finish(SnpFinish(b"b" * 96, b"a" * 4096, True, True, b"\xcd" * 32), VCPUS)
    init, start, update, (_, finish) = rig.recorder.commands
    names = ("init", "start", "update")
    assert [data.hex() for _, data in (init, start, update)] == [expected[name] for name in names]
    assert finish[16:].hex() == expected["finish"][32:]  # the two addresses before it are ours to choose
    assert rig.recorder.identity == (b"b" * 96, b"a" * 4096)
    assert rig.placed == list(VCPUS)
    assert [command for command, _ in rig.recorder.commands] == [int(n) for n in expected["ids"].split()]
    assert expected["sizes"] == f"96 4096 {SevCmd.SIZE}"
    types = [kind for kind in SnpPageType if kind is not SnpPageType.VMSA]
    assert expected["types"] == " ".join(str(int(kind)) for kind in types)


def test_update_is_left_where_the_kernel_was_interrupted() -> None:
    rig = Rig()
    rig.recorder.failure, rig.recorder.done = (0, EAGAIN), 0x2000
    update = SnpUpdate(Gpa(0xFFE00000), Hva(0x10000), 0x3000, SnpPageType.NORMAL)
    with pytest.raises(HostError) as caught:
        rig.snp.launch_update(update)
    assert caught.value.errno == EAGAIN
    assert (update.gpa, update.hva, update.size) == (0xFFE02000, 0x12000, 0x1000)


def test_cpuid_of_a_vcpu_becomes_a_table_that_firmware_takes() -> None:
    supported = [
        CpuidEntry2(function=1, ecx=1 << 24 | 1, edx=3),
        CpuidEntry2(function=7, flags=1, ebx=2 | 1, edx=0xFC000001),
        CpuidEntry2(function=0xD, index=1, flags=1, ebx=0x988),
        CpuidEntry2(function=0x80000008, index=5, ebx=1 << 25 | 1),
    ]
    table = Rig(cpuid=without_refused(supported)).snp.cpuid_table()
    rows = [(e.eax_in, e.ecx_in, e.xcr0_in, e.ebx, e.ecx, e.edx) for e in table.used()]
    assert rows == [
        (1, 0, 0, 0, 1, 3),
        (7, 0, 0, 1, 0, 1),
        (0xD, 1, 1, 0x240, 0, 0),
        (0x80000008, 0, 0, 1 << 25 | 1, 0, 0),
    ]
    with pytest.raises(UnsupportedError, match="65 CPUID leaves"):
        Rig(cpuid=[CpuidEntry2(function=n) for n in range(65)]).snp.cpuid_table()


def test_whole_launch_goes_by_ioctl_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3))
    bios = tmp_path / "snp.fd"
    bios.write_bytes(ImageBuilder().reset_block(0x80B004).sev_metadata(*sections).build())
    host, rig, recorder = ModelHypervisor(GuestClock()), Rig(), EventRecorder()
    spec = MachineSpec(bios=bios, kind=GuestKind.SNP, memory=16 << 20)
    prepared = prepare(spec, LaunchOptions(), host)
    with Machine(prepared.spec, host, GuestClock(), Console(recorder), recorder) as machine:
        monkeypatch.setattr(type(machine.vm), "snp_processor", rig.snp)
        record = launch(machine, prepared)
        assert record.attestation is None
        assert record.measurement is not None
        assert record.measurement["verified"] is None
    names = [SevCommand(command).name for command, _ in rig.recorder.commands]
    assert names == ["INIT2", "SNP_LAUNCH_START", *["SNP_LAUNCH_UPDATE"] * 4, "SNP_LAUNCH_FINISH"]
    updates = [SnpLaunchUpdate.from_bytes(data) for _, data in rig.recorder.commands[2:6]]
    assert [(update.gfn_start, update.len, update.type) for update in updates] == [
        (0xFFFE0, 0x20000, SnpPageType.NORMAL),
        (0x800, 0x9000, SnpPageType.ZERO),
        (0x80D, 0x1000, SnpPageType.SECRETS),
        (0x80E, 0x1000, SnpPageType.CPUID),
    ]
    assert {request for request, _ in rig.recorder.calls} == {Ioctl.SET_MEMORY_ATTRIBUTES}
    assert [vcpu.address for vcpu in rig.placed] == [0xFFFFFFF0]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [((0x0B, EIO), FirmwareStatusError), ((0xFFFFFFFF, EINVAL), HostError), ((0, EINVAL), HostError)],
)
def test_status_and_errno_are_told_apart(failure: tuple[int, int], kind: type[Exception]) -> None:
    rig = Rig()
    rig.recorder.failure = failure
    with pytest.raises(kind, match="KVM_SEV_SNP_LAUNCH_FINISH"):
        rig.snp.launch_finish(SnpFinish(), VCPUS)
