"""QEMU's spelling of a guest, as people paste it behind ``casemate boot --`` (QEMU docs/system/invocation)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from casemate.cli.cpu_option import processor_of
from casemate.errors import SpecError
from casemate.qemu.command_line import options_of, parse_fields

_DEBUG_PORT = "0x402"
_NOTHING_TO_DO = {
    "-nodefaults",
    "-no-user-config",
    "-display none",
    "-vga none",
    "-net none",
    "-nic none",
    "-monitor none",
    "-parallel none",
    "-accel tcg",
    f"-global isa-debugcon.iobase={_DEBUG_PORT}",
}
"""What is so here anyway."""


def apply_qemu_options(args: argparse.Namespace, words: list[str], size: Callable[[str], int]) -> None:
    """Set in ``args`` what QEMU's options say; ``size`` reads sizes. Raises SpecError, by name, for the rest."""
    # What comes first is no program here, so a word stands in for it.
    for option, value in ((each.name, each.value) for each in options_of(["qemu", *words])):
        if not option:
            raise SpecError(f"{value!r} is no option of QEMU", "give options behind --, such as -bios FILE")
        if f"{option} {value}".rstrip() in _NOTHING_TO_DO:
            continue
        setter = _SETTERS.get(option)
        if setter is None:
            raise _refused(option, value)
        for name, given in setter(option, value).items():
            _set(args, option, name, _size(size, str(given)) if name == "memory" else given)


def _size(size: Callable[[str], int], text: str) -> int:
    try:
        return size(text)
    except argparse.ArgumentTypeError as error:
        raise SpecError(f"QEMU's -m: {error}", "correct it") from None


def _set(args: argparse.Namespace, option: str, name: str, value: object) -> None:
    if name == "fw_cfg":
        args.fw_cfg = [*args.fw_cfg, value]
    elif (
        name not in ("machine", "memory", "cpus", "paused", "test_device") and getattr(args, name) is not None
    ):
        raise SpecError(f"QEMU's {option} gives {name} a second time", "give it once")
    else:
        setattr(args, name, value)


def _fields(value: str, first: str = "") -> dict[str, str]:
    """The fields of a value; what comes first may lack its name."""
    try:
        return parse_fields(value, first)[0]
    except (ValueError, RecursionError) as error:
        raise SpecError(f"QEMU's {value[:60]}: no JSON: {error}", "correct it") from None


def _refused(option: str, what: str) -> SpecError:
    given = f"{option} {what}".rstrip()
    return SpecError(f"QEMU's {given} is not supported", "leave it out; docs/guide/boot.md says what is")


def _only(option: str, fields: dict[str, str], allowed: dict[str, tuple[str, ...]]) -> None:
    for name, text in fields.items():
        if name not in allowed or (allowed[name] and text not in allowed[name]):
            raise _refused(option, f"{name}={text}")


def _drive(option: str, value: str) -> dict[str, object]:
    fields = _fields(value)
    flags = ("on", "off")
    allowed = {
        "if": ("pflash",),
        "format": ("raw",),
        "unit": ("0", "1"),
        "readonly": flags,
        "file": (),
        "id": (),
    }
    _only(option, fields, allowed)
    if fields.get("if") != "pflash" or "file" not in fields:
        raise _refused(option, value)
    unit, readonly = fields.get("unit", "0"), fields.get("readonly") == "on"
    if unit == "0" and not readonly:
        raise SpecError("QEMU's -drive: unit 0 is never written to here", "add readonly=on")
    if unit == "1" and readonly:
        raise SpecError("QEMU's -drive: unit 1 is written to here", "leave readonly=on out, or give a copy")
    return {"code" if unit == "0" else "vars": Path(fields["file"])}


def _machine(option: str, value: str) -> dict[str, object]:
    fields = _fields(value, "type")
    _only(option, fields, {"type": ("q35", "pc"), "accel": ("tcg",), "smm": ("off",), "usb": ("off",)})
    return {"machine": fields["type"]} if "type" in fields else {}


def _memory(option: str, value: str) -> dict[str, object]:
    fields = _fields(value, "size")
    _only(option, fields, {"size": ()})
    return {"memory": fields["size"]}


def _vcpus(option: str, value: str) -> dict[str, object]:
    fields = _fields(value, "cpus")
    _only(option, fields, {"cpus": ()})
    if not fields.get("cpus", "").isdecimal():
        raise _refused(option, value)
    return {"cpus": int(fields["cpus"])}


def _cpu(_option: str, value: str) -> dict[str, object]:
    return {"cpu": processor_of(value)}


def _device(option: str, value: str) -> dict[str, object]:
    fields = _fields(value, "driver")
    exit_port = {"driver": ("isa-debug-exit",), "iobase": ("0xf4",), "iosize": ("4", "0x4", "0x04")}
    _only(
        option, fields, exit_port if fields.get("driver") == "isa-debug-exit" else {"driver": ("pc-testdev",)}
    )
    if fields["driver"] == "isa-debug-exit" and "iobase" not in fields:
        raise SpecError("QEMU's isa-debug-exit is at port 0xf4 here", "add iobase=0xf4")
    return {"test_device": True}


def _serial(option: str, value: str) -> dict[str, object]:
    kind, _, rest = value.partition(":")
    path, *flags = rest.split(",")
    if value in ("stdio", "mon:stdio", "none", "pty"):
        return {"serial": value.removeprefix("mon:")}
    if kind == "file" or (kind == "unix" and set(flags) <= {"server", "server=on", "wait=off", "nowait"}):
        return {"serial": f"{kind}:{path}"}
    raise _refused(option, value)


def _qmp(option: str, value: str) -> dict[str, object]:
    kind, _, rest = value.partition(":")
    path, *flags = rest.split(",")
    is_server = bool({"server", "server=on"} & set(flags))
    is_known = set(flags) <= {"server", "server=on", "wait=off", "nowait"}
    if kind != "unix" or not path or not is_server or not is_known or len(flags) != 2:
        raise _refused(option, value)
    return {"qmp": f"unix:{path}"}


def _debugcon(option: str, value: str) -> dict[str, object]:
    kind, _, path = value.partition(":")
    if kind != "file" or not path:
        raise _refused(option, value)
    return {"debugcon": Path(path)}


def _fw_cfg(option: str, value: str) -> dict[str, object]:
    fields = _fields(value, "name")
    _only(option, fields, {"name": (), "file": (), "string": ()})
    if "name" not in fields or ("file" in fields) == ("string" in fields):
        raise _refused(option, value)
    return {
        "fw_cfg": (fields["name"], Path(fields["file"]) if "file" in fields else fields["string"].encode())
    }


_SETTERS: dict[str, Callable[[str, str], dict[str, object]]] = {
    "-drive": _drive,
    "-bios": lambda _, value: {"bios": Path(value)},
    "-machine": _machine,
    "-M": _machine,
    "-m": _memory,
    "-smp": _vcpus,
    "-cpu": _cpu,
    "-serial": _serial,
    "-device": _device,
    "-nographic": lambda *_: {"serial": "stdio"},
    "-debugcon": _debugcon,
    "-qmp": _qmp,
    "-S": lambda *_: {"paused": True},
    "-fw_cfg": _fw_cfg,
    "-kernel": lambda _, value: {"kernel": Path(value)},
    "-initrd": lambda _, value: {"initrd": Path(value)},
    "-append": lambda _, value: {"append": value},
}
