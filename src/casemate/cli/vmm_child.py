"""The command of ``casemate kvm``, and the summaries that its processes send (docs/guide/kvm.md)."""

from __future__ import annotations

import argparse
import contextlib
import json
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, NamedTuple

from casemate.cli.vmm_environment import prepare
from casemate.errors import SpecError
from casemate.userkvm.options import Options
from casemate.userkvm.report import to_text

_SIGNALLED = 128
_CHUNK = 1 << 16
_TAKEN = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1
_GRACE_SECONDS = 1.0
"""For children that outlive the command, as those that it ends with itself."""


class Ran(NamedTuple):
    """What became of a command."""

    exit_code: int
    signal: int | None
    """The one that ended it."""
    summaries: list[dict[str, Any]]
    """Of its processes that opened /dev/kvm."""
    lives_on: bool
    """Whether one of them has it open still."""


def run_and_report(args: argparse.Namespace, options: Options) -> int:
    """Run the command, print and write what its processes did; returns its exit code. Raises as ``run_vmm`` does."""
    ran = run_vmm(args.vmm, options, lambda summary: _print(args, summary))
    _report(args, ran)
    return ran.exit_code


def run_vmm(command: list[str], options: Options, show: Callable[[dict[str, Any]], None]) -> Ran:
    """Run a VMM on the modelled KVM, to its end.

    ``show`` gets summaries that SIGUSR1 asks for. Raises SpecError and UnsupportedError, and SystemExit if a signal
    that ends came before the command ran.
    """
    with _Child(show) as child, tempfile.TemporaryDirectory(prefix="casemate-kvm-") as folder:
        path = Path(folder, "summary")
        program, environment = prepare(command, options._replace(socket=str(path)))
        with contextlib.closing(_Collector(path)) as collector:
            child.start([str(program), *command[1:]], environment, collector)
            code = child.wait()
            summaries = collector.finish()
    ended_by = -code if code < 0 else None
    exit_code = code if ended_by is None else _SIGNALLED + ended_by
    return Ran(exit_code, ended_by, summaries, collector.is_used)


class _Collector:
    """Takes summaries from the command and its children, on a thread, until the command ended.

    Nothing is lost then: what a process sent before it ended is there to be read.
    """

    def __init__(self, path: Path) -> None:
        self._summaries: dict[int, dict[str, Any]] = {}
        self._senders: set[_Sender] = set()
        self._arrived = threading.Condition()
        self._listener = _listen(path)
        self._end, self._ended = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for each in (self._listener, self._ended):
            self._selector.register(each, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        deadline = None
        while deadline is None or self._senders:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            ready = self._selector.select(left)
            if not ready:
                return
            for key, _ in ready:
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._ended:
                    self._selector.unregister(self._ended)
                    deadline = monotonic() + _GRACE_SECONDS
                else:
                    self._read(key.data)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                sender = _Sender(connection)
                self._selector.register(connection, selectors.EVENT_READ, sender)
                with self._arrived:
                    self._senders.add(sender)

    def _read(self, sender: _Sender) -> None:
        received = sender.receive()
        with self._arrived:
            self._summaries |= {summary["pid"]: summary for summary in sender.take_summaries(received)}
            if not received:
                self._senders.remove(sender)
                self._selector.unregister(sender.connection)
                sender.connection.close()
            self._arrived.notify_all()

    def ask(self, seconds: float = 2.0) -> list[dict[str, Any]]:
        """Summaries as of now, of every process that answers in time."""
        with self._arrived:
            asked = [(sender, sender.received) for sender in self._senders if sender.ask()]
            self._arrived.wait_for(
                lambda: all(sender.received > before or sender.is_gone for sender, before in asked), seconds
            )
            return list(self._summaries.values())

    def finish(self) -> list[dict[str, Any]]:
        """The command ended: what came, and what its last children send in the next second."""
        self._end.send(b"!")
        self._thread.join()
        return list(self._summaries.values())

    @property
    def is_used(self) -> bool:
        """Whether a process that opened /dev/kvm had not ended when this one did."""
        return any(not sender.is_done for sender in self._senders)

    def close(self) -> None:
        """Give its sockets and its thread back."""
        self.finish()
        self._selector.close()
        connections = (sender.connection for sender in self._senders)
        for each in (self._listener, self._end, self._ended, *connections):
            each.close()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise SpecError(
            f"no socket can be made in the temporary folder {path.parent}: {error.strerror or error}",
            "set TMPDIR to another folder, one with a short path such as /tmp",
        ) from None
    listener.listen()
    listener.setblocking(False)
    return listener


class _Sender:
    """A process at the other end of ``connection``, which may send anything."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = 0
        """Summaries that came."""
        self.is_gone = False
        self.is_done = False
        """Whether its last summary came: only the end of the process is to come."""
        self._rest = b""

    def ask(self) -> bool:
        """For a summary; whether it can be asked."""
        try:
            return self.connection.send(b"?", socket.MSG_DONTWAIT) == 1
        except OSError:
            return False

    def receive(self) -> bytes:
        """What it sent; nothing once it is gone."""
        try:
            received = self.connection.recv(_CHUNK)
        except OSError:
            received = b""
        self.is_gone = not received
        return received

    def take_summaries(self, received: bytes) -> Iterator[dict[str, Any]]:
        """The summaries that are whole now."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            try:
                summary = json.loads(line)
            except ValueError:
                continue
            if isinstance(summary, dict) and isinstance(summary.get("pid"), int):
                self.received += 1
                self.is_done = bool(summary.get("last"))
                yield summary


class _Child:
    """The command; as a context, signals that end or ask ``casemate kvm`` are its.

    They wait for it to run, so that nothing is left behind, and do nothing once it ended.
    """

    def __init__(self, show: Callable[[dict[str, Any]], None]) -> None:
        self._show_summary = show
        self._process: subprocess.Popen[bytes] | None = None
        self._collector: _Collector | None = None
        self._came: list[int] = []
        """Signals that end, from before it ran."""
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> _Child:
        # The command is to ignore what is ignored here (nohup), so those are taken once it runs.
        self._take(number for number in _TAKEN if signal.getsignal(number) is not signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _take(self, numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            handler = self._show if number == signal.SIGUSR1 else self._forward
            self._handlers[number] = signal.signal(number, handler)

    def start(self, command: list[str], environment: dict[str, str], collector: _Collector) -> None:
        """Raises SpecError if it cannot be started, SystemExit if it is not to be."""
        if self._came:
            raise SystemExit(_SIGNALLED + self._came[0])
        try:
            self._process = subprocess.Popen(command, env=environment, close_fds=False)
        except OSError as error:
            raise SpecError(
                f"{command[0]} cannot be started: {error.strerror}", "name another command"
            ) from None
        self._collector = collector
        self._take(number for number in _TAKEN if number not in self._handlers)
        for number in self._came:
            self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code; the signal that ended it as a negative number."""
        assert self._process is not None
        return self._process.wait()

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self._process is None:
            self._came.append(number)
        elif number != signal.SIGINT:  # the terminal sends that one to both
            self._process.send_signal(number)

    def _show(self, _number: int, _frame: FrameType | None) -> None:
        if self._collector is None:
            return
        for summary in self._collector.ask():
            self._show_summary(summary)


def _report(args: argparse.Namespace, ran: Ran) -> None:
    if args.report is not None:
        from casemate.userkvm.report_html import to_html

        try:
            args.report.write_text(to_html(ran.summaries), "utf-8")
        except OSError as error:
            raise SpecError(f"--report {args.report}: {error.strerror}", "name another file") from None
    if args.quiet:
        return
    if (missing := _missing(ran)) is not None:
        print(f"casemate: {missing}", file=sys.stderr)
    for summary in ran.summaries:
        _print(args, summary)


def _missing(ran: Ran) -> str | None:
    """What there is no summary of, and why."""
    if ran.lives_on:
        return "a process that uses /dev/kvm goes on after the command: there is no last summary of it"
    if ran.summaries:
        return None
    if ran.signal is not None:
        return f"the command was ended by signal {ran.signal}: there is no summary"
    return "the command opened no /dev/kvm, or was killed: there is no summary"


def _print(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    text = json.dumps(summary, indent=2) if args.json else to_text(summary)
    print(text, file=sys.stderr, flush=True)
