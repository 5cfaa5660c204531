"""What QMP clients ask and do about a guest of SEV (QEMU qapi/misc-i386.json, target/i386/sev.c)."""

from __future__ import annotations

import base64
import binascii
from contextlib import closing
from errno import EIO
from typing import Any

from casemate.abi.sev.commands import GuestState
from casemate.confidential.attestation import place_secret
from casemate.confidential.preparation import AttestationRequest, LaunchSecret
from casemate.errors import CasemateError, FirmwareStatusError, HostError, SpecError
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.kvm.sev_device import SevDevice
from casemate.qmp.guest_control import GuestControl
from casemate.qmp.protocol import QmpError

_REDUCED_PHYS_BITS = 1
_NOT_SEV = {
    "enabled": False,
    "sev-type": "sev",
    "api-major": 0,
    "api-minor": 0,
    "build-id": 0,
    "state": "uninit",
    "policy": 0,
    "handle": 0,
}
"""QEMU's answer of a guest that is none of SEV."""


def query_sev(guest: GuestControl) -> dict[str, Any]:
    """How far the launch is, and of what; what casemate does not know is 0."""
    prepared, vm = guest.prepared, guest.machine.vm
    if prepared is None:
        return _NOT_SEV
    if vm.snp_processor is not None:
        state = {"sev-type": "sev-snp", "state": vm.snp_processor.state, "snp-policy": prepared.policy}
        return {"enabled": True, "api-major": 0, "api-minor": 0, "build-id": 0} | state
    assert vm.secure_processor is not None
    major, minor, build = vm.secure_processor.version
    return {
        "enabled": True,
        "sev-type": "sev",
        "api-major": major,
        "api-minor": minor,
        "build-id": build,
        "state": vm.secure_processor.state,
        "policy": prepared.policy,
        "handle": 0,
    }


def query_measurement(guest: GuestControl) -> dict[str, Any]:
    """HMAC and nonce of a SEV or SEV-ES guest, once it is measured."""
    measured = guest.measurement
    if measured is None:
        raise QmpError("SEV launch measurement is not available")
    return {"data": base64.b64encode(measured.mac + measured.nonce).decode()}


def query_capabilities(host_name: str) -> dict[str, Any]:
    """Certificates and chip of this computer; a modelled platform has `casemate session export`."""
    if host_name != "kvm":
        raise QmpError("KVM not enabled")

    c_bit = KvmHypervisor().c_bit
    if c_bit is None:
        raise QmpError("SEV is not enabled in KVM")
    try:
        with closing(SevDevice()) as device:
            certificates, chip = device.certificates(), device.chip_id()
    except CasemateError as error:
        raise QmpError(f"SEV: {error}") from None
    return {
        "pdh": base64.b64encode(certificates.pdh).decode(),
        "cert-chain": base64.b64encode(certificates.chain).decode(),
        "cpu0-id": base64.b64encode(chip).decode(),
        "cbitpos": c_bit,
        "reduced-phys-bits": _REDUCED_PHYS_BITS,
    }


def inject(guest: GuestControl, header: str, secret: str, gpa: int | None) -> dict[str, Any]:
    """Hand the owner's packet to the secure processor, while the launch waits."""

    if guest.prepared is None:
        raise QmpError("SEV not enabled for guest")
    if gpa is None and guest.prepared.image.sev_secret is None:
        raise QmpError("SEV: no secret area found in OVMF, gpa must be specified.")
    with guest.lock:
        request = guest.request
        if request is None:
            raise QmpError(f"SEV: Not in correct state. (LSECRET) {_state_number(guest):x}")
        packet = _decoded(header, "sequence header"), _decoded(secret, "data")
        try:
            request.inject(LaunchSecret(*packet, _place(request, len(packet[1])) if gpa is None else gpa))
        except SpecError as error:
            raise QmpError(f"SEV: Failed to calculate guest address: {error.cause}") from None
        except FirmwareStatusError as error:
            raise _failed(EIO, error.status, error) from None
        except HostError as error:
            raise _failed(error.errno, 0, error) from None
    return {}


def _place(request: AttestationRequest, size: int) -> int:
    try:
        return place_secret(request, size)
    except CasemateError as error:
        raise QmpError(f"SEV: {error.cause}") from None


def _failed(number: int, status: int, error: CasemateError) -> QmpError:
    return QmpError(f"SEV: failed to inject secret ret=-{number} fw_error={status} '{error.cause}'")


def _decoded(data: str, what: str) -> bytes:
    try:
        return base64.b64decode(data.replace("\n", ""), validate=True)
    except (ValueError, binascii.Error):
        raise QmpError(f"SEV: Failed to decode {what}") from None


def _state_number(guest: GuestControl) -> int:
    vm = guest.machine.vm
    processor = vm.snp_processor or vm.secure_processor
    return tuple(GuestState).index(processor.state) if processor is not None else 0
