"""``casemate boot``: words to a machine, its outcome to words (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
import shlex
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from casemate.api.boot import boot
from casemate.cli import boot_arguments
from casemate.cli.boot_arguments import DEFAULT_WATCHDOG
from casemate.cli.boot_report import validate_reports
from casemate.cli.boot_spec import make_spec
from casemate.cli.boot_text import FIRMWARE_PHASES, KERNEL_PHASES, summary
from casemate.cli.confidential_arguments import validate_launch_words
from casemate.cli.confinement import Confinement
from casemate.cli.serial_choice import (
    GatheredOutput,
    file_output,
    is_stdio,
    serial_line,
    serial_output,
    somebody_types,
)
from casemate.cli.terminal import Keyboard, StatusLine, raw_terminal, width_of, wrapped
from casemate.files import json_text
from casemate.machine.boot import Attachments
from casemate.machine.host_choice import choose_host, validate_host
from casemate.machine.outcome import Ending, LaunchRecord, Outcome

if TYPE_CHECKING:
    from casemate.cli.confidential_boot import ConfidentialBoot
    from casemate.cli.power_cuts import CutRequest
    from casemate.host.hypervisor import Hypervisor
    from casemate.machine.host_choice import HostChoice
    from casemate.machine.machine import Machine
    from casemate.machine.spec import MachineSpec
    from casemate.qmp.monitor import Monitor

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
        from casemate.cli.qemu_options import apply_qemu_options

        apply_qemu_options(args, args.qemu, boot_arguments.size)
    validate_host(args.host)
    validate_reports(args.report)
    validate_launch_words(args)
    monitor = _monitor(args)
    launch = _launch(args, monitor)
    spec = make_spec(args)
    if args.cpu is not None:
        from casemate.cli.cpu_option import cpu_warnings  # knows the modelled processor

        for warning in cpu_warnings(args.cpu, args.vcpu_type):
            print(f"casemate: warning: {warning}", file=sys.stderr)
    cut: CutRequest | None = args.cut_power_at
    cut_power: Callable[[Machine], None] | None = None
    if cut is not None:
        cut.validate(spec)
        if cut.number is None:
            return cut.print_all(spec, args.until, args.json)
        cut_power = cut.attach
    choice = choose_host(
        args.host, spec, launch.platform_folder if launch else None, own_process=args.own_process
    )
    chosen = choice._replace(make=lambda clock: around(choice.make(clock)))
    if launch is not None:
        launch.prepare(spec, chosen)
        if launch.prepared is None:
            return 0
        spec = launch.prepared.spec
    with closing(Confinement(args)) as confinement:
        outcome = _boot(args, spec, chosen, launch, monitor, confinement, cut_power)
        _tell(args, outcome, cut, confinement)
    return outcome.exit_code


def _monitor(args: argparse.Namespace) -> Monitor | None:
    if not args.qmp and not args.paused:
        return None
    from casemate.cli.qmp_socket import make_monitor

    return make_monitor(args)


def _launch(args: argparse.Namespace, monitor: Monitor | None) -> ConfidentialBoot | None:
    if args.guest == "plain":
        return None
    from casemate.cli.confidential_boot import ConfidentialBoot

    return ConfidentialBoot(args, monitor.attest if monitor and monitor.paused else None)


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


def _boot(
    args: argparse.Namespace,
    spec: MachineSpec,
    chosen: HostChoice,
    launch: ConfidentialBoot | None,
    monitor: Monitor | None,
    confinement: Confinement,
    cut_power: Callable[[Machine], None] | None,
) -> Outcome:
    prepared = launch.prepared if launch else None
    with ExitStack() as stack:
        started: list[Machine] = []
        if monitor is not None:
            stack.callback(monitor.close)
            monitor.open()
        debug = file_output(args.debugcon, stack) if args.debugcon else None
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

        def gathered(output: Callable[[bytes], None] | None) -> Callable[[bytes], None] | None:
            return stack.enter_context(GatheredOutput(output)).put if output else None

        def wait(finished: threading.Event, seconds: float) -> None:
            status.tick()
            pass_input_on(finished, seconds)

        def created(machine: Machine) -> None:
            if monitor is not None:
                monitor.attach(machine, prepared)
            for warning in [*machine.warnings, *(launch.warnings() if launch else ())]:
                status.say(f"casemate: warning: {warning}")

        def launched(record: LaunchRecord) -> None:
            if monitor is not None:
                monitor.launched(record)
            if launch is not None:
                launch.keep_attestation(record)

        return boot(
            spec,
            prepared,
            host=chosen._replace(make=lambda clock: confinement.beside(chosen.make(clock))),
            until=args.until,
            timeout=args.timeout,
            watchdog=args.watchdog or (DEFAULT_WATCHDOG if args.until or args.type else None),
            typed=args.type,
            prompt=args.prompt,
            attachments=Attachments(
                output=line.write if line else gathered(status.before(serial) if serial else None),
                debug_output=gathered(debug),
                on_phase=status.phase,
                on_start=lambda machine: _start(machine, started, cut_power, monitor),
                confine=confinement.enter,
                on_close=monitor.close if monitor else None,
                wait=wait,
                real_time=interactive or line is not None,
                attending=monitor is not None,
                ends_at_prompt=not interactive and line is None and monitor is None,
                digests=bool(args.json or args.report),
            ),
            on_created=created,
            on_launched=launched,
        )


def _wait(finished: threading.Event, seconds: float) -> None:
    finished.wait(seconds)


def _start(
    machine: Machine,
    started: list[Machine],
    cut_power: Callable[[Machine], None] | None,
    monitor: Monitor | None,
) -> None:
    started.append(machine)
    if monitor is not None:
        monitor.start()
    if cut_power is not None:
        cut_power(machine)


def _print(args: argparse.Namespace, outcome: Outcome) -> None:
    if args.json:
        print(json_text(outcome.to_json()))
    else:
        sys.stdout.flush()
        text = summary(outcome, verbose=args.verbose)
        print(wrapped(text, width_of(sys.stderr), " " * 12), file=sys.stderr)
