"""The firmware's end of its encrypted channels to an SNP guest, one for each VMPL (AMD 56860, SNP_GUEST_REQUEST).

A message is AES-256-GCM under a key of the guest's secrets page, numbered; whoever carries it can only lose it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from casemate.abi.sev.guest_message import (
    AES_256_GCM,
    AUTHENTICATED_FROM,
    TAG_SIZE,
    MessageHeader,
    MessageType,
    ReportRequest,
    ReportResponse,
)
from casemate.abi.sev.report import AttestationReport
from casemate.abi.sev.status import SevStatus, refused
from casemate.address import PAGE_SIZE

_COMMAND = "SNP_GUEST_REQUEST (modelled)"
_LAST_VMPL = 3


class GuestMessages:
    """``keys`` are those of VMPL 0 to 3; ``report`` makes a report of the guest for its data and a VMPL."""

    def __init__(self, keys: Sequence[bytes], report: Callable[[bytes, int], bytes]) -> None:
        self._ciphers = [AESGCM(key) for key in keys]
        self._counts = [0] * len(keys)
        self._report = report

    def answer(self, page: bytes) -> bytes:
        """The response to a request, each in its page.

        Raises FirmwareStatusError: INVALID_PARAM for what is no request, AEAD_OFLOW for one out of order,
        BAD_MEASUREMENT for one that was changed on its way.
        """
        header = MessageHeader.from_bytes(page)
        channel = header.msg_vmpck
        well_formed = (header.algo, header.hdr_version, header.hdr_size) == (
            AES_256_GCM,
            MessageHeader.VERSION,
            MessageHeader.SIZE,
        )
        if not well_formed or channel >= len(self._ciphers) or header.SIZE + header.msg_size > PAGE_SIZE:
            raise refused(_COMMAND, SevStatus.INVALID_PARAM, "it is no guest message", snp=True)
        if header.msg_seqno != self._counts[channel] + 1:
            detail = f"message {header.msg_seqno}, expected is {self._counts[channel] + 1}"
            raise refused(_COMMAND, SevStatus.AEAD_OFLOW, detail, snp=True)
        payload = self._open(header, page[header.SIZE : header.SIZE + header.msg_size])
        if header.msg_type != MessageType.REPORT_REQUEST or len(payload) != ReportRequest.SIZE:
            detail = f"message type {header.msg_type} of {len(payload)} bytes is not modelled"
            raise refused(_COMMAND, SevStatus.INVALID_PARAM, detail, snp=True)
        self._counts[channel] += 2
        return self._seal(header, self._report_response(channel, ReportRequest.from_bytes(payload)))

    def _report_response(self, vmpl: int, request: ReportRequest) -> bytes:
        response = ReportResponse()
        if not vmpl <= request.vmpl <= _LAST_VMPL:
            response.status = SevStatus.INVALID_PARAM
            return response.to_bytes()
        report = self._report(bytes(request.report_data), request.vmpl)
        response.report_size = len(report)
        response.report = AttestationReport.from_bytes(report)
        return response.to_bytes()

    def _open(self, header: MessageHeader, ciphertext: bytes) -> bytes:
        tag = bytes(header.authtag)[:TAG_SIZE]
        cipher = self._ciphers[header.msg_vmpck]
        try:
            payload: bytes = cipher.decrypt(_nonce(header), ciphertext + tag, _authenticated(header))
        except InvalidTag:
            detail = "it was not sealed with the guest's key, or changed since"
            raise refused(_COMMAND, SevStatus.BAD_MEASUREMENT, detail, snp=True) from None
        return payload

    def _seal(self, request: MessageHeader, payload: bytes) -> bytes:
        header = MessageHeader.from_bytes(request.to_bytes())
        header.msg_seqno, header.msg_type = request.msg_seqno + 1, request.msg_type + 1
        header.msg_size = len(payload)
        cipher = self._ciphers[header.msg_vmpck]
        sealed: bytes = cipher.encrypt(_nonce(header), payload, _authenticated(header))
        header.authtag[:] = sealed[-TAG_SIZE:].ljust(32, b"\0")
        return (header.to_bytes() + sealed[:-TAG_SIZE]).ljust(PAGE_SIZE, b"\0")


def _authenticated(header: MessageHeader) -> bytes:
    return header.to_bytes()[AUTHENTICATED_FROM:]


def _nonce(header: MessageHeader) -> bytes:
    return int(header.msg_seqno).to_bytes(12, "little")
