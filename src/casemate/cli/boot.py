"""``casemate boot``: words to a machine, its outcome to words (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.cli import confidential_options, power_cuts
from casemate.cli.host_choice import choose_host, validate_host
from casemate.errors import HostError, ImageError, SpecError

if TYPE_CHECKING:
    from casemate.cli.serial_line import SerialLine
    from casemate.confidential.preparation import PreparedLaunch
    from casemate.host.hypervisor import Hypervisor
    from casemate.machine.machine import Machine
    from casemate.machine.outcome import Outcome
    from casemate.machine.spec import MachineSpec

EPILOG = """\
examples:
  casemate boot --until 'Shell> '
      the newest installed OVMF, its variables kept for the next time; ends at the prompt
  casemate boot --code OVMF_CODE.fd --vars my_VARS.fd
      your files; on a terminal it is the guest's console, Ctrl-A X leaves
  casemate boot --bios OVMF.fd --json --until 'Shell> ' --timeout 60
      firmware as RAM or ROM, what happened as one JSON document
  casemate boot --guest sev-es --feature debug-swap --code OVMF_CODE.fd --host model:linux-6.18 --dry-run
      what launching a SEV-ES guest takes, step by step, with its digest
  casemate boot --timeout 60 -- -drive if=pflash,format=raw,unit=0,readonly=on,file=CODE.fd -m 512 -nographic
      a guest as QEMU is told it; what is not supported is refused by name
  casemate boot --type ver --type 'set -v greeting hello' --serial file:serial.log
      types at each prompt, ends at the one after the last text

Without a terminal the guest's idle time is skipped, so that countdowns cost nothing.
"""

_SUFFIXES = {"": 20, "k": 10, "m": 20, "g": 30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    firmware = parser.add_argument_group("firmware (without any: the newest installed pair)")
    firmware.add_argument("--code", type=Path, metavar="F", help="flash unit 0, opened read-only")
    firmware.add_argument(
        "--vars", type=Path, metavar="F", help="flash unit 1, the variable store; written to"
    )
    firmware.add_argument(
        "--vars-template", type=Path, metavar="F", help="what a new variable store is copied from"
    )
    firmware.add_argument(
        "--vars-sync",
        choices=["always", "idle", "exit"],
        default="exit",
        help="when variables go to the disk: after each flash command, when the guest pauses, at the end (%(default)s)",
    )
    firmware.add_argument("--bios", type=Path, metavar="F", help="one image below 4 GiB instead of flash")
    firmware.add_argument("--name", default="default", help="guest whose kept variables to use (%(default)s)")
    guest = parser.add_argument_group("machine")
    guest.add_argument(
        "--host",
        default="auto",
        metavar="HOST",
        help="what runs the guest: auto, kvm, model, or model:ERA for the kernel of an era as linux-6.18"
        " (%(default)s: KVM if it runs supervisor code at speed, else the model)",
    )
    guest.add_argument("--machine", choices=["q35", "pc", "bare"], default="q35", help="board (%(default)s)")
    guest.add_argument(
        "--memory", type=_size, default="256M", metavar="SIZE", help="RAM, as 256M or 2G (%(default)s)"
    )
    guest.add_argument(
        "--protection",
        choices=["auto", "slot", "vma", "view"],
        default="auto",
        help="write protection of flash: read-only slot, mprotect of the host mapping, or read-only view (%(default)s)",
    )
    guest.add_argument(
        "--on-write",
        choices=["kill", "drop"],
        help="what a store to protected firmware does (default: what the device does with it, or kill)",
    )
    guest.add_argument(
        "--fw-cfg",
        action="append",
        default=[],
        type=_fw_cfg_file,
        metavar="NAME=FILE",
        help="offer FILE to the guest through fw_cfg, as opt/org.example/name (repeatable)",
    )
    guest.add_argument(
        "--public-api", action="store_true", help="keep the modelled CPU to Unicorn's public interface"
    )
    confidential_options.add_arguments(parser)
    console = parser.add_argument_group("console")
    console.add_argument(
        "--serial", metavar="WHERE", help="stdio (default), none, file:PATH, pty, or unix:PATH"
    )
    console.add_argument(
        "--debugcon", type=Path, metavar="F", help="write debug output (port 0x402) to a file"
    )
    console.add_argument(
        "--type", action="append", default=[], metavar="TEXT", help="type TEXT at a prompt (repeatable)"
    )
    console.add_argument("--prompt", default="Shell> ", help="what a prompt looks like (%(default)r)")
    console.add_argument("--until", metavar="TEXT", help="end when the guest prints TEXT")
    console.add_argument("--timeout", type=_seconds, metavar="S", help="end after S seconds")
    console.add_argument(
        "--cut-power-at",
        type=power_cuts.cut_request,
        metavar="N",
        help="fail the power at flash command N, or random:SEED; all or all:COUNT judges many cuts of one boot",
    )
    parser.add_argument("qemu", nargs="*", metavar="-- QEMU OPTION", help="the guest in QEMU's spelling")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON document on standard output")
    output.add_argument(
        "-v", "--verbose", action="store_true", help="rejected protections, unclaimed accesses, ..."
    )


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from casemate.cli import boot_text
    from casemate.machine.boot import Attachments, boot

    if args.qemu:
        from casemate.cli.qemu_options import apply_qemu_options

        apply_qemu_options(args, args.qemu, _size)
    validate_host(args.host)
    options = confidential_options.launch_options(args)
    spec = make_spec(args)
    cut: power_cuts.CutRequest | None = args.cut_power_at
    if cut is not None:
        power_cuts.validate_cut(spec)
    if cut is not None and cut.number is None:
        return power_cuts.judge_cuts(spec, cut, args.until, args.json)
    chosen = choose_host(args.host, spec)
    prepared = None
    if options is not None:
        from casemate.confidential.preparation import prepare
        from casemate.host.clock import GuestClock

        host = chosen.make(GuestClock())
        prepared = prepare(spec, options, host)
        spec = prepared.spec
        if args.dry_run:
            _print_dry_run(args, prepared, host)
            return 0
    with ExitStack() as stack:
        started: list[Machine] = []
        line = _serial_line(args, stack, started)
        serial = line.write if line else _serial_output(args, stack)
        interactive = serial is not None and _is_stdio(args) and _somebody_types(args)
        status = boot_text.StatusLine(enabled=sys.stderr.isatty())
        stack.callback(status.clear)
        wait = line.wait if line else None
        if interactive:
            from casemate.cli.terminal import Keyboard, raw_terminal
            from casemate.machine.outcome import Ending

            wait = Keyboard(lambda: started[0].console, lambda: started[0].end(Ending.LEFT)).wait
            stack.enter_context(raw_terminal())
        outcome = boot(
            spec,
            until=args.until,
            timeout=args.timeout,
            typed=args.type,
            prompt=args.prompt,
            attachments=Attachments(
                output=status.before(serial) if serial else None,
                debug_output=_file_output(args.debugcon, stack) if args.debugcon else None,
                on_phase=status.phase,
                on_start=lambda machine: _start(machine, started, cut),
                wait=wait,
                real_time=interactive or line is not None,
            ),
            hypervisor=chosen.make,
            host_why=chosen.why,
            assemble=lambda machine: _assemble(machine, prepared),
        )
    _print(args, outcome)
    return outcome.exit_code


def make_spec(args: argparse.Namespace) -> MachineSpec:
    """The machine that the options describe; finds firmware and prepares variables where they leave it open."""
    from casemate.devices.flash.file import Sync
    from casemate.host.guest_kind import GuestKind
    from casemate.machine.spec import MachineSpec
    from casemate.memory.protection import OnWrite

    code, variables = args.code, args.vars
    if args.code is None and args.bios is None:
        code, variables = _installed_firmware(args)
    elif args.vars_template is not None:
        if args.bios is not None:
            raise SpecError("--vars-template: --bios firmware is no flash", "leave it out, or use --code")
        variables = variables or _kept_variables(args, code)
        _copy_once(args.vars_template, variables)
    return MachineSpec(
        code=code,
        variables=variables,
        bios=args.bios,
        machine=args.machine,
        memory=args.memory,
        sync=Sync(args.vars_sync),
        kind=GuestKind(args.guest),
        protection=args.protection,
        on_write=OnWrite(args.on_write) if args.on_write else None,
        fast=not args.public_api,
        kernel=args.kernel,
        initrd=args.initrd,
        append=args.append or "",
        fw_cfg=tuple((name, _contents(source)) for name, source in args.fw_cfg),
    )


def _assemble(machine: Machine, prepared: PreparedLaunch | None) -> None:
    for warning in machine.warnings:
        print(f"casemate: warning: {warning}", file=sys.stderr)
    if prepared is None:
        machine.assemble()
    else:
        from casemate.confidential.stages import launch

        launch(machine, prepared)


def _start(machine: Machine, started: list[Machine], cut: power_cuts.CutRequest | None) -> None:
    started.append(machine)
    if cut is not None:
        power_cuts.cutter(cut)(machine)


def _print_dry_run(args: argparse.Namespace, prepared: PreparedLaunch, host: Hypervisor) -> None:
    from casemate.confidential.dry_run import dry_run

    plan = dry_run(prepared, host)
    if args.json:
        import json

        print(json.dumps(plan, indent=2))
    else:
        print(confidential_options.dry_run_text(plan))


def _installed_firmware(args: argparse.Namespace) -> tuple[Path, Path | None]:
    from casemate.firmware.descriptors import find_firmware, firmware_roots

    pair = find_firmware(firmware_roots(os.environ), _unfit(args.guest))
    if args.verbose:
        print(f"casemate: firmware: {pair.why}", file=sys.stderr)
        for reason in pair.skipped:
            print(f"casemate: passed over: {reason}", file=sys.stderr)
    template = args.vars_template or pair.vars_template
    variables = args.vars
    if template is not None:
        variables = variables or _kept_variables(args, pair.code)
        _copy_once(template, variables)
    return pair.code, variables


def _unfit(guest: str) -> Callable[[Path], str | None]:
    if guest != "sev-es":
        return lambda code: None
    from casemate.confidential.preparation import unfit_for_sev_es
    from casemate.firmware.image import FirmwareImage

    return lambda code: unfit_for_sev_es(FirmwareImage.load(code))


def _kept_variables(args: argparse.Namespace, code: Path) -> Path:
    name: str = args.name
    if not args.name or "/" in args.name or args.name.startswith("."):
        raise SpecError(
            f"--name {args.name!r} cannot be the name of a folder", "use letters, digits and dashes"
        )
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "casemate" / name / f"{code.stem}.vars.fd"


def _copy_once(template: Path, target: Path) -> None:
    from casemate.devices.flash.file import copy_template

    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            "mkdir", error.errno or 0, str(target.parent), "name a place for the variables with --vars"
        ) from error
    copy_template(template, target)


def _size(text: str) -> int:
    digits, suffix = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if not digits.isdecimal() or suffix not in _SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 256M or 2G")
    return int(digits) << _SUFFIXES[suffix]


def _fw_cfg_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=FILE")
    return name, Path(path)


def _contents(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise ImageError(source, f"cannot be read: {error.strerror}", "check the path") from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return value


def _is_stdio(args: argparse.Namespace) -> bool:
    return args.serial in (None, "stdio")


def _somebody_types(args: argparse.Namespace) -> bool:
    from casemate.cli.terminal import is_interactive

    return is_interactive() and not args.until and not args.type


def _serial_line(args: argparse.Namespace, stack: ExitStack, started: list[Machine]) -> SerialLine | None:
    kind, _, path = (args.serial or "").partition(":")
    if kind not in ("pty", "unix"):
        return None

    from casemate.cli.serial_line import SerialLine

    line = SerialLine(lambda: started[0].console)
    if kind == "pty":
        line.open_pty(stack)
    else:
        line.listen(path, stack)
    return line


def _serial_output(args: argparse.Namespace, stack: ExitStack) -> Callable[[bytes], None] | None:
    where = args.serial or ("none" if args.json else "stdio")
    if where == "none":
        return None
    if where == "stdio":
        if args.json:
            raise SpecError("--json and --serial stdio both want standard output", "use --serial file:PATH")
        return _stdout_output()
    kind, _, path = where.partition(":")
    if kind != "file" or not path:
        raise SpecError(f"--serial {where!r} is not known", "use stdio, none, file:PATH, pty or unix:PATH")
    return _file_output(Path(path), stack)


def _stdout_output() -> Callable[[bytes], None]:
    fd = sys.stdout.fileno()
    sys.stdout.flush()

    def write(data: bytes) -> None:
        while data:
            data = data[os.write(fd, data) :]

    return write


def _file_output(path: Path, stack: ExitStack) -> Callable[[bytes], None]:
    try:
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise HostError("open", error.errno or 0, str(path), "choose a file that can be written") from error
    stack.enter_context(file)

    def write(data: bytes) -> None:
        try:
            file.write(data)
        except OSError as error:
            raise HostError("write", error.errno or 0, str(path), "make room on the disk") from error

    return write


def _print(args: argparse.Namespace, outcome: Outcome) -> None:
    if args.json:
        import json

        print(json.dumps(outcome.to_json(), indent=2))
    else:
        from casemate.cli import boot_text

        sys.stdout.flush()
        print(boot_text.summary(outcome, verbose=args.verbose), file=sys.stderr)
