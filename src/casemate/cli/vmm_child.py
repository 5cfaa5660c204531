"""The command of ``casemate kvm``, and the summaries that its processes send (docs/guide/kvm.md)."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from casemate.cli.vmm_environment import prepare
from casemate.errors import SpecError
from casemate.userkvm.options import Options
from casemate.userkvm.report import to_text

_SIGNALLED = 128


def run_and_report(args: argparse.Namespace, options: Options) -> int:
    """Run the command, print and write what its processes did; returns its exit code. Raises as ``run_vmm`` does."""
    code, summaries = run_vmm(args.vmm, options, lambda summary: _print(args, summary))
    _report(args, summaries)
    return code


def run_vmm(
    command: list[str], options: Options, show: Callable[[dict[str, Any]], None]
) -> tuple[int, list[dict[str, Any]]]:
    """Run a VMM on the modelled KVM: its exit code, and the summaries of its processes that opened /dev/kvm.

    ``show`` gets summaries that SIGUSR1 asks for. Raises SpecError and UnsupportedError.
    """
    with tempfile.TemporaryDirectory(prefix="casemate-kvm-") as folder:
        collector = _Collector(Path(folder, "summary"))
        program, environment = prepare(command, options._replace(socket=str(collector.path)))
        code = _Child([str(program), *command[1:]], environment, collector, show).wait()
        collector.close()
    return code, collector.last()


class _Collector:
    """Takes summaries from the command and its children."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._summaries: dict[int, dict[str, Any]] = {}
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._arrived = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._read, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _read(self, connection: socket.socket) -> None:
        with connection, connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                summary = json.loads(line)
                with self._arrived:
                    self._summaries[summary["pid"]] = summary
                    self._arrived.notify_all()

    def ask(self, seconds: float = 2.0) -> list[dict[str, Any]]:
        """Summaries as of now."""
        with self._arrived:
            before = dict(self._summaries)
        for connection in self._connections:
            try:
                connection.send(b"?")
            except OSError:
                continue
        with self._arrived:
            self._arrived.wait_for(lambda: self._summaries != before, seconds)
            return list(self._summaries.values())

    def last(self) -> list[dict[str, Any]]:
        """What came."""
        return list(self._summaries.values())

    def close(self) -> None:
        """The command ended: take what is still on its way."""
        self._listener.close()
        for thread in self._threads:
            thread.join(1.0)


class _Child:
    """The command; signals that end or ask ``casemate kvm`` are its."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        collector: _Collector,
        show: Callable[[dict[str, Any]], None],
    ) -> None:
        self._collector = collector
        self._show_summary = show
        try:
            self._process = subprocess.Popen(command, env=environment, close_fds=False)
        except OSError as error:
            raise SpecError(
                f"{command[0]} cannot be started: {error.strerror}", "name another command"
            ) from None

    def wait(self) -> int:
        """Its exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._forward)
        signal.signal(signal.SIGUSR1, self._show)
        code = self._process.wait()
        return code if code >= 0 else _SIGNALLED - code

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # the terminal sends that one to both
            self._process.send_signal(number)

    def _show(self, _number: int, _frame: FrameType | None) -> None:
        for summary in self._collector.ask():
            self._show_summary(summary)


def _report(args: argparse.Namespace, summaries: list[dict[str, Any]]) -> None:
    if args.report is not None:
        from casemate.userkvm.report_html import to_html

        try:
            args.report.write_text(to_html(summaries), "utf-8")
        except OSError as error:
            raise SpecError(f"--report {args.report}: {error.strerror}", "name another file") from None
    if not summaries and not args.quiet:
        print("casemate: the command opened no /dev/kvm, or was killed: there is no summary", file=sys.stderr)
    for summary in summaries:
        if not args.quiet:
            _print(args, summary)


def _print(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    text = json.dumps(summary, indent=2) if args.json else to_text(summary)
    print(text, file=sys.stderr, flush=True)
