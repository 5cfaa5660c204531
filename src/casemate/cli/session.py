"""``casemate session``: checks a SEV platform, makes launch sessions for it (docs/guide/session.md)."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from contextlib import closing
from pathlib import Path

from casemate.cli.options import integer
from casemate.cli.state_folder import model_platform_folder
from casemate.errors import InsecureError
from casemate.files import write_file, write_secret
from casemate.host.kvm.sev_device import SevDevice
from casemate.host.model.sev.platform import ModelPlatform
from casemate.host.secure_processor import PlatformCertificates, TransportKeys
from casemate.owner.platform import PlatformChain, load_chain
from casemate.owner.session import make_session

EPILOG = """\
examples:
  casemate session export --host kvm platform.cert
      on the host: PDH, PEK, OCA and CEK of its secure processor
  casemate session make --platform platform.cert --amd ask_ark_rome.cert --policy 0x5 --name guest
      at the owner's: guest_godh.b64 and guest_session.b64 for the host, guest_tek.bin and guest_tik.bin to keep
  casemate session export --host model model.cert && \\
  casemate session make --platform model.cert --policy 0x5 --name guest --any-root && \\
  casemate boot --guest sev-es --machine pc --until 'Shell> ' \\
      --dh-cert-file guest_godh.b64 --session-file guest_session.b64 --tik guest_tik.bin
      all of it without special hardware, on the model

A session is good for one guest. The files are those of sevctl, and QEMU's dh-cert-file and session-file take them.
exit code: check: 1, and make: 3, if the platform's keys do not lead back to AMD
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be done."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    export = actions.add_parser("export", help="write a platform's certificates to a file")
    export.add_argument(
        "--host", choices=("kvm", "model"), default="kvm", help="whose they are (%(default)s)"
    )
    export.add_argument("file", type=Path, metavar="FILE", help="where to write them")
    check = actions.add_parser("check", help="check every link from a platform's key to AMD's root")
    make = actions.add_parser("make", help="make a launch session")
    for sub in (check, make):
        sub.add_argument("--platform", type=Path, metavar="FILE", required=True, help="what was exported")
        sub.add_argument(
            "--amd", type=Path, metavar="FILE", help="AMD's ASK and ARK, where the platform's file has none"
        )
    check.add_argument("--json", action="store_true", help="one JSON document")
    make.add_argument("--policy", type=integer, metavar="N", required=True, help="the guest's launch policy")
    make.add_argument("--name", metavar="NAME", default="guest", help="what files begin with (%(default)s)")
    make.add_argument("--any-root", action="store_true", help="take a root that is not known to be AMD's")


def run(args: argparse.Namespace) -> int:
    """Do it; 0, or 1 if a check says no."""
    if args.action == "export":
        return _export(args)
    chain = load_chain(args.platform, args.amd)
    return _check(args, chain) if args.action == "check" else _make(args, chain)


def _export(args: argparse.Namespace) -> int:
    if args.host == "model":
        certificates, note = _model_certificates(), "of the model: nobody vouches for its root"
    else:
        certificates, chip = _device_certificates()
        note = f"of the chip that AMD's key server knows as {chip.hex()}"
    write_file(args.file, certificates.to_bytes())
    print(f"{args.file}: PDH, PEK, OCA and CEK, {note}")
    return 0


def _model_certificates() -> PlatformCertificates:
    return ModelPlatform(model_platform_folder()).certificates


def _device_certificates() -> tuple[PlatformCertificates, bytes]:
    with closing(SevDevice()) as device:
        return device.certificates(), device.chip_id()


def _check(args: argparse.Namespace, chain: PlatformChain) -> int:
    checks = chain.checks()
    holds = all(check.holds for check in checks)
    if args.json:
        rows = [check._asdict() for check in checks]
        print(json.dumps({"holds": holds, "root": chain.root, "checks": rows}, indent=2))
    else:
        for check in checks:
            print(f"{'yes' if check.holds else 'NO ':<4} {check.claim}")
        print(f"root {chain.root or 'unknown'}")
    return 0 if holds else 1


def _make(args: argparse.Namespace, chain: PlatformChain) -> int:
    broken = [check.claim for check in chain.checks(any_root=args.any_root) if not check.holds]
    if broken:
        raise InsecureError(
            f"{args.platform}: it does not hold that {', or that '.join(broken)}",
            "get AMD's ASK and ARK of this generation (--amd), or export anew; --any-root is for platforms you made",
        )
    session = make_session(chain.pdh, args.policy)
    _write_keys(args.name, session.keys)
    write_file(Path(f"{args.name}_godh.b64"), base64.b64encode(session.launch.certificate))
    write_file(Path(f"{args.name}_session.b64"), base64.b64encode(session.launch.blob))
    if chain.root is None:
        print("casemate: warning: nobody vouches for this platform", file=sys.stderr)
    print(f"for the host: {args.name}_godh.b64 {args.name}_session.b64")
    print(f"to keep:      {args.name}_tek.bin {args.name}_tik.bin")
    return 0


def _write_keys(name: str, keys: TransportKeys) -> None:
    for word, key in (("tek", keys.tek), ("tik", keys.tik)):
        write_secret(f"{name}_{word}.bin", key)
