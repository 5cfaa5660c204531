"""A whole SEV-ES launch by ioctl, without hardware: every byte against the kernel's own structs, and the order."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.confidential_launches import (
    MIB,
    readonly_bytes,
    sev_es,
    write_guest,
    write_kernel,
    write_variables,
)

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm import sev as kvm_sev
from casemate.abi.kvm.structs import EncRegion
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.layout import Struct
from casemate.abi.sev import platform as sev_platform
from casemate.abi.sev.commands import SevCommand
from casemate.abi.sev.platform import PlatformCommand, SevIoctl
from casemate.confidential.preparation import AttestationRequest, LaunchOptions, LaunchSecret, prepare
from casemate.confidential.stages import launch
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import Vm
from casemate.host.kvm.sev import KvmSev
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.model.sev.platform import ModelPlatform
from casemate.host.model.sev.sev import ModelSev
from casemate.host.secure_processor import SevSetup, TransportKeys, VcpuReset
from casemate.machine.console import Console
from casemate.machine.machine import Machine
from casemate.machine.recorder import Recorder
from casemate.owner.secret import seal_secret
from casemate.owner.session import make_session
from casemate.testing.sev_ioctls import HANDLE, SevCall, SevIoctls, open_device

KEYS = TransportKeys(bytes(range(16)), bytes(range(16, 32)))
PLATFORM = ModelPlatform()
SECRET_GPA = 0x80C000

INCLUDES = ("linux/psp-sev.h", "linux/kvm.h")
NEWER = {"kvm_sev_init": "6.10", "KVM_SEV_INIT2": "6.10"}
"""What older headers lack, and the release that brought it."""


class IoctlHost(ModelHypervisor):
    """The modelled host, launched through the ioctls of a real one."""

    def __init__(self, launched: Launched) -> None:
        super().__init__(GuestClock(10**11), platform=PLATFORM)
        self._launched = launched

    def create_vm(self, kind: GuestKind, sev: SevSetup | None = None) -> Vm:  # type: ignore[override]
        vm = super().create_vm(kind, sev)
        assert isinstance(vm.secure_processor, ModelSev)
        assert sev is not None
        ioctls = self._launched.ioctls = SevIoctls(vm.secure_processor, PLATFORM, self._launched.reached)

        def place(vcpus: object) -> None:
            ioctls.vcpus = tuple(vcpus)  # type: ignore[arg-type]

        vm.secure_processor = KvmSev(  # type: ignore[assignment]
            -1, open_device(ioctls), sev, sev_es=True, place_vcpus=place, call=ioctls
        )
        return vm


@dataclass
class Launched:
    """One launch, with what was read-only in this process when each command came."""

    machine: Machine | None = None
    ioctls: SevIoctls = field(init=False)
    readonly: list[tuple[str, int]] = field(default_factory=list)

    def reached(self, name: str) -> None:
        if self.machine is not None:
            self.readonly.append((name, readonly_bytes(self.machine, "flash0")))

    @property
    def calls(self) -> list[SevCall]:
        return self.ioctls.calls


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A SEV-ES guest with debug-swap in protected flash, kernel hashes, a session and a secret."""
    folder = tmp_path_factory.mktemp("launch")
    spec = sev_es(
        write_guest(folder, b"\xf4", hashes=True), write_variables(folder), kernel=write_kernel(folder)
    )

    def owner(request: AttestationRequest) -> LaunchSecret:
        return LaunchSecret(*seal_secret(b"open sesame 1234", KEYS, request.measurement.mac), SECRET_GPA)

    options = LaunchOptions(
        features=("debug-swap",),
        kernel_hashes=True,
        keys=KEYS,
        session=make_session(PLATFORM.pdh, 5, KEYS).launch,
        attest=owner,
        launch_only=True,
    )
    found = Launched()
    host = IoctlHost(found)
    prepared = prepare(spec, options, host)
    recorder = Recorder()
    with Machine(prepared.spec, host, GuestClock(), Console(recorder), recorder) as machine:
        found.machine = machine
        record = launch(machine, prepared)
        assert record.measurement is not None
        assert record.measurement["verified"] is True
        device = open_device(found.ioctls)
        device.certificates()
        device.chip_id()
        yield found


def test_order_is_that_of_the_design(launched: Launched) -> None:
    names = [call.name for call in launched.calls if call.name.startswith("KVM_")]
    assert names == [
        "KVM_SEV_INIT2",
        "KVM_SEV_LAUNCH_START",
        "KVM_MEMORY_ENCRYPT_REG_REGION",  # RAM
        "KVM_MEMORY_ENCRYPT_REG_REGION",  # unit 0
        "KVM_MEMORY_ENCRYPT_REG_REGION",  # unit 1
        "KVM_SEV_LAUNCH_UPDATE_DATA",  # firmware
        "KVM_SEV_LAUNCH_UPDATE_DATA",  # kernel hashes
        "KVM_SEV_LAUNCH_UPDATE_VMSA",
        "KVM_SEV_LAUNCH_MEASURE",
        "KVM_SEV_LAUNCH_SECRET",
        "KVM_SEV_LAUNCH_FINISH",
        "KVM_SEV_GUEST_STATUS",
    ]


def test_unit_0_is_writable_while_it_is_registered_and_measured_and_readonly_else(launched: Launched) -> None:
    seen = [size for name, size in launched.readonly if name == "KVM_SEV_LAUNCH_UPDATE_DATA"]
    assert seen == [0, 64 << 10]
    registered = [size for name, size in launched.readonly if name.endswith("REG_REGION")]
    assert registered == [0, 0, 64 << 10]
    after = [
        size
        for name, size in launched.readonly
        if name in ("KVM_SEV_LAUNCH_MEASURE", "KVM_SEV_LAUNCH_SECRET")
    ]
    assert after == [64 << 10, 64 << 10]


def headers() -> list[str]:
    """Folders with kernel headers, the newest first: what is installed, and packages in the cache of firmware."""
    cache = Path.home() / ".cache" / "casemate" / "firmware"
    cached = sorted(cache.glob("*linux-libc-dev*/usr/include"), reverse=True)
    found = [[f"-I{path}", f"-I{path}/x86_64-linux-gnu"] for path in cached]
    return found[0] if found else []


def c_structs() -> Iterator[tuple[str, type[Struct]]]:
    """Every struct of a launch by its C name."""
    for module in (kvm_sev, sev_platform):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Struct) and kind is not Struct:
                name = re.search(r"``(\w+)``", kind.__doc__ or "")
                assert name is not None, kind
                yield name[1], kind
    yield "kvm_enc_region", EncRegion


def values(kind: type[Struct], data: bytes) -> dict[str, int]:
    """The fields of a struct that are numbers."""
    struct = kind.from_bytes(data)
    names = [name for name, *_ in kind._fields_ if not name.startswith("pad")]
    return {name: getattr(struct, name) for name in names}


def compiled(folder: Path, lines: list[str]) -> list[str]:
    """What a C program of these statements prints."""
    compiler = shutil.which("cc")
    if compiler is None or not Path("/usr/include/linux/psp-sev.h").exists():
        pytest.skip("needs a C compiler (cc) and linux/psp-sev.h (linux-libc-dev)")
    head = "".join(f"#include <{name}>\n" for name in ("stdio.h", "string.h", "linux/types.h", *INCLUDES))
    dump = (
        "static void dump(const void *p, size_t n) "
        '{ const unsigned char *b = p; while (n--) printf("%02x", *b++); puts(""); }\n'
    )
    source = folder / "expect.c"
    source.write_text(head + dump + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
    subprocess.run([compiler, *headers(), "-o", folder / "expect", source], check=True)
    return subprocess.run([folder / "expect"], check=True, capture_output=True, text=True).stdout.split()


def filled(name: str, fields: dict[str, int]) -> str:
    """C that fills the kernel's own struct and prints its bytes."""
    stores = "".join(f" s.{field} = {value}ull;" for field, value in fields.items())
    return f"{{ struct {name} s; memset(&s, 0, sizeof s);{stores} dump(&s, sizeof s); }}"


def commands_with_arguments(launched: Launched) -> list[tuple[str, type[Struct], bytes]]:
    """Name of the C struct, ours, and the bytes that were handed to the kernel."""
    names = {kind: name for name, kind in c_structs()}
    kinds = {
        "KVM_SEV_INIT2": kvm_sev.SevInit2,
        "KVM_SEV_LAUNCH_START": kvm_sev.SevLaunchStart,
        "KVM_SEV_LAUNCH_UPDATE_DATA": kvm_sev.SevLaunchUpdateData,
        "KVM_SEV_LAUNCH_MEASURE": kvm_sev.SevLaunchMeasure,
        "KVM_SEV_LAUNCH_SECRET": kvm_sev.SevLaunchSecret,
        "KVM_SEV_GUEST_STATUS": kvm_sev.SevGuestStatus,
        "SEV_PLATFORM_STATUS": sev_platform.PlatformStatus,
        "SEV_PDH_CERT_EXPORT": sev_platform.PdhCertExport,
        "SEV_GET_ID2": sev_platform.GetId2,
    }
    found: list[tuple[str, type[Struct], bytes]] = []
    for call in launched.calls:
        if call.name == "KVM_MEMORY_ENCRYPT_REG_REGION":
            found.append(("kvm_enc_region", EncRegion, call.request))
            continue
        request = sev_platform.IssueCmd if call.name.startswith("SEV_") else kvm_sev.SevCmd
        found.append((names[request], request, call.request))
        if call.name in kinds:
            found.append((names[kinds[call.name]], kinds[call.name], call.argument))
    return found


def test_every_byte_is_what_c_makes_of_the_same_values(launched: Launched, tmp_path: Path) -> None:
    debugging = kvm_sev.SevDbg(src_uaddr=0x1234_5678_9ABC, dst_uaddr=0x7FFF_0000_1000, len=0xFFF)
    handed = commands_with_arguments(launched)
    handed.append(("kvm_sev_dbg", kvm_sev.SevDbg, bytes(debugging)))
    lacking = [] if headers() else [name for name in NEWER if name.startswith("kvm_")]
    handed = [row for row in handed if row[0] not in lacking]
    print("not in this header:", ", ".join(f"{name} ({NEWER[name]})" for name in lacking) or "nothing")
    lines = [filled(name, values(kind, data)) for name, kind, data in handed]
    assert {name for name, *_ in handed} == {name for name, _ in c_structs()} - set(lacking)
    assert compiled(tmp_path, lines) == [data.hex() for *_, data in handed]


def test_numbers_are_the_headers(tmp_path: Path) -> None:
    ours = {command.kernel_name: int(command) for command in SevCommand if not command.name.startswith("SNP")}
    ours |= {command.kernel_name: int(command) for command in PlatformCommand}
    ours["SEV_ISSUE_CMD"] = int(SevIoctl.ISSUE_CMD)
    if not headers():
        ours = {name: value for name, value in ours.items() if name not in NEWER}
    lines = [f'printf("%llu\\n", (unsigned long long){name});' for name in ours]
    assert [int(text) for text in compiled(tmp_path, lines)] == list(ours.values())


def test_what_the_commands_say_is_what_was_asked_for(launched: Launched) -> None:
    by_name = {call.name: call for call in launched.calls}
    start = kvm_sev.SevLaunchStart.from_bytes(by_name["KVM_SEV_LAUNCH_START"].argument)
    assert (start.policy, start.dh_len, start.session_len) == (5, 2084, 128)
    init = kvm_sev.SevInit2.from_bytes(by_name["KVM_SEV_INIT2"].argument)
    assert (init.vmsa_features, init.flags, init.ghcb_version) == (0x20, 0, 0)
    regions = [
        EncRegion.from_bytes(call.request).size for call in launched.calls if call.name.endswith("REGION")
    ]
    assert regions == [16 * MIB, 64 << 10, 128 << 10]
    updates = [call.argument for call in launched.calls if call.name == "KVM_SEV_LAUNCH_UPDATE_DATA"]
    assert [kvm_sev.SevLaunchUpdateData.from_bytes(data).len for data in updates] == [64 << 10, 176]
    secret = kvm_sev.SevLaunchSecret.from_bytes(by_name["KVM_SEV_LAUNCH_SECRET"].argument)
    assert (secret.hdr_len, secret.guest_len, secret.trans_len) == (52, 16, 16)
    assert HANDLE


def test_legacy_setups_take_no_argument() -> None:
    for protected, name in ((False, "KVM_SEV_INIT"), (True, "KVM_SEV_ES_INIT")):
        ioctls = SevIoctls(None, PLATFORM)  # type: ignore[arg-type]
        setup = SevSetup(VmType.DEFAULT)
        KvmSev(-1, open_device(ioctls), setup, sev_es=protected, place_vcpus=lambda vcpus: None, call=ioctls)
        assert [call.name for call in ioctls.calls] == [name]
        assert kvm_sev.SevCmd.from_bytes(ioctls.calls[0].request).data == 0


def test_vcpus_are_placed_before_they_are_measured() -> None:
    placed: list[VcpuReset] = []
    ioctls = SevIoctls(_NoProcessor(), PLATFORM)  # type: ignore[arg-type]
    sev = KvmSev(
        -1, open_device(ioctls), SevSetup(VmType.SEV_ES), sev_es=True, place_vcpus=placed.extend, call=ioctls
    )
    ioctls._before = lambda name: placed.append(VcpuReset(0, 0)) if name.endswith("VMSA") else None
    sev.launch_update_vmsa([VcpuReset(0xFFFFFFF0, 1)])
    assert placed == [VcpuReset(0xFFFFFFF0, 1), VcpuReset(0, 0)]


class _NoProcessor:
    def launch_update_vmsa(self, vcpus: object) -> None:
        """Nothing."""
