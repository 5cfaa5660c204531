"""``casemate explain``: says why a launch digest is not the expected one (docs/guide/explain.md)."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from multiprocessing.pool import Pool

from casemate.abi.guest_kind import GuestKind
from casemate.cli.measure import (
    add_launch_arguments,
    add_owner_arguments,
    features_of,
    signature_of,
    signing_of,
)
from casemate.cli.terminal import progress
from casemate.digest import steps_sev, steps_snp
from casemate.digest.explain import (
    DIGEST_SIZES,
    MOST_VCPUS,
    Apply,
    Explanation,
    Found,
    Match,
    Owner,
    Search,
    Unit,
)
from casemate.digest.explain_tdx import explain_mrtd
from casemate.digest.hypotheses import Claim, DirectBoot
from casemate.digest.kernel_hashes import find_hashes_area
from casemate.digest.measurement import KEY_SIZE
from casemate.digest.plan_tdx import AddOrder
from casemate.digest.sev_init import SevInit
from casemate.errors import SpecError
from casemate.files import LARGEST_KERNEL, read_file
from casemate.firmware.completeness import validate_complete
from casemate.firmware.image import FirmwareImage

EPILOG = """\
examples:
  casemate explain --observed 4c55bc8b... --mode seves --ovmf OVMF_CODE.fd --vcpus 4 --vcpu-type EPYC-v4
  casemate explain --observed 4c55bc8b... --mode seves --ovmf OVMF_CODE.fd     vCPUs unknown
  casemate explain --observed 4c55bc8b... --mode sev --ovmf OVMF.amdsev.fd --kernel vmlinuz --append quiet
  casemate explain --observed d74bd3ea... --mode snp --ovmf OVMF.amdsev.fd --vcpus 4 --vcpu-type EPYC-Genoa
  casemate explain --observed 5f77220a... --mode tdx --ovmf OVMF.inteltdx.ms.fd

exit code: 0 if an explanation was found, 1 if none was
"""

_KINDS = {"sev": "sev", "seves": "sev-es", "snp": "snp", "tdx": "tdx"}
_NOT_FOUND = 1
_FORK_FROM = 30
"""Pieces of work, of some 30 ms each, from which on more processes pay."""

_search: Search | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The observed value, and the inputs of ``casemate measure``; vCPUs and their type may be unknown here."""
    observed = (
        "launch digest, or with --tik the measurement, in hex or base64; 48 bytes are one with its nonce"
    )
    parser.add_argument("--observed", metavar="VALUE", required=True, help=observed)
    add_launch_arguments(parser)
    parser.add_argument("--vars", metavar="FILE", help="variable store that may have been in front of --ovmf")
    add_owner_arguments(parser, "a launch measurement was observed (all needed; 48 bytes have the nonce)")
    parser.add_argument(
        "--deviations",
        metavar="N",
        type=int,
        choices=range(1, 7),
        default=3,
        help="try so many at once (default: 3)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Search, print what fits; 0, or 1 if nothing does."""

    observed, claim = _observed(args), _claim(args)
    signing = signing_of(args, claim.kind)
    if claim.kind is GuestKind.TDX:
        explanation = explain_mrtd(claim, AddOrder(args.page_order), observed)
    else:
        search = Search(claim, observed, Owner(*signing) if signing else None, args.deviations)
        with _spread(search) as apply:
            explanation = search.explain(apply)
    _print_json(explanation) if args.json else _print(explanation)
    return 0 if explanation.matches else _NOT_FOUND


def _observed(args: argparse.Namespace) -> bytes:
    text = args.observed.strip()
    try:
        value = bytes.fromhex(text)
    except ValueError:
        try:
            value = b64decode(text, validate=True)
        except ValueError:
            raise SpecError(f"--observed {text!r} is neither hex nor base64", "give the digest") from None
    size = DIGEST_SIZES[GuestKind.SEV]
    if len(value) == size + KEY_SIZE and args.tik is not None:
        args.nonce = args.nonce or value[size:].hex()
        return value[:size]
    return value


def _claim(args: argparse.Namespace) -> Claim:
    image, boot = FirmwareImage.load(args.ovmf), _boot(args)
    kind, init, features = GuestKind(_KINDS[args.mode]), SevInit(args.init), features_of(args)
    validate_complete(image)
    if kind is GuestKind.SNP:
        steps_snp.validate_features(features)
        list(steps_snp.section_steps(image, None))
    elif kind is not GuestKind.TDX:
        steps_sev.validate_features(features, init)
    if boot is not None:
        _validate_boot(image, kind)
    is_named = any(
        getattr(args, f"vcpu_{name}") is not None for name in ("type", "sig", "family", "model", "stepping")
    )
    signature = signature_of(args) if is_named else None
    variables = FirmwareImage.load(args.vars) if args.vars else None
    return Claim(image, kind, args.vcpus, signature, features, init, boot, variables)


def _validate_boot(image: FirmwareImage, kind: GuestKind) -> None:
    if kind.value == "tdx":
        raise SpecError(
            "--kernel does not enter MRTD: a kernel is measured at run time, in RTMR", "leave it out"
        )
    find_hashes_area(image)


def _boot(args: argparse.Namespace) -> DirectBoot | None:
    if args.kernel is None:
        for option in ("initrd", "append"):
            if getattr(args, option) is not None:
                raise SpecError(f"--{option} without --kernel", "give the kernel, or leave both out")
        return None
    return DirectBoot(
        read_file(args.kernel, LARGEST_KERNEL),
        (args.append or "").encode(errors="surrogateescape"),
        read_file(args.initrd, LARGEST_KERNEL) if args.initrd else b"",
    )


@contextmanager
def _spread(search: Search) -> Iterator[Apply]:
    """A ``map`` that uses all processors for long lists, and shows progress on a terminal."""

    global _search  # noqa: PLW0603 - what forked processes inherit instead of being sent
    _search = search
    with ExitStack() as stack:
        # Forked once, when it is first needed.
        @cache
        def start_pool() -> Pool:
            fork = multiprocessing.get_context("fork")
            return stack.enter_context(fork.Pool(len(os.sched_getaffinity(0)), _leave_interrupts_to_parent))

        def apply(run: Callable[[Unit], Found], units: list[Unit]) -> Iterable[Found]:
            if len(units) < _FORK_FROM:
                return map(run, units)
            return progress(start_pool().imap_unordered(_run, units), len(units), "launches tried")

        yield apply


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(unit: Unit) -> Found:
    assert _search is not None
    return _search.run(unit)


def _print(explanation: Explanation) -> None:
    tried = f"{explanation.tried:,} launches tried"
    if not explanation.matches:
        print(
            f"nothing fits: {tried}, with up to {MOST_VCPUS} vCPUs each; another firmware or kernel file is likely"
        )
        return
    if not explanation.is_certain:
        print(f"{len(explanation.matches)} explanations fit equally well ({tried}):")
    for match in explanation.matches:
        if not match.deviations:
            print(f"as given: nothing deviates ({tried})")
        for deviation in match.deviations:
            print(f"{deviation.id}: {deviation.cause}\n    remedy: {deviation.remedy}")
    if explanation.is_certain and explanation.matches[0].deviations:
        print(f"this reproduces the observed value exactly ({tried})")


def _print_json(explanation: Explanation) -> None:
    document = {
        "tried": explanation.tried,
        "certain": explanation.is_certain,
        "matches": [_match_to_dict(match) for match in explanation.matches],
    }
    print(json.dumps(document, indent=2))


def _match_to_dict(match: Match) -> dict[str, object]:
    deviations = [deviation._asdict() for deviation in match.deviations]
    return {"digest": match.digest.hex(), "vcpus": match.vcpus, "deviations": deviations}
