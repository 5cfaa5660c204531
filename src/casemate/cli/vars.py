"""``casemate vars``: shows, changes, checks and repairs variable stores (docs/guide/vars.md)."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.errors import ImageError, SpecError
from casemate.files import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate.advise.store_check import StoreCheck
    from casemate.firmware.variables import Variable

    _Change = Callable[[list[Variable]], list[Variable]]

EPILOG = """\
examples:
  casemate vars list VARS.fd
  casemate vars set VARS.fd greeting --utf16 hello --guid shell --in-place
  casemate vars get VARS.fd BootOrder
  casemate vars diff before.fd after.fd
  casemate vars fsck VARS.fd
  casemate vars repair VARS.fd -o repaired.fd

Nothing is written without --in-place or -o, and then all of it or nothing.
"""

_DIFFERENT, _BROKEN = 1, 4
_DEFAULT_ATTRIBUTES = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One parser for each action."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, words: str, *, edits: bool = False) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        sub.add_argument("file", metavar="FILE", type=Path, help="variable store, raw")
        if edits:
            where = sub.add_mutually_exclusive_group(required=True)
            where.add_argument("--in-place", action="store_true", help="replace FILE, all of it or nothing")
            where.add_argument("-o", "--output", metavar="F", type=Path, help="write the new store to F")
        return sub

    action("list", "name the variables, with vendor, attributes and size")
    _add_name(action("get", "show the value of a variable")).add_argument(
        "--raw", action="store_true", help="the bytes as they are"
    )
    _add_value(_add_name(action("set", "give a variable a value", edits=True)))
    _add_name(action("delete", "remove a variable", edits=True))
    action("diff", "say which variables two stores do not share").add_argument(
        "other", metavar="OTHER", type=Path, help="the newer store"
    )
    action("export", "print all variables as JSON, in the form of virt-fw-vars")
    action("import", "set all variables of a JSON document", edits=True).add_argument(
        "json", metavar="JSON", type=Path
    )
    action("fsck", "say what firmware would trip over, lose, or finish by itself").add_argument(
        "--json", action="store_true", help="one JSON document"
    )
    action("repair", "write the store anew from all variables that are whole", edits=True)


def run(args: argparse.Namespace) -> int:
    """Do the action; returns the exit code."""
    return _ACTIONS[args.action](args)


def _add_name(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("name", metavar="NAME", help="of the variable")
    parser.add_argument(
        "--guid",
        metavar="VENDOR",
        help="global, security-database, shell, or a GUID; where NAME is not enough",
    )
    return parser


def _add_value(parser: argparse.ArgumentParser) -> None:
    value = parser.add_mutually_exclusive_group(required=True)
    value.add_argument("--text", help="the bytes of a text")
    value.add_argument("--utf16", metavar="TEXT", help="a text as firmware has it: UTF-16 that ends in zero")
    value.add_argument("--hex", metavar="DIGITS", help="bytes in hex")
    value.add_argument("--data", metavar="F", type=Path, help="the contents of a file")
    parser.add_argument(
        "--attributes", metavar="N", type=_integer, help="bits of UEFI (default: as it is, or 7: NV, BS, RT)"
    )


def _list(args: argparse.Namespace) -> int:
    from casemate.firmware.variables import Attributes, vendor_name

    _, check = _load(args.file)
    for variable in sorted(check.variables):
        names = "+".join(flag.name or "" for flag in Attributes(variable.attributes & 0x7F))
        label = f"{_printable(variable.name)}  {vendor_name(variable.guid)}"
        print(f"{len(variable.data):6}  {names:<18}  {label}")
    print(f"casemate: {len(check.variables)} variables, {check.free} bytes free", file=sys.stderr)
    return 0


def _get(args: argparse.Namespace) -> int:
    _, check = _load(args.file)
    variable = _find(check.variables, args.name, args.guid, args.file)
    if args.raw:
        sys.stdout.buffer.write(variable.data)
        return 0
    for offset in range(0, len(variable.data), 16):
        row = variable.data[offset : offset + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        print(f"{offset:08x}  {row.hex(' '):<47}  {text}")
    return 0


def _set(args: argparse.Namespace) -> int:
    from casemate.firmware.variables import Variable

    def change(variables: list[Variable]) -> list[Variable]:
        same = _matches(variables, args.name, args.guid)
        if len(same) > 1 or (not same and args.guid is None):
            why = "of several vendors" if same else "new"
            raise SpecError(f"variable {args.name!r} is {why}", "name its vendor with --guid")
        old = same[0] if same else Variable(args.name, _vendor(args.guid), _DEFAULT_ATTRIBUTES, b"")
        attributes = old.attributes if args.attributes is None else args.attributes
        return _merge(variables, [old._replace(data=_value(args), attributes=attributes)])

    return _edit(args, change)


def _delete(args: argparse.Namespace) -> int:
    def change(variables: list[Variable]) -> list[Variable]:
        gone = _find(variables, args.name, args.guid, args.file)
        return [variable for variable in variables if variable != gone]

    return _edit(args, change)


def _import(args: argparse.Namespace) -> int:
    from casemate.firmware.variables_json import variables_from_json

    new = variables_from_json(read_file(args.json).decode(errors="replace"), str(args.json))
    return _edit(args, lambda variables: _merge(variables, new))


def _export(args: argparse.Namespace) -> int:
    from casemate.firmware.variables_json import variables_to_json

    print(variables_to_json(_load(args.file)[1].variables))
    return 0


def _diff(args: argparse.Namespace) -> int:
    old, new = (
        {(variable.guid, variable.name): variable for variable in _load(path)[1].variables}
        for path in (args.file, args.other)
    )
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    for key in changed:
        mark = "+" if key not in old else "-" if key not in new else "~"
        before, after = (str(len(side[key].data)) if key in side else "none" for side in (old, new))
        print(f"{mark} {_printable((old.get(key) or new[key]).label)}: {before} -> {after} bytes")
    return _DIFFERENT if changed else 0


def _fsck(args: argparse.Namespace) -> int:
    _, check = _load(args.file)
    if args.json:
        import json

        findings = [finding._asdict() for finding in check.findings]
        summary = {"healthy": check.is_healthy, "variables": len(check.variables), "free": check.free}
        print(json.dumps({"file": str(args.file), **summary, "findings": findings}, indent=2))
    else:
        for finding in check.findings:
            print(f"{finding.severity}: at {finding.offset:#x}: {_printable(finding.what)}; {finding.effect}")
        word = "healthy" if check.is_healthy else "damaged"
        print(f"{args.file}: {word}, {len(check.variables)} whole variables, {check.free} bytes free")
        if not check.is_healthy:
            print(f"repair it: casemate vars repair {args.file} --in-place", file=sys.stderr)
    return 0 if check.is_healthy else _BROKEN


def _repair(args: argparse.Namespace) -> int:
    return _edit(args, list, damaged=True)


_ACTIONS = {
    "list": _list,
    "get": _get,
    "set": _set,
    "delete": _delete,
    "diff": _diff,
    "export": _export,
    "import": _import,
    "fsck": _fsck,
    "repair": _repair,
}


def _load(path: Path) -> tuple[bytes, StoreCheck]:
    from casemate.advise.store_check import check_store
    from casemate.firmware.image import FirmwareImage

    data = FirmwareImage.load(path).data
    return data, check_store(data, str(path))


def _edit(args: argparse.Namespace, change: _Change, *, damaged: bool = False) -> int:
    from casemate.advise.store_check import repair_store
    from casemate.devices.flash.file import locked_image, write_whole

    with ExitStack() as stack:
        if args.in_place:
            stack.enter_context(locked_image(args.file))
        data, check = _load(args.file)
        if not damaged and not check.is_healthy:
            raise ImageError(args.file, "the store is damaged", "run casemate vars fsck, then repair, first")
        variables = change(list(check.variables))
        write_whole(args.output or args.file, repair_store(data, check._replace(variables=tuple(variables))))
    return 0


def _merge(variables: Sequence[Variable], new: Sequence[Variable]) -> list[Variable]:
    merged = {(variable.guid, variable.name): variable for variable in (*variables, *new)}
    return list(merged.values())


def _matches(variables: Sequence[Variable], name: str, vendor: str | None) -> list[Variable]:
    guid = None if vendor is None else _vendor(vendor)
    return [variable for variable in variables if variable.name == name and guid in (None, variable.guid)]


def _find(variables: Sequence[Variable], name: str, vendor: str | None, path: Path) -> Variable:
    found = _matches(variables, name, vendor)
    if not found:
        raise ImageError(path, f"there is no variable {name!r}", "see casemate vars list")
    if len(found) > 1:
        raise SpecError(f"{len(found)} vendors have a variable {name!r}", "name one with --guid")
    return found[0]


def _vendor(text: str) -> bytes:
    from casemate.firmware.guids import GUID_SIZE, guid
    from casemate.firmware.variables import VENDORS

    try:
        vendor = VENDORS.get(text) or guid(text)
    except ValueError:
        vendor = b""
    if len(vendor) != GUID_SIZE:
        raise SpecError(f"--guid {text!r} is no GUID", f"write one, or one of {', '.join(VENDORS)}")
    return vendor


def _value(args: argparse.Namespace) -> bytes:
    if args.text is not None:
        return str(args.text).encode(errors="surrogateescape")
    if args.utf16 is not None:
        return str(args.utf16).encode("utf-16-le", "surrogatepass") + b"\0\0"
    if args.hex is not None:
        try:
            return bytes.fromhex(args.hex)
        except ValueError:
            raise SpecError(
                f"--hex {args.hex!r} is no row of hex digits", "write two for each byte"
            ) from None
    return read_file(args.data)


def _integer(text: str) -> int:
    value = int(text, 0)
    if not 0 < value <= 0x7F:
        raise argparse.ArgumentTypeError(f"{text} are no attributes: give bits from 1 to 0x7f")
    return value


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
