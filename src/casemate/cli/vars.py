"""``casemate vars``: shows, changes, checks and repairs variable stores (docs/guide/vars.md)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from casemate.advise.store_check import StoreCheck, Stray, repair_store
from casemate.advise.variable_file import BUILDS, JSON, VariableFile, oversize
from casemate.devices.flash.file import locked_image
from casemate.errors import ImageError, SpecError
from casemate.files import read_file, write_whole
from casemate.firmware.guids import GUID_SIZE, guid, guid_text
from casemate.firmware.image import FirmwareImage
from casemate.firmware.variables import ORDINARY, VENDORS, Attributes, Variable, vendor_name
from casemate.firmware.variables_json import parse_document, variables_to_json
from casemate.firmware.varstore import LARGEST_SIGNED_VARIABLE, LARGEST_VARIABLE

EPILOG = """\
examples:
  casemate vars list VARS.fd
  casemate vars set VARS.fd greeting --utf16 hello --guid shell --in-place
  casemate vars get VARS.fd BootOrder
  casemate vars diff before.fd after.fd
  casemate vars fsck VARS.fd
      what firmware would trip over, what is free, and whether the store slows the boot
  casemate vars compact VARS.fd --in-place
      without deleted records: the next boot need not clean up
  casemate vars repair VARS.fd -o repaired.fd
  casemate vars migrate OVMF_VARS.fd --to 4M -o OVMF_VARS_4M.fd
  casemate vars migrate OVMF_VARS_4M.fd --to json -o vars.json
      for QEMU's -device uefi-vars-x64,jsonfile=vars.json; every action takes such a file, too

Nothing is written without --in-place or -o, and then all of it or nothing.
exit code: 0, 1 if diff found differences, 4 if a file is no variable store or a damaged one
"""

_DIFFERENT, _BROKEN = 1, 4

_Change = Callable[[list[Variable]], list[Variable]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One parser for each action."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(
        name: str, words: str, *, edits: bool = False, has_json: bool = False
    ) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        sub.add_argument(
            "file", metavar="FILE", type=Path, help="variable store, raw, or JSON as QEMU's uefi-vars has it"
        )
        if edits:
            where = sub.add_mutually_exclusive_group(required=True)
            where.add_argument("--in-place", action="store_true", help="replace FILE, all of it or nothing")
            where.add_argument("-o", "--output", metavar="F", type=Path, help="write the new store to F")
        if has_json:
            sub.add_argument("--json", action="store_true", help="one JSON document")
        return sub

    action("list", "name the variables, with vendor, attributes and size", has_json=True)
    _add_name(action("get", "show the value of a variable")).add_argument(
        "--raw", action="store_true", help="the bytes as they are"
    )
    _add_value(_add_name(action("set", "give a variable a value", edits=True)))
    _add_name(action("delete", "remove a variable", edits=True))
    action("diff", "say which variables two stores do not share", has_json=True).add_argument(
        "other", metavar="OTHER", type=Path, help="the newer store"
    )
    action("export", "print all variables as JSON, in the form of virt-fw-vars and of QEMU's uefi-vars")
    action("import", "set all variables of a JSON document", edits=True).add_argument(
        "document", metavar="JSON", type=Path
    )
    action("fsck", "say what firmware would trip over, lose, or finish by itself", has_json=True)
    action("repair", "write a damaged store anew from what firmware sees of it", edits=True).add_argument(
        "--salvage",
        action="store_true",
        help="take ordinary variables that lie behind the damage, too; never signed or Secure Boot variables",
    )
    action("compact", "write the store anew without deleted records", edits=True)
    action("migrate", "write the variables in the form that another firmware needs", edits=True).add_argument(
        "--to", choices=(*BUILDS, JSON), required=True, help="a flash store of a 2M or 4M build, or JSON"
    )


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
    file = _load_seen(args.file)
    if args.json:
        rows = [
            {
                "name": v.name,
                "guid": guid_text(v.guid),
                "vendor": vendor_name(v.guid),
                "attributes": v.attributes,
                "size": len(v.data),
            }
            for v in sorted(file.variables)
        ]
        print(json.dumps({"file": str(args.file), "form": file.form, "variables": rows}, indent=2))
        return 0
    for variable in sorted(file.variables):
        label = f"{_printable(variable.name)}  {vendor_name(variable.guid)}"
        print(f"{len(variable.data):6}  {_attribute_names(variable):<18}  {label}")
    free = "" if file.check is None else f", {file.check.free} bytes free"
    print(f"casemate: {len(file.variables)} variables{free}", file=sys.stderr)
    return 0


def _get(args: argparse.Namespace) -> int:
    variable = _find(_load_seen(args.file).variables, args.name, args.guid, args.file)
    if args.raw:
        sys.stdout.buffer.write(variable.data)
        return 0
    for offset in range(0, len(variable.data), 16):
        row = variable.data[offset : offset + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        print(f"{offset:08x}  {row.hex(' '):<47}  {text}")
    return 0


def _set(args: argparse.Namespace) -> int:
    def change(variables: list[Variable]) -> list[Variable]:
        same = _matches(variables, args.name, args.guid)
        if len(same) > 1 or (not same and args.guid is None):
            why = "of several vendors" if same else "new"
            raise SpecError(f"variable {args.name!r} is {why}", "name its vendor with --guid")
        if not args.name or "\0" in args.name:
            raise SpecError(f"{args.name!r} is no name of a variable", "name it with at least one character")
        old = same[0] if same else Variable(args.name, _vendor(args.guid), int(ORDINARY), b"")
        attributes = old.attributes if args.attributes is None else args.attributes
        return _merge(variables, [old._replace(data=_value(args), attributes=attributes)])

    return _edit(args, change)


def _delete(args: argparse.Namespace) -> int:
    def change(variables: list[Variable]) -> list[Variable]:
        gone = _find(variables, args.name, args.guid, args.file)
        return [variable for variable in variables if variable != gone]

    return _edit(args, change)


def _import(args: argparse.Namespace) -> int:
    new = parse_document(read_file(args.document).decode(errors="replace"), str(args.document))
    return _edit(args, lambda variables: _merge(variables, new.variables), new.digests)


def _export(args: argparse.Namespace) -> int:
    file = _load_seen(args.file)
    print(variables_to_json(file.variables, file.digests))
    return 0


def _diff(args: argparse.Namespace) -> int:
    old, new = (
        {variable.key: variable for variable in _load_seen(path).variables}
        for path in (args.file, args.other)
    )
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if args.json:
        rows = [
            {
                "name": name,
                "guid": guid_text(vendor),
                "before": old[vendor, name].data.hex() if (vendor, name) in old else None,
                "after": new[vendor, name].data.hex() if (vendor, name) in new else None,
            }
            for vendor, name in changed
        ]
        print(json.dumps({"before": str(args.file), "after": str(args.other), "changed": rows}, indent=2))
        return _DIFFERENT if changed else 0
    for key in changed:
        mark = "+" if key not in old else "-" if key not in new else "~"
        before, after = (str(len(side[key].data)) if key in side else "none" for side in (old, new))
        print(f"{mark} {_printable((old.get(key) or new[key]).label)}: {before} -> {after} bytes")
    return _DIFFERENT if changed else 0


def _fsck(args: argparse.Namespace) -> int:
    file = _load(args.file)
    (_print_check_json if args.json else _print_check)(args.file, file)
    if file.is_healthy:
        return 0
    if not args.json:
        print(f"repair it: casemate vars repair {args.file} --in-place", file=sys.stderr)
    return _BROKEN


def _print_check_json(path: Path, file: VariableFile) -> None:
    check = file.check
    document: dict[str, object] = {"file": str(path), "form": file.form, "healthy": file.is_healthy}
    if check is None:
        document |= {"variables": len(file.variables), "findings": []}
    else:
        document |= {
            "variables": len(check.whole),
            "seen_by_firmware": len(check.variables),
            "live": check.live,
            "reclaimable": check.reclaimable,
            "free": check.free,
            "capacity": check.capacity,
            "largest_variable": LARGEST_VARIABLE[check.layout.size],
            "largest_signed_variable": LARGEST_SIGNED_VARIABLE[check.layout.size],
            "findings": [dataclasses.asdict(finding) for finding in check.findings],
            "left": [
                {"offset": stray.offset, "name": stray.variable.name, "guid": guid_text(stray.variable.guid)}
                | {"can_be_salvaged": stray.can_be_salvaged}
                for stray in check.strays
            ],
        }
    print(json.dumps(document, indent=2))


def _print_check(path: Path, file: VariableFile) -> None:
    check = file.check
    if check is None:
        print(f"{path}: healthy, {len(file.variables)} whole variables, JSON for QEMU's uefi-vars device")
        return
    for finding in check.findings:
        print(f"{finding.severity}: at {finding.offset:#x}: {_printable(finding.what)}; {finding.effect}")
    for stray in check.strays:
        print(f"left: at {stray.offset:#x}: {_printable(stray.variable.label)}; {stray.why_left}")
    kind = "authenticated" if check.authenticated else "without authenticated variables"
    size = check.layout.size
    print(
        f"store of a {file.form} build, {kind}: {check.live} bytes live, {check.reclaimable} reclaimable, "
        f"{check.free} free of {check.capacity}"
    )
    print(
        f"a variable may have {LARGEST_VARIABLE[size]} bytes, a signed one {LARGEST_SIGNED_VARIABLE[size]}, "
        "with its name and header"
    )
    for variable in check.whole:
        if fault := oversize(variable, check.layout, authenticated=check.authenticated):
            print(f"note: {_printable(fault)}: firmware reads it, and would not have stored it")
    word = "healthy" if check.is_healthy else "damaged"
    print(f"{path}: {word}, {len(check.whole)} whole variables, {check.free} bytes free")


def _repair(args: argparse.Namespace) -> int:
    with _locked(args):
        file = _load(args.file)
        if file.check is None or file.check.is_healthy:
            print(f"{args.file}: healthy, nothing to repair", file=sys.stderr)
            if args.output:
                write_whole(args.output, file.data)
            return 0
        repaired = repair_store(file.data, file.check, salvage=args.salvage)
        _say_what_repair_does(file.check, salvage=args.salvage)
        if args.in_place and file.check.strays:
            kept = _unused_name(args.file)
            write_whole(kept, file.data)
            print(f"casemate: {kept} is the store as it was", file=sys.stderr)
        write_whole(args.output or args.file, repaired)
    return 0


def _say_what_repair_does(check: StoreCheck, *, salvage: bool) -> None:
    print(f"casemate: kept {len(check.whole)} variables", file=sys.stderr)
    known = {variable.key for variable in check.whole}

    def is_taken(stray: Stray) -> bool:
        return salvage and stray.can_be_salvaged and stray.variable.key not in known

    for stray in check.strays:
        word, why = ("salvaged", "") if is_taken(stray) else ("left", f": {stray.why_left}")
        where = f"at {stray.offset:#x}"
        print(f"casemate: {word} {_printable(stray.variable.label)}, {where}{why}", file=sys.stderr)


def _unused_name(path: Path) -> Path:
    number, name = 1, path.with_name(f"{path.name}.damaged")
    while name.exists():
        number, name = number + 1, path.with_name(f"{path.name}.damaged.{number}")
    return name


def _compact(args: argparse.Namespace) -> int:
    with _locked(args):
        file = _load_healthy(args.file)
        new = file.encode(file.variables)
        write_whole(args.output or args.file, new)
        if file.check is not None:
            gained = file.check.reclaimable
            print(f"casemate: {gained} bytes reclaimed, {file.check.free + gained} are free", file=sys.stderr)
    return 0


def _migrate(args: argparse.Namespace) -> int:
    with _locked(args):
        file = _load_healthy(args.file)
        if args.to != JSON and file.digests:
            print(
                "casemate: warning: a flash store has no place for the digests of signers; they are left out",
                file=sys.stderr,
            )
        write_whole(args.output or args.file, file.convert(args.to))
        print(f"casemate: {len(file.variables)} variables, {file.form} to {args.to}", file=sys.stderr)
    return 0


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
    "compact": _compact,
    "migrate": _migrate,
}


def _load(path: Path) -> VariableFile:
    return VariableFile.parse(FirmwareImage.load(path).data, str(path))


def _load_seen(path: Path) -> VariableFile:
    """A file to show; what is hidden by damage is said."""
    file = _load(path)
    if not file.is_healthy:
        print(
            f"casemate: warning: {path} is damaged, and this is what firmware sees of it; "
            f"run casemate vars fsck {path}",
            file=sys.stderr,
        )
    return file


def _load_healthy(path: Path) -> VariableFile:
    file = _load(path)
    if not file.is_healthy:
        raise ImageError(path, "the store is damaged", "run casemate vars fsck, then repair, first")
    return file


def _locked(args: argparse.Namespace) -> ExitStack:
    stack = ExitStack()
    if args.in_place:
        stack.enter_context(locked_image(args.file))
    return stack


def _edit(
    args: argparse.Namespace, change: _Change, digests: Mapping[tuple[bytes, str], bytes] | None = None
) -> int:
    with _locked(args):
        file = _load_healthy(args.file)
        variables = change(list(file.variables))
        _warn_of_oversize(file, variables)
        write_whole(args.output or args.file, file.encode(variables, digests))
    return 0


def _warn_of_oversize(file: VariableFile, variables: Iterable[Variable]) -> None:
    if file.check is None:
        return
    known = set(file.variables)
    for variable in variables:
        fault = oversize(variable, file.check.layout, authenticated=file.check.authenticated)
        if fault and variable not in known:
            print(f"casemate: warning: {_printable(fault)} when they set it themselves", file=sys.stderr)


def _merge(variables: Sequence[Variable], new: Sequence[Variable]) -> list[Variable]:
    merged = {variable.key: variable for variable in (*variables, *new)}
    return list(merged.values())


def _matches(variables: Sequence[Variable], name: str, vendor: str | None) -> list[Variable]:
    wanted = None if vendor is None else _vendor(vendor)
    return [variable for variable in variables if variable.name == name and wanted in (None, variable.guid)]


def _find(variables: Sequence[Variable], name: str, vendor: str | None, path: Path) -> Variable:
    found = _matches(variables, name, vendor)
    if not found:
        raise ImageError(path, f"there is no variable {name!r}", "see casemate vars list")
    if len(found) > 1:
        raise SpecError(f"{len(found)} vendors have a variable {name!r}", "name one with --guid")
    return found[0]


def _vendor(text: str) -> bytes:
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


def _attribute_names(variable: Variable) -> str:
    return "+".join(flag.name or "" for flag in Attributes(variable.attributes & 0x7F))


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
