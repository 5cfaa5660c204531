"""``casemate secret``: seals a secret for a guest that measured as expected (docs/guide/session.md)."""

from __future__ import annotations

import argparse
import base64
import hmac
import json
import sys
from pathlib import Path
from typing import Any

from casemate.cli.options import hex_bytes, integer
from casemate.digest.measurement import PlatformVersion, predict_measurement, read_tik
from casemate.digest.plan_json import reason_of
from casemate.errors import InsecureError, SpecError
from casemate.files import read_file, write_file
from casemate.firmware.guids import guid
from casemate.host.secure_processor import LaunchMeasurement, TransportKeys
from casemate.owner.secret import LUKS_KEY, seal_secret, secret_table

EPILOG = """\
examples:
  casemate boot --guest sev-es ... --attest-cmd \\
      'casemate secret --tik guest_tik.bin --tek guest_tek.bin --expect-digest 4c55... --policy 0x5 --passphrase key'
      the guest starts with the passphrase if it measured as expected, and not at all if it did not
  casemate secret --tik T --tek K --measurement BASE64 --api-major 1 --api-minor 55 --build-id 21 --policy 0x5 \\
      --expect-digest 4c55... --entry 736869e5-84f0-4973-92ec-06879ce3da0b=key --header packet.b64 --payload secret.b64
      for QEMU's sev-inject-launch-secret

Without --measurement the question of casemate boot is read from standard input, and the answer is printed.
exit code: 3 if the measurement is not that of the expected digest
"""

_MEASUREMENT_SIZE, _MAC_SIZE, _DIGEST_SIZE, _GUID_LENGTH = 48, 32, 32, 36
_QUESTION = ("measurement", "api-major", "api-minor", "build-id")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    parser.add_argument("--tik", type=Path, metavar="F", required=True, help="the session's integrity key")
    parser.add_argument("--tek", type=Path, metavar="F", required=True, help="the session's encryption key")
    expected = parser.add_argument_group("what must have been launched")
    expected.add_argument("--expect-digest", metavar="HEX", required=True, help="see casemate measure")
    expected.add_argument("--policy", type=integer, metavar="N", required=True)
    asked = parser.add_argument_group("what was launched (else from standard input)")
    asked.add_argument("--measurement", metavar="BASE64", help="HMAC and nonce, 48 bytes")
    for name in ("api-major", "api-minor", "build-id"):
        asked.add_argument(f"--{name}", type=integer, metavar="N")
    secret = parser.add_argument_group("the secret (none: the guest starts without)")
    secret.add_argument(
        "--passphrase", type=Path, metavar="F", help="of an encrypted disk, as a table's entry"
    )
    secret.add_argument(
        "--entry",
        type=_entry,
        action="append",
        default=[],
        metavar="GUID=F",
        help="another entry of the table",
    )
    secret.add_argument("--raw", type=Path, metavar="F", help="no table: a multiple of 16 bytes as they are")
    secret.add_argument("--gpa", type=integer, metavar="N", help="where to (the firmware's area)")
    output = parser.add_argument_group("output")
    output.add_argument("--header", type=Path, metavar="F", help="write the packet's header here, in base64")
    output.add_argument("--payload", type=Path, metavar="F", help="and the secret here")


def run(args: argparse.Namespace) -> int:
    """Verify, seal, print or write; 0."""

    keys = TransportKeys(tek=read_tik(args.tek), tik=read_tik(args.tik))
    measurement = _verified(args, keys.tik)
    secret = _secret(args)
    if secret is None:
        print("{}")
        return 0
    header, data = (base64.b64encode(part).decode() for part in seal_secret(secret, keys, measurement.mac))
    if args.header or args.payload:
        _write(args, header, data)
        return 0
    where = {} if args.gpa is None else {"gpa": args.gpa}
    print(json.dumps({"packet-header": header, "secret": data, **where}))
    return 0


def _verified(args: argparse.Namespace, tik: bytes) -> LaunchMeasurement:
    digest = hex_bytes(args, "expect_digest", _DIGEST_SIZE, "give what casemate measure prints")
    assert digest is not None
    question = _question(args)
    try:
        data = base64.b64decode(str(question["measurement"]), validate=True)
        version = PlatformVersion(*(int(question[name]) for name in _QUESTION[1:]))
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"the question is none ({reason_of(error)})", "give what casemate boot asks"
        ) from None
    if len(data) != _MEASUREMENT_SIZE:
        cause = f"the measurement has {len(data)} bytes, not {_MEASUREMENT_SIZE}"
        raise SpecError(cause, "give the HMAC and the nonce behind it")
    found = LaunchMeasurement(data[:_MAC_SIZE], data[_MAC_SIZE:])
    expected = predict_measurement(digest, tik, found.nonce, args.policy, version)
    if not hmac.compare_digest(expected, found.mac):
        raise InsecureError(
            f"the measurement is not that of digest {args.expect_digest} under policy {args.policy:#x}",
            "give this guest nothing; casemate explain finds what was launched instead",
        )
    return found


def _question(args: argparse.Namespace) -> dict[str, Any]:
    if args.measurement is not None:
        answers = {name: getattr(args, name.replace("-", "_")) for name in _QUESTION}
        missing = [f"--{name}" for name, value in answers.items() if value is None]
        if missing:
            raise SpecError(
                f"--measurement also needs {', '.join(missing)}", "the platform's status has them"
            )
        return answers
    try:
        question = json.loads(sys.stdin.read())
        if not isinstance(question, dict):
            raise ValueError("it is no object")
        return question
    except ValueError as error:
        raise SpecError(
            f"no question on standard input: {error}",
            "give --measurement, or use --attest-cmd of casemate boot",
        ) from None


def _secret(args: argparse.Namespace) -> bytes | None:
    entries = {guid(name): read_file(path) for name, path in args.entry}
    if args.passphrase:
        entries[LUKS_KEY] = read_file(args.passphrase)
    if args.raw and entries:
        raise SpecError("--raw is no table, so nothing goes beside it", "leave it out, or the entries")
    if args.raw:
        return read_file(args.raw)
    return secret_table(entries) if entries else None


def _write(args: argparse.Namespace, header: str, data: str) -> None:
    if not (args.header and args.payload):
        raise SpecError("--header and --payload belong together", "give both, or neither")
    for path, text in ((args.header, header), (args.payload, data)):
        write_file(path, text.encode())


def _entry(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator or not path or len(name) != _GUID_LENGTH or not _is_hex(name.replace("-", "")):
        raise argparse.ArgumentTypeError(f"{text!r} is no GUID=FILE")
    return name, Path(path)


def _is_hex(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) * 2 == len(text)
    except ValueError:
        return False
