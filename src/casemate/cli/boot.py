"""``casemate boot``: words to a machine, its outcome to words (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.abi.guest_kind import GuestKind
from casemate.api.boot import boot
from casemate.cli import boot_arguments
from casemate.cli.boot_arguments import DEFAULT_WATCHDOG
from casemate.cli.boot_report import validate_reports
from casemate.cli.boot_spec import make_spec
from casemate.cli.boot_text import FIRMWARE_PHASES, KERNEL_PHASES, summary
from casemate.cli.confidential_arguments import validate_launch_words
from casemate.cli.confidential_options import dry_run_text, launch_options, write_attestation
from casemate.cli.confinement import Confinement
from casemate.cli.power_cuts import cutter, print_cuts, validate_cut
from casemate.cli.qemu_options import apply_qemu_options
from casemate.cli.qmp_socket import make_monitor
from casemate.cli.serial_choice import file_output, is_stdio, serial_line, serial_output, somebody_types
from casemate.cli.session import model_platform_folder
from casemate.cli.terminal import Keyboard, StatusLine, raw_terminal, width_of, wrapped
from casemate.confidential.dry_run import dry_run
from casemate.confidential.dry_run_tdx import dry_run_tdx
from casemate.confidential.preparation import LaunchOptions, PreparedLaunch, prepare
from casemate.confidential.warnings import launch_warnings
from casemate.host.clock import GuestClock
from casemate.machine.boot import Attachments
from casemate.machine.host_choice import choose_host, validate_host
from casemate.machine.machine import Machine
from casemate.machine.outcome import Ending, LaunchRecord, Outcome
from casemate.machine.spec import MachineSpec
from casemate.qmp.monitor import Monitor

if TYPE_CHECKING:
    from casemate.cli.power_cuts import CutRequest
    from casemate.host.hypervisor import Hypervisor
    from casemate.machine.host_choice import HostChoice

EPILOG = """\
examples:
  casemate boot --until 'Shell> '
      the newest installed OVMF, its variables kept for the next time; ends at the prompt
  casemate boot --code OVMF_CODE.fd --vars my_VARS.fd
      your files; on a terminal it is the guest's console, Ctrl-A X leaves
  casemate boot --bios OVMF.fd --json --until 'Shell> ' --timeout 60
      firmware as RAM or ROM, what happened as one JSON document
  casemate boot --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --timeout 60
      Linux without firmware; as a confidential guest with --guest sev or sev-es
  casemate boot --guest sev-es --feature debug-swap --code OVMF_CODE.fd --host model:linux-6.18 --dry-run
      what launching a SEV-ES guest takes, step by step, with its digest
  casemate boot --timeout 60 -- -drive if=pflash,format=raw,unit=0,readonly=on,file=CODE.fd -m 512 -nographic
      a guest as QEMU is told it; what is not supported is refused by name
  casemate boot --until 'Shell> ' --report boot.html
      a page about the run: timeline, what was written, violations with their evidence
  casemate boot --guest sev --qmp unix:qmp.sock --paused
      waits, measured, for the commands that programs give QEMU: query-sev-launch-measure, cont, ...
  casemate boot --type ver --type 'set -v greeting hello' --serial file:serial.log
      types at each prompt, ends at the one after the last text

Without a terminal the guest's idle time is skipped, so that countdowns cost nothing.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    boot_arguments.add_arguments(parser, EPILOG)


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    return run_on(args, lambda host: host)


def run_on(args: argparse.Namespace, around: Callable[[Hypervisor], Hypervisor]) -> int:
    """Do it on the host that was asked for, or on another one ``around`` it; returns the exit code."""
    if args.qemu:
        apply_qemu_options(args, args.qemu, boot_arguments.size)
    validate_host(args.host)
    validate_reports(args.report)
    validate_launch_words(args)
    monitor = make_monitor(args) if args.qmp or args.paused else None
    owner = monitor.attest if monitor and monitor.paused else None
    options = None if args.guest == "plain" else launch_options(args, owner)
    spec = make_spec(args)
    if args.cpu is not None:
        from casemate.cli.cpu_option import cpu_warnings  # knows the modelled processor

        for warning in cpu_warnings(args.cpu, args.vcpu_type):
            print(f"casemate: warning: {warning}", file=sys.stderr)
    cut: CutRequest | None = args.cut_power_at
    if cut is not None:
        validate_cut(spec)
        if cut.number is None:
            return print_cuts(spec, cut, args.until, args.json)
    choice = choose_host(args.host, spec, _platform_folder(args))
    chosen = replace(choice, make=lambda clock: around(choice.make(clock)))
    prepared = None
    if options is not None:
        prepared, plan = _prepare(args, spec, options, chosen)
        if prepared is None or args.dry_run:
            _print_dry_run(args, plan)
            return 0
        spec = prepared.spec
    with closing(Confinement(args)) as confinement:
        outcome = _boot(args, spec, chosen, prepared, monitor, confinement)
        _tell(args, outcome, cut, confinement)
    return outcome.exit_code


def _tell(
    args: argparse.Namespace, outcome: Outcome, cut: CutRequest | None, confinement: Confinement
) -> None:
    if cut is not None and outcome.ending is not Ending.POWER_CUT:
        writes = outcome.report["writes"]
        made = writes["programs"] + writes["erases"]
        warning = (
            f"the power never failed: the guest made {made} flash commands, and the cut was at {cut.number}"
        )
        outcome.report["warnings"].append(warning)
        print(f"casemate: warning: {warning}", file=sys.stderr)
    _print(args, outcome)
    if args.report:
        confinement.write_reports(outcome.to_report(shlex.join(args.command_line)))


def _platform_folder(args: argparse.Namespace) -> Path | None:
    # Where the platform's keys are that the owner's session was made for.
    return None if args.session_file is None else model_platform_folder()


def _prepare(
    args: argparse.Namespace, spec: MachineSpec, options: LaunchOptions, chosen: HostChoice
) -> tuple[PreparedLaunch | None, dict[str, Any]]:
    """The launch, None for a guest that is never launched; and its plan, empty if nobody asked for one."""

    host = chosen.make(GuestClock())
    if spec.kind is GuestKind.TDX:
        return None, dry_run_tdx(spec)
    prepared = prepare(spec, options, host)
    return prepared, dry_run(prepared, host) if args.dry_run else {}


def _boot(
    args: argparse.Namespace,
    spec: MachineSpec,
    chosen: HostChoice,
    prepared: PreparedLaunch | None,
    monitor: Monitor | None,
    confinement: Confinement,
) -> Outcome:
    with ExitStack() as stack:
        started: list[Machine] = []
        if monitor is not None:
            stack.callback(monitor.close)
            monitor.open()
        line = serial_line(args, stack, started)
        serial = line.write if line else serial_output(args, stack, started)
        interactive = serial is not None and is_stdio(args) and somebody_types(args)
        phases = KERNEL_PHASES if spec.is_direct else FIRMWARE_PHASES
        status = StatusLine(phases)
        stack.callback(status.close)
        pass_input_on = line.wait if line else _wait
        if interactive:
            pass_input_on = Keyboard(
                lambda: started[0].console, lambda: started[0].state.end(Ending.LEFT)
            ).wait
            stack.enter_context(raw_terminal())

        def wait(finished: threading.Event, seconds: float) -> None:
            status.tick()
            pass_input_on(finished, seconds)

        def created(machine: Machine) -> None:
            if monitor is not None:
                monitor.attach(machine, prepared)
            for warning in [*machine.warnings, *(launch_warnings(prepared) if prepared else ())]:
                status.say(f"casemate: warning: {warning}")

        def launched(record: LaunchRecord) -> None:
            if monitor is not None:
                monitor.launched(record)
            if args.attestation is not None and record.attestation is not None:
                write_attestation(
                    args.attestation, record.attestation.report, record.attestation.certificates
                )

        return boot(
            spec,
            prepared,
            host=chosen,
            until=args.until,
            timeout=args.timeout,
            watchdog=args.watchdog or (DEFAULT_WATCHDOG if args.until or args.type else None),
            typed=args.type,
            prompt=args.prompt,
            attachments=Attachments(
                output=status.before(serial) if serial else None,
                debug_output=file_output(args.debugcon, stack) if args.debugcon else None,
                on_phase=status.phase,
                on_start=lambda machine: _start(machine, started, args.cut_power_at, monitor),
                confine=confinement.enter,
                on_close=monitor.close if monitor else None,
                wait=wait,
                real_time=interactive or line is not None,
                attending=monitor is not None,
                ends_at_prompt=not interactive and line is None and monitor is None,
            ),
            on_created=created,
            on_launched=launched,
        )


def _wait(finished: threading.Event, seconds: float) -> None:
    finished.wait(seconds)


def _start(machine: Machine, started: list[Machine], cut: CutRequest | None, monitor: Monitor | None) -> None:
    started.append(machine)
    if monitor is not None:
        monitor.start()
    if cut is not None:
        cutter(cut)(machine)


def _print_dry_run(args: argparse.Namespace, plan: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(plan, indent=2))
    else:
        print(dry_run_text(plan))


def _print(args: argparse.Namespace, outcome: Outcome) -> None:
    if args.json:
        print(json.dumps(outcome.to_json(), indent=2))
    else:
        sys.stdout.flush()
        text = summary(outcome, verbose=args.verbose)
        print(wrapped(text, width_of(sys.stderr), " " * 12), file=sys.stderr)
