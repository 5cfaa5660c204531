"""What firmware and kernel refuse of a launch by ioctl: named, with its meaning and a remedy (psp-sev.h)."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOMEM, ENOTTY
from typing import TYPE_CHECKING

import pytest

from casemate.abi.kernel_eras import find_era
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.layout import Struct
from casemate.abi.sev.commands import GuestState
from casemate.abi.sev.status import SevStatus, refused
from casemate.address import Hva
from casemate.errors import FirmwareStatusError, HostError, UnsupportedError
from casemate.host.kvm.sev import KvmSev
from casemate.host.kvm.sev_device import SevDevice
from casemate.host.model.sev.platform import ModelPlatform
from casemate.host.model.sev.sev import ModelSev
from casemate.host.secure_processor import SevSetup, TransportKeys, VcpuReset
from casemate.memory.backing import Backing
from casemate.owner.secret import seal_secret
from casemate.owner.session import make_session
from casemate.testing.sev_ioctls import CHIP_ID, SevIoctls, open_device

if TYPE_CHECKING:
    from casemate.host.kvm.ioctl import Request

PLATFORM = ModelPlatform()
SETUP = SevSetup(VmType.SEV_ES)
KEYS = TransportKeys(bytes(16), bytes(range(16)))
PAGE = 4096


class NoView:
    """Of a guest that never runs."""

    def make_private(self, hva: Hva, plaintext: bytes | memoryview) -> None:
        """Nothing to do."""

    def plaintext(self, hva: Hva, size: int) -> bytes:
        """Nobody reads any."""
        return bytes(size)


class Rig:
    """A launch by ioctl against a modelled kernel and secure processor, and a page of memory for it."""

    def __init__(self, lock_limit: int | None = None) -> None:
        self.model = ModelSev(
            find_era("linux-6.18"),
            SETUP,
            NoView(),
            sev_es=True,
            lock_limit=lock_limit,
            platform=PLATFORM,
        )
        self.ioctls = SevIoctls(self.model, PLATFORM)
        self.device = open_device(self.ioctls)
        self.memory = Backing("page", PAGE)
        self.sev = KvmSev(
            -1, self.device, SETUP, sev_es=True, place_vcpus=lambda vcpus: None, call=self.ioctls
        )

    @property
    def hva(self) -> Hva:
        return self.memory.writable.hva


@pytest.fixture
def rig() -> Rig:
    return Rig()


def status_of(command: Callable[[], object]) -> SevStatus:
    with pytest.raises(FirmwareStatusError) as caught:
        command()
    assert caught.value.exit_code == 5
    assert caught.value.remedy
    return SevStatus(caught.value.status)


def test_state_is_the_guests(rig: Rig) -> None:
    def states() -> tuple[GuestState, GuestState]:
        return rig.sev.state, rig.model.state

    assert states() == (GuestState.UNINIT,) * 2
    rig.sev.launch_start(5, make_session(PLATFORM.pdh, 5, KEYS).launch)
    assert states() == (GuestState.LAUNCH_UPDATE,) * 2
    rig.sev.launch_update_data(rig.hva, PAGE)
    rig.sev.launch_update_vmsa([VcpuReset(0xFFFFFFF0, 0)])
    rig.sev.launch_measure()
    assert states() == (GuestState.LAUNCH_SECRET,) * 2
    rig.sev.launch_finish()
    assert states() == (GuestState.RUNNING,) * 2
    assert rig.sev.version == rig.model.version


def test_commands_in_the_wrong_state_are_refused_by_name(rig: Rig) -> None:
    for command in (
        lambda: rig.sev.launch_update_data(rig.hva, 16),
        rig.sev.launch_measure,
        lambda: rig.sev.launch_secret(bytes(52), rig.hva, bytes(16)),
        rig.sev.launch_finish,
    ):
        assert status_of(command) is SevStatus.INVALID_GUEST_STATE


@pytest.mark.parametrize(
    ("header", "size", "offset", "status"),
    [
        (52, 17, 0, SevStatus.INVALID_LEN),
        (51, 16, 0, SevStatus.INVALID_LEN),
        (52, (16 << 10) + 16, 0, SevStatus.INVALID_LEN),
        (52, 16, 8, SevStatus.INVALID_ADDRESS),
        (52, 16, 0, SevStatus.BAD_MEASUREMENT),
    ],
)
def test_packet_that_does_not_fit_is_refused(
    rig: Rig, header: int, size: int, offset: int, status: SevStatus
) -> None:
    rig.sev.launch_start(5, None)
    rig.sev.launch_measure()
    memory = Backing("secret", 32 << 10)
    assert (
        status_of(
            lambda: rig.sev.launch_secret(bytes(header), Hva(memory.writable.hva + offset), bytes(size))
        )
        is status
    )


def test_packet_for_this_guest_is_taken_once_it_is_measured(rig: Rig) -> None:
    rig.sev.launch_start(5, make_session(PLATFORM.pdh, 5, KEYS).launch)
    measurement = rig.sev.launch_measure()
    header, data = seal_secret(b"sixteen bytes ok", KEYS, measurement.mac)
    rig.sev.launch_secret(header, rig.hva, data)
    rig.sev.launch_finish()


def test_lock_limit_is_named_with_its_remedy() -> None:
    rig = Rig(lock_limit=PAGE)
    rig.sev.register_region(rig.hva, PAGE)
    rig.sev.launch_start(5, None)
    for command, name in (
        (rig.sev.register_region, "KVM_MEMORY_ENCRYPT_REG_REGION"),
        (rig.sev.launch_update_data, "KVM_SEV_LAUNCH_UPDATE_DATA"),
    ):
        with pytest.raises(HostError, match=name) as caught:
            command(rig.hva, PAGE)
        assert caught.value.errno == ENOMEM
        assert "ulimit -l" in caught.value.remedy
        assert caught.value.exit_code == 5


def test_kvm_without_sev_is_named() -> None:
    def refuse(fd: int, request: Request, argument: Struct, /) -> int:
        raise HostError(request.kernel_name, ENOTTY)

    with pytest.raises(HostError, match=r"KVM_SEV_INIT2 failed") as caught:
        KvmSev(-1, open_device(Rig().ioctls), SETUP, sev_es=True, place_vcpus=lambda vcpus: None, call=refuse)
    assert "casemate caps" in caught.value.remedy


def test_device_exports_what_the_platform_is(rig: Rig) -> None:
    certificates = rig.device.certificates()
    assert certificates.pdh == PLATFORM.certificates.pdh
    assert len(certificates.chain) == 3 * 2084
    assert rig.device.chip_id() == CHIP_ID
    status = rig.device.status()
    assert (status.api_major, status.api_minor, status.build) == rig.model.version


def test_device_that_is_not_there_is_named() -> None:
    with pytest.raises(UnsupportedError, match="/nowhere/sev cannot be opened") as caught:
        SevDevice("/nowhere/sev")
    assert "ccp" in caught.value.remedy


@pytest.mark.parametrize("status", list(SevStatus))
def test_every_status_has_a_name_and_a_meaning(status: SevStatus) -> None:
    error = refused("KVM_SEV_LAUNCH_START", status)
    assert status.name in str(error)
    assert f"{status:#x}" in str(error)
    assert error.cause.count(",") >= 1


def test_unknown_status_is_shown_as_it_is() -> None:
    assert "firmware status 0x99 (unknown status)" in str(refused("KVM_SEV_INIT", 0x99))
