"""Launch commands of SEV, SEV-ES and SNP guests, by KVM_MEMORY_ENCRYPT_OP (Linux x86/amd-memory-encryption.rst)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from errno import EINVAL, EIO, ENOTTY
from typing import Protocol

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.sev import (
    SevCmd,
    SevDbg,
    SevGuestStatus,
    SevInit2,
    SevLaunchMeasure,
    SevLaunchSecret,
    SevLaunchStart,
    SevLaunchUpdateData,
)
from casemate.abi.kvm.snp import SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev.commands import GuestState, SevCommand
from casemate.abi.sev.id_block import IdAuth, IdBlock
from casemate.abi.sev.policy import SevPolicy
from casemate.abi.sev.snp import SnpPageType
from casemate.abi.sev.status import SevStatus, refused
from casemate.address import PAGE_SIZE, Gpa, Hva
from casemate.errors import FirmwareStatusError
from casemate.host.model.sev.sev import ModelSev
from casemate.host.model.snp.snp import ModelSnp
from casemate.host.model.vm import ModelVm
from casemate.host.secure_processor import LaunchSession, SevSetup
from casemate.host.snp_processor import SnpFinish, SnpUpdate
from casemate.userkvm.table import Refused, copy_in, copy_out
from casemate.userkvm.vcpu import Vcpu
from casemate.userkvm.vcpu_owner import VcpuOwner


class LaunchedVm(VcpuOwner, Protocol):
    """What a launch needs of its VM (``casemate.userkvm.vm.Vm``)."""

    vm_type: VmType
    setup: SevSetup
    model: ModelVm | None
    vcpus: dict[int, Vcpu]
    policy: int
    digest: str | None

    def guest_stopped(self) -> AbstractContextManager[None]:
        """No vCPU executes meanwhile."""

    def private_memory_at(self, gpa: Gpa) -> int:
        """Bytes of private memory from ``gpa`` to the end of its slot; 0 without."""


_ERROR_AT = 16
"""Of ``SevCmd.error``."""
_MEASUREMENT = 48
_MAX_BLOB = 16 << 10
_KINDS = {VmType.SEV: GuestKind.SEV, VmType.SEV_ES: GuestKind.SEV_ES, VmType.SNP: GuestKind.SNP}


def run_command(vm: LaunchedVm, address: int) -> int:
    """One command. Raises Refused and HostError; a firmware status goes into the command, too."""
    command = SevCmd.from_bytes(copy_in(address, SevCmd.SIZE))
    row = _COMMANDS.get(command.id)
    if row is None:
        raise Refused(EINVAL, f"no launch command {command.id}")
    name = SevCommand(command.id).kernel_name
    fault = vm.kernel.faults.next(name)
    if fault is not None:
        copy_out(address + _ERROR_AT, (fault.firmware or 0).to_bytes(4, "little"))
        raise Refused(fault.errno, f"{name}: as planned by --fault")
    try:
        row(vm, command.data)
    except FirmwareStatusError as error:
        copy_out(address + _ERROR_AT, error.status.to_bytes(4, "little"))
        vm.say(str(error))
        raise Refused(EIO, str(error)) from None
    return 0


def _blob(address: int, size: int) -> bytes:
    if size > _MAX_BLOB:
        raise Refused(EINVAL, f"{size} bytes")
    return copy_in(address, size)


def _sev(vm: LaunchedVm) -> ModelSev:
    if vm.kind not in (GuestKind.SEV, GuestKind.SEV_ES):
        raise Refused(ENOTTY, "no guest of SEV")
    processor = vm.realize().secure_processor
    assert processor is not None
    return processor


def _snp(vm: LaunchedVm) -> ModelSnp:
    if vm.kind is not GuestKind.SNP:
        raise Refused(ENOTTY, "no SNP guest")
    processor = vm.realize().snp_processor
    assert processor is not None
    return processor


def _begin(vm: LaunchedVm, kind: GuestKind, setup: SevSetup) -> None:
    if vm.kind is not GuestKind.PLAIN or vm.model is not None:
        raise Refused(EINVAL, "the VM has vCPUs, or a launch")
    vm.kind, vm.setup = kind, setup


def _init(vm: LaunchedVm, _address: int) -> None:
    _begin_legacy(vm, GuestKind.SEV)


def _es_init(vm: LaunchedVm, _address: int) -> None:
    _begin_legacy(vm, GuestKind.SEV_ES)


def _begin_legacy(vm: LaunchedVm, kind: GuestKind) -> None:
    if vm.vm_type is not VmType.DEFAULT:
        raise Refused(EINVAL, f"{vm.vm_type.kernel_name} takes KVM_SEV_INIT2 alone")
    _begin(vm, kind, SevSetup())


def _init2(vm: LaunchedVm, address: int) -> None:
    kind = _KINDS.get(vm.vm_type)
    if kind is None:
        raise Refused(EINVAL, f"{vm.vm_type.kernel_name} takes no KVM_SEV_INIT2")
    wanted = SevInit2.from_bytes(copy_in(address, SevInit2.SIZE))
    allowed = 0 if kind is GuestKind.SEV else vm.kernel.era.init2_vmsa_features
    if wanted.flags or wanted.vmsa_features & ~allowed:
        raise Refused(EINVAL, f"flags, or VMSA features beyond {allowed:#x}")
    _begin(vm, kind, SevSetup(vm.vm_type, wanted.vmsa_features))


def _launch_start(vm: LaunchedVm, address: int) -> None:
    value = SevLaunchStart.from_bytes(copy_in(address, SevLaunchStart.SIZE))
    session = None
    if value.dh_uaddr:
        certificate = _blob(value.dh_uaddr, value.dh_len)
        session = LaunchSession(certificate, _blob(value.session_uaddr, value.session_len))
    _sev(vm).launch_start(value.policy, session)
    vm.policy, value.handle = value.policy, 1
    copy_out(address, value.to_bytes())


def _launch_update_data(vm: LaunchedVm, address: int) -> None:
    value = SevLaunchUpdateData.from_bytes(copy_in(address, SevLaunchUpdateData.SIZE))
    _sev(vm).launch_update_data(Hva(value.uaddr), value.len)


def _launch_update_vmsa(vm: LaunchedVm, _address: int) -> None:
    _sev(vm).launch_update_vmsa([vcpu.reset_state for vcpu in vm.vcpus.values()])


def _launch_measure(vm: LaunchedVm, address: int) -> None:
    value = SevLaunchMeasure.from_bytes(copy_in(address, SevLaunchMeasure.SIZE))
    processor = _sev(vm)
    if value.len < _MEASUREMENT:
        value.len = _MEASUREMENT
        copy_out(address, value.to_bytes())
        raise Refused(EINVAL, f"a measurement has {_MEASUREMENT} bytes")
    vm.digest = processor.psp.digest.hex()
    measurement = processor.launch_measure()
    copy_out(value.uaddr, measurement.mac + measurement.nonce)


def _launch_secret(vm: LaunchedVm, address: int) -> None:
    value = SevLaunchSecret.from_bytes(copy_in(address, SevLaunchSecret.SIZE))
    header, data = _blob(value.hdr_uaddr, value.hdr_len), _blob(value.trans_uaddr, value.trans_len)
    _sev(vm).launch_secret(header, Hva(value.guest_uaddr), data)


def _launch_finish(vm: LaunchedVm, _address: int) -> None:
    _sev(vm).launch_finish()


def _guest_status(vm: LaunchedVm, address: int) -> None:
    state = list(GuestState).index(_sev(vm).state)
    copy_out(address, SevGuestStatus(1, vm.policy, state).to_bytes())


def _snp_launch_start(vm: LaunchedVm, address: int) -> None:
    value = SnpLaunchStart.from_bytes(copy_in(address, SnpLaunchStart.SIZE))
    if value.flags:
        raise Refused(EINVAL, "flags")
    _snp(vm).launch_start(value.policy, bytes(value.gosvw))


def _snp_launch_update(vm: LaunchedVm, address: int) -> None:
    value = SnpLaunchUpdate.from_bytes(copy_in(address, SnpLaunchUpdate.SIZE))
    if value.flags or value.type not in set(SnpPageType):
        raise Refused(EINVAL, f"flags, or page type {value.type}")
    with vm.guest_stopped():
        processor, gpa = _snp(vm), Gpa(value.gfn_start * PAGE_SIZE)
        size = min(value.len, vm.private_memory_at(gpa))
        if not size:
            raise Refused(EINVAL, f"no slot with private memory at {gpa:#x}, or no length")
        update = SnpUpdate(gpa, Hva(value.uaddr), size, SnpPageType(value.type))
        try:
            processor.launch_update(update)
        finally:
            value.gfn_start, value.uaddr, value.len = (
                update.gpa // PAGE_SIZE,
                update.hva,
                value.len - size + update.size,
            )
            copy_out(address, value.to_bytes())


def _snp_launch_finish(vm: LaunchedVm, address: int) -> None:
    value = SnpLaunchFinish.from_bytes(copy_in(address, SnpLaunchFinish.SIZE))
    processor, block, auth = _snp(vm), b"", b""
    if value.id_block_en:
        block = copy_in(value.id_block_uaddr, IdBlock.SIZE)
        auth = copy_in(value.id_auth_uaddr, PAGE_SIZE)[: IdAuth.SIZE]
    finish = SnpFinish(
        block, auth, bool(value.auth_key_en), bool(value.vcek_disabled), bytes(value.host_data)
    )
    processor.launch_finish(finish, [vcpu.reset_state for vcpu in vm.vcpus.values()])
    vm.digest = processor.psp.digest.hex()
    if vm.kernel.keeps_keys:
        vm.kernel.keep_certificates(processor.certificates())


def _decrypt(vm: LaunchedVm, address: int) -> None:
    processor = _sev(vm)
    for guest, monitor, size in _debugged(address, is_read=True):
        copy_out(monitor, processor.debug_decrypt(Hva(guest), size))


def _encrypt(vm: LaunchedVm, address: int) -> None:
    processor = _sev(vm)
    with vm.guest_stopped():
        for guest, monitor, size in _debugged(address, is_read=False):
            processor.debug_encrypt(Hva(guest), copy_in(monitor, size))


def _debugged(address: int, *, is_read: bool) -> Iterator[tuple[int, int, int]]:
    """Where memory of the guest and of the monitor is, up to a page at a time."""
    value = SevDbg.from_bytes(copy_in(address, SevDbg.SIZE))
    if not value.len or value.src_uaddr + value.len >> 64 or not value.dst_uaddr:
        raise Refused(EINVAL, "length or addresses")
    addresses = value.src_uaddr, value.dst_uaddr
    guest, monitor = addresses if is_read else addresses[::-1]
    at = 0
    while at < value.len:
        size = min(PAGE_SIZE - (guest + at) % PAGE_SIZE, value.len - at)
        yield guest + at, monitor + at, size
        at += size


def _send(vm: LaunchedVm, _address: int) -> None:
    _sev(vm)
    status = SevStatus.POLICY_FAILURE if vm.policy & SevPolicy.NOSEND else SevStatus.UNSUPPORTED
    raise refused("KVM_SEV_SEND_... (modelled)", status)


def _receive(vm: LaunchedVm, _address: int) -> None:
    _sev(vm)
    raise refused("KVM_SEV_RECEIVE_... (modelled)", SevStatus.UNSUPPORTED)


_COMMANDS: dict[int, Callable[[LaunchedVm, int], None]] = {
    SevCommand.INIT: _init,
    SevCommand.ES_INIT: _es_init,
    SevCommand.INIT2: _init2,
    SevCommand.LAUNCH_START: _launch_start,
    SevCommand.LAUNCH_UPDATE_DATA: _launch_update_data,
    SevCommand.LAUNCH_UPDATE_VMSA: _launch_update_vmsa,
    SevCommand.LAUNCH_MEASURE: _launch_measure,
    SevCommand.LAUNCH_SECRET: _launch_secret,
    SevCommand.LAUNCH_FINISH: _launch_finish,
    SevCommand.SEND_START: _send,
    SevCommand.SEND_UPDATE_DATA: _send,
    SevCommand.SEND_UPDATE_VMSA: _send,
    SevCommand.SEND_FINISH: _send,
    SevCommand.SEND_CANCEL: _send,
    SevCommand.RECEIVE_START: _receive,
    SevCommand.RECEIVE_UPDATE_DATA: _receive,
    SevCommand.RECEIVE_UPDATE_VMSA: _receive,
    SevCommand.RECEIVE_FINISH: _receive,
    SevCommand.GUEST_STATUS: _guest_status,
    SevCommand.DBG_DECRYPT: _decrypt,
    SevCommand.DBG_ENCRYPT: _encrypt,
    SevCommand.SNP_LAUNCH_START: _snp_launch_start,
    SevCommand.SNP_LAUNCH_UPDATE: _snp_launch_update,
    SevCommand.SNP_LAUNCH_FINISH: _snp_launch_finish,
}
