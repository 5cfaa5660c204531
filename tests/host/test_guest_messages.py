"""The channel between an SNP guest and the firmware: sealed, numbered, one for each VMPL (AMD 56860)."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from casemate.abi.sev.guest_message import (
    AES_256_GCM,
    MessageHeader,
    MessageType,
    ReportRequest,
    ReportResponse,
)
from casemate.abi.sev.report import AttestationReport
from casemate.abi.sev.status import SevStatus
from casemate.address import PAGE_SIZE
from casemate.errors import FirmwareStatusError
from casemate.host.model.snp.messages import GuestMessages

KEYS = [bytes([vmpl + 1]) * 32 for vmpl in range(4)]
DATA = b"nonce".ljust(64, b"\0")


def report(data: bytes, vmpl: int) -> bytes:
    made = AttestationReport(version=3, vmpl=vmpl)
    made.report_data[:] = data
    return made.to_bytes()


def firmware() -> GuestMessages:
    return GuestMessages(KEYS, report)


def sealed(
    number: int = 1, *, channel: int = 0, vmpl: int = 0, key: bytes | None = None, kind: int = 5
) -> bytes:
    """A request for a report, as a guest's driver makes it: header from byte 48 on authenticated."""
    header = MessageHeader(
        msg_seqno=number, algo=AES_256_GCM, hdr_version=1, hdr_size=96, msg_type=kind, msg_version=1,
        msg_size=ReportRequest.SIZE, msg_vmpck=channel,
    )  # fmt: skip
    payload = DATA + vmpl.to_bytes(4, "little") + bytes(28)
    nonce = number.to_bytes(8, "little") + bytes(4)
    text = AESGCM(key or KEYS[channel]).encrypt(nonce, payload, header.to_bytes()[48:])
    header.authtag[:16] = text[-16:]
    return (header.to_bytes() + text[:-16]).ljust(PAGE_SIZE, b"\0")


def opened(page: bytes) -> tuple[MessageHeader, ReportResponse]:
    header = MessageHeader.from_bytes(page)
    nonce = int(header.msg_seqno).to_bytes(8, "little") + bytes(4)
    text = page[96 : 96 + header.msg_size] + bytes(header.authtag)[:16]
    payload = AESGCM(KEYS[header.msg_vmpck]).decrypt(nonce, text, page[48:96])
    return header, ReportResponse.from_bytes(payload)


def refusal(messages: GuestMessages, page: bytes) -> int:
    with pytest.raises(FirmwareStatusError) as caught:
        messages.answer(page)
    return caught.value.status


def test_report_comes_back_sealed_under_the_next_number() -> None:
    messages = firmware()
    for number in (1, 3, 5):
        header, response = opened(messages.answer(sealed(number)))
        assert (header.msg_seqno, header.msg_type) == (number + 1, MessageType.REPORT_REQUEST + 1)
        assert (response.status, response.report_size) == (0, AttestationReport.SIZE)
        assert bytes(response.report.report_data) == DATA


def test_number_that_was_used_or_is_not_next_is_refused() -> None:
    messages = firmware()
    messages.answer(sealed(1))
    for number in (0, 1, 2, 5):
        assert refusal(messages, sealed(number)) == SevStatus.AEAD_OFLOW
    messages.answer(sealed(3))


def test_each_channel_counts_for_itself() -> None:
    messages = firmware()
    messages.answer(sealed(1))
    assert opened(messages.answer(sealed(1, channel=2, vmpl=2)))[1].report.vmpl == 2


@pytest.mark.parametrize(("channel", "vmpl", "status"), [(0, 3, 0), (2, 1, 0x16), (0, 4, 0x16), (3, 3, 0)])
def test_report_is_of_no_more_privileged_level_than_the_channel(channel: int, vmpl: int, status: int) -> None:
    _, response = opened(firmware().answer(sealed(channel=channel, vmpl=vmpl)))
    assert response.status == status
    assert response.report_size == (0 if status else AttestationReport.SIZE)


@pytest.mark.parametrize("at", [0, 53, 60 + 2, 96, 96 + 64, 96 + 95], ids=str)
def test_changed_byte_is_refused(at: int) -> None:
    page = bytearray(sealed())
    page[at] ^= 1
    assert refusal(firmware(), bytes(page)) == SevStatus.BAD_MEASUREMENT


def test_other_key_is_refused_and_does_not_count() -> None:
    messages = firmware()
    assert refusal(messages, sealed(key=b"\x77" * 32)) == SevStatus.BAD_MEASUREMENT
    messages.answer(sealed())


@pytest.mark.parametrize(("at", "value"), [(48, 0), (49, 2), (50, 95), (60, 4), (55, 0xFF)])
def test_what_is_no_message_is_refused(at: int, value: int) -> None:
    page = bytearray(sealed())
    page[at] = value
    assert refusal(firmware(), bytes(page)) == SevStatus.INVALID_PARAM


def test_request_that_is_not_modelled_is_refused() -> None:
    assert refusal(firmware(), sealed(kind=3)) == SevStatus.INVALID_PARAM
