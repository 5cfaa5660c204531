"""A secure processor's SNP side in software: launch, digest, ID block, reports (AMD 56860 SEV-SNP ABI, chapter 8).

It extends its digest by the pages that it is handed and knows nothing of what anybody predicted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from casemate.abi.sev.commands import GuestState, SevCommand
from casemate.abi.sev.id_block import (
    CURVE_P384,
    ECDSA_P384_SHA384,
    EcdsaPublicKey,
    EcdsaSignature,
    IdAuth,
    IdBlock,
)
from casemate.abi.sev.page_info import PageInfo
from casemate.abi.sev.report import AUTHOR_KEY_EN, REPORT_DATA_SIZE, AttestationReport, Tcb
from casemate.abi.sev.snp import DIGEST_SIZE, SnpPageType
from casemate.abi.sev.snp_pages import CpuidPage, SecretsPage
from casemate.abi.sev.snp_policy import SnpPolicy
from casemate.abi.sev.status import SevStatus, refused
from casemate.address import PAGE_SIZE
from casemate.errors import FirmwareStatusError
from casemate.host.model.sev.endorsement import Endorsement
from casemate.host.model.snp.cpuid_table import as_found, correct_table
from casemate.host.model.snp.messages import GuestMessages
from casemate.host.model.snp.rmp import VMPLS, PageState, Rmp
from casemate.host.snp_processor import SnpFinish

API_MAJOR, API_MINOR, BUILD = 1, 55, 21
"""The version that the model claims."""
CPU = (25, 1, 1)
"""Family, model and stepping in reports: a processor of the 7003 series."""
TCB = Tcb(bootloader=4, tee=0, snp=22, microcode=213)

_KNOWN_POLICY = sum(SnpPolicy) | 0xFFFF


class SnpPsp:
    """The context of one guest, whose pages are those of ``asid`` in ``rmp``; ``random`` gives keys and IDs.

    Every command raises FirmwareStatusError with the status that the firmware would answer.
    """

    version = API_MAJOR, API_MINOR, BUILD

    def __init__(self, rmp: Rmp, asid: int, *, random: Callable[[int], bytes] = os.urandom) -> None:
        self.state = GuestState.UNINIT
        self.digest = bytes(DIGEST_SIZE)
        self._rmp = rmp
        self._asid = asid
        self._policy = 0
        self._gosvw = bytes(16)
        self._finish = SnpFinish()
        self._report_id = random(32)
        self.endorsement = Endorsement(random(64), TCB)
        self._keys = [random(32) for _ in range(VMPLS)]
        self._messages = GuestMessages(self._keys, self.report)

    def launch_start(self, policy: int, gosvw: bytes) -> None:
        """Begin; POLICY_FAILURE for a policy that this firmware cannot keep, INVALID_PARAM for one that is none."""
        command = SevCommand.SNP_LAUNCH_START
        self._expect(command, GuestState.UNINIT)
        if not policy & SnpPolicy.RESERVED_ONE or policy & ~_KNOWN_POLICY:
            raise _refusal(command, SevStatus.INVALID_PARAM, "bit 17 must be one, unknown bits zero")
        if (policy >> 8 & 0xFF, policy & 0xFF) > (API_MAJOR, API_MINOR):
            raise _refusal(command, SevStatus.POLICY_FAILURE, "it asks for a newer firmware")
        self._policy, self._gosvw = policy, gosvw
        self.state = GuestState.LAUNCH_UPDATE

    def launch_update(self, page: int, page_type: SnpPageType, contents: bytes) -> bytes:
        """Take a page in state PRE_GUEST; returns what the guest will read there.

        A CPUID table that the processor cannot keep is INVALID_PARAM; ``correct_table`` says what it could keep.
        """
        command = SevCommand.SNP_LAUNCH_UPDATE
        self._expect(command, GuestState.LAUNCH_UPDATE)
        entry = self._rmp[page]
        if entry.state is not PageState.PRE_GUEST:
            raise _refusal(command, SevStatus.INVALID_PAGE_STATE, f"it is {entry.state}")
        if entry.asid != self._asid:
            raise _refusal(command, SevStatus.INVALID_PAGE_OWNER)
        if page_type is SnpPageType.CPUID and not _can_keep(contents):
            detail = "the CPUID table says what this processor has not"
            raise _refusal(command, SevStatus.INVALID_PARAM, detail)
        self._extend(page_type, entry.gpa, contents)
        self._rmp.launch(page, vmsa=page_type is SnpPageType.VMSA)
        if page_type is SnpPageType.SECRETS:
            return self._secrets()
        if page_type is SnpPageType.CPUID:
            return as_found(contents)
        return bytes(PAGE_SIZE) if page_type is SnpPageType.ZERO else contents

    def launch_finish(self, finish: SnpFinish) -> None:
        """The guest may run, if it is the one that the ID block expects.

        BAD_SIGNATURE, BAD_MEASUREMENT and POLICY_FAILURE say in what it is not.
        """
        command = SevCommand.SNP_LAUNCH_FINISH
        self._expect(command, GuestState.LAUNCH_UPDATE)
        if finish.id_block:
            self._check_id_block(finish)
        self._finish = finish
        self.state = GuestState.RUNNING

    def report(self, report_data: bytes, vmpl: int = 0) -> bytes:
        """An attestation report (1184 bytes) as the guest would be given it on MSG_REPORT_REQ."""
        assert len(report_data) == REPORT_DATA_SIZE
        if self.state is not GuestState.RUNNING:
            raise refused("SNP_GUEST_REQUEST (modelled)", SevStatus.INVALID_GUEST_STATE, snp=True)
        report = AttestationReport(
            version=3, policy=self._policy, vmpl=vmpl, signature_algo=ECDSA_P384_SHA384, platform_info=1
        )
        fields = {"report_data": report_data, "measurement": self.digest, "host_data": self._finish.host_data}
        fields |= {
            "report_id": self._report_id,
            "report_id_ma": b"\xff" * 32,
            "chip_id": self.endorsement.chip_id,
        }
        if self._finish.id_block:
            fields |= self._identity(report)
        for name, value in fields.items():
            getattr(report, name)[:] = value
        for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"):
            setattr(report, name, TCB.pack())
        report.cpuid_family, report.cpuid_model, report.cpuid_stepping = CPU
        for name in ("current", "committed"):
            for part, number in zip(("major", "minor", "build"), self.version, strict=True):
                setattr(report, f"{name}_{part}", number)
        return self.endorsement.sign(report)

    def guest_request(self, request: bytes) -> bytes:
        """SNP_GUEST_REQUEST: the page that answers the guest's sealed message; see ``GuestMessages.answer``."""
        if self.state is not GuestState.RUNNING:
            raise refused("SNP_GUEST_REQUEST (modelled)", SevStatus.INVALID_GUEST_STATE, snp=True)
        return self._messages.answer(request)

    def _identity(self, report: AttestationReport) -> dict[str, bytes]:
        block, auth = IdBlock.from_bytes(self._finish.id_block), IdAuth.from_bytes(self._finish.id_auth)
        report.guest_svn = block.guest_svn
        fields = {"family_id": bytes(block.family_id), "image_id": bytes(block.image_id)}
        fields["id_key_digest"] = hashlib.sha384(auth.id_key.to_bytes()).digest()
        if self._finish.has_author_key:
            report.flags |= AUTHOR_KEY_EN
            fields["author_key_digest"] = hashlib.sha384(auth.author_key.to_bytes()).digest()
        return fields

    def _extend(self, page_type: SnpPageType, gpa: int, contents: bytes) -> None:
        info = PageInfo(length=PageInfo.SIZE, page_type=page_type, gpa=gpa)
        info.digest_cur[:] = self.digest
        if page_type in (SnpPageType.NORMAL, SnpPageType.VMSA):
            info.contents[:] = hashlib.sha384(contents).digest()
        self.digest = hashlib.sha384(info.to_bytes()).digest()

    def _secrets(self) -> bytes:
        page = SecretsPage(version=SecretsPage.VERSION)
        page.gosvw[:] = self._gosvw
        for vmpl, key in enumerate(self._keys):
            getattr(page, f"vmpck{vmpl}")[:] = key
        return page.to_bytes().ljust(PAGE_SIZE, b"\0")

    def _check_id_block(self, finish: SnpFinish) -> None:
        command = SevCommand.SNP_LAUNCH_FINISH
        block, auth = IdBlock.from_bytes(finish.id_block), IdAuth.from_bytes(finish.id_auth)
        if block.version != IdBlock.VERSION:
            raise _refusal(command, SevStatus.INVALID_PARAM, f"the ID block has version {block.version}")
        if not _verifies(auth.id_key, auth.id_key_algo, auth.id_block_sig, finish.id_block):
            raise _refusal(command, SevStatus.BAD_SIGNATURE, "the ID block's")
        author = auth.author_key, auth.auth_key_algo, auth.id_key_sig
        if finish.has_author_key and not _verifies(*author, auth.id_key.to_bytes()):
            raise _refusal(command, SevStatus.BAD_SIGNATURE, "the ID key's")
        if bytes(block.launch_digest) != self.digest:
            raise _refusal(command, SevStatus.BAD_MEASUREMENT, "the ID block expects another digest")
        if block.policy != self._policy:
            raise _refusal(command, SevStatus.POLICY_FAILURE, "the ID block expects another policy")

    def _expect(self, command: SevCommand, state: GuestState) -> None:
        if self.state is not state:
            raise _refusal(command, SevStatus.INVALID_GUEST_STATE, f"it is {self.state}, not {state}")


def _can_keep(contents: bytes) -> bool:
    table = CpuidPage.from_bytes(contents)
    return correct_table(table).to_bytes() == table.to_bytes()


def _verifies(key: EcdsaPublicKey, algorithm: int, signature: EcdsaSignature, message: bytes) -> bool:
    if algorithm != ECDSA_P384_SHA384 or key.curve != CURVE_P384:
        return False
    try:
        public = ec.EllipticCurvePublicNumbers(*key.point, ec.SECP384R1()).public_key()
        encoded = utils.encode_dss_signature(*signature.numbers)
        public.verify(encoded, message, ec.ECDSA(hashes.SHA384()))
    except (ValueError, InvalidSignature):
        return False
    return True


def _refusal(command: SevCommand, status: SevStatus, detail: str = "") -> FirmwareStatusError:
    return refused(f"{command.kernel_name} (modelled)", status, detail, snp=True)
