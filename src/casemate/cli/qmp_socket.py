"""``--qmp`` and ``--paused`` of ``casemate boot`` (docs/guide/qmp.md)."""

from __future__ import annotations

import argparse

from casemate.errors import SpecError
from casemate.qmp.monitor import Monitor


def make_monitor(args: argparse.Namespace) -> Monitor:
    """Who serves the guest's clients; nothing is opened yet. Raises SpecError for what does not go together."""
    if args.qmp is None:
        raise SpecError("--paused: nobody could let the guest go", "add --qmp unix:PATH")
    kind, _, path = args.qmp.partition(":")
    if kind != "unix" or not path:
        raise SpecError(f"--qmp {args.qmp!r} is not known", "use unix:PATH")
    if args.cut_power_at is not None and args.cut_power_at.number is None:
        raise SpecError("--qmp is for one boot, --cut-power-at all makes many", "leave one of them out")
    if args.paused and (args.attest_cmd is not None or args.attest_socket is not None):
        raise SpecError("--paused and --attest-cmd or --attest-socket: one owner is asked", "leave one out")
    return Monitor(path, paused=args.paused, timeout=args.timeout)
