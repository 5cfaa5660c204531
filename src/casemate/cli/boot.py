"""``casemate boot``: words to a machine, its outcome to words (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from casemate.cli import boot_report, confidential_options, power_cuts
from casemate.cli.boot_arguments import add_arguments, size
from casemate.cli.boot_spec import make_spec
from casemate.cli.host_choice import choose_host, validate_host
from casemate.cli.serial_choice import file_output, is_stdio, serial_line, serial_output, somebody_types

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.confidential.preparation import PreparedLaunch
    from casemate.machine.machine import Machine
    from casemate.machine.outcome import Outcome

__all__ = ["EPILOG", "add_arguments", "run"]

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
  casemate boot --type ver --type 'set -v greeting hello' --serial file:serial.log
      types at each prompt, ends at the one after the last text

Without a terminal the guest's idle time is skipped, so that countdowns cost nothing.
"""


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from casemate.cli import boot_text
    from casemate.machine.boot import Attachments, boot

    if args.qemu:
        from casemate.cli.qemu_options import apply_qemu_options

        apply_qemu_options(args, args.qemu, size)
    validate_host(args.host)
    boot_report.validate_reports(args.report)
    options = confidential_options.launch_options(args)
    spec = make_spec(args)
    cut: power_cuts.CutRequest | None = args.cut_power_at
    if cut is not None:
        power_cuts.validate_cut(spec)
    if cut is not None and cut.number is None:
        return power_cuts.judge_cuts(spec, cut, args.until, args.json)
    chosen = choose_host(args.host, spec, confidential_options.platform_folder(args))
    prepared = None
    if options is not None:
        from casemate.confidential.dry_run import dry_run
        from casemate.confidential.dry_run_tdx import dry_run_tdx
        from casemate.confidential.preparation import prepare
        from casemate.host.clock import GuestClock
        from casemate.host.guest_kind import GuestKind

        host = chosen.make(GuestClock())
        if spec.kind is GuestKind.TDX:
            _print_dry_run(args, dry_run_tdx(spec))
            return 0
        prepared = prepare(spec, options, host)
        spec = prepared.spec
        if args.dry_run:
            _print_dry_run(args, dry_run(prepared, host))
            return 0
    with ExitStack() as stack:
        started: list[Machine] = []
        line = serial_line(args, stack, started)
        serial = line.write if line else serial_output(args, stack)
        interactive = serial is not None and is_stdio(args) and somebody_types(args)
        phases = boot_text.KERNEL_PHASES if spec.is_direct else boot_text.FIRMWARE_PHASES
        status = boot_text.StatusLine(phases, enabled=sys.stderr.isatty())
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
            watchdog=args.watchdog,
            typed=args.type,
            prompt=args.prompt,
            attachments=Attachments(
                output=status.before(serial) if serial else None,
                debug_output=file_output(args.debugcon, stack) if args.debugcon else None,
                on_phase=status.phase,
                on_start=lambda machine: _start(machine, started, cut),
                wait=wait,
                real_time=interactive or line is not None,
            ),
            hypervisor=chosen.make,
            host_why=chosen.why,
            assemble=lambda machine: _assemble(machine, prepared, args.attestation),
        )
    _print(args, outcome)
    for path in args.report:
        boot_report.write_report(path, outcome, args.command_line)
    return outcome.exit_code


def _assemble(machine: Machine, prepared: PreparedLaunch | None, attestation: Path | None) -> None:
    if prepared is not None:
        from casemate.confidential.warnings import launch_warnings

        machine.warnings += launch_warnings(prepared)
    for warning in machine.warnings:
        print(f"casemate: warning: {warning}", file=sys.stderr)
    if prepared is None:
        machine.assemble()
    else:
        from casemate.confidential.snp import SnpFinished
        from casemate.confidential.stages import launch

        finished = launch(machine, prepared)
        if attestation is not None and isinstance(finished, SnpFinished):
            certificates = finished.processor.certificates()
            if finished.report is not None and certificates is not None:
                confidential_options.write_attestation(attestation, finished.report, certificates)


def _start(machine: Machine, started: list[Machine], cut: power_cuts.CutRequest | None) -> None:
    started.append(machine)
    if cut is not None:
        power_cuts.cutter(cut)(machine)


def _print_dry_run(args: argparse.Namespace, plan: dict[str, Any]) -> None:
    if args.json:
        import json

        print(json.dumps(plan, indent=2))
    else:
        print(confidential_options.dry_run_text(plan))


def _print(args: argparse.Namespace, outcome: Outcome) -> None:
    if args.json:
        import json

        print(json.dumps(outcome.to_json(), indent=2))
    else:
        from casemate.cli import boot_text

        sys.stdout.flush()
        print(boot_text.summary(outcome, verbose=args.verbose), file=sys.stderr)
