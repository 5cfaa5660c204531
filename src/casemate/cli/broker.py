"""Who does outside of a sandbox what remains to be done after the run (docs/guide/sandbox.md)."""

from __future__ import annotations

import json
import multiprocessing
import signal
import stat
from contextlib import suppress
from errno import EPIPE
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from casemate.cli.boot_report import write_document
from casemate.errors import HostError

_MAX_REQUEST = 256 << 20


class Broker:
    """A process outside of the sandbox that never sees the guest; it does what was agreed before, and nothing else.

    It writes the reports that the command line asked for, and removes the sockets that were made when the other end of
    its pipe closes, however that ended.
    """

    def __init__(self, reports: list[Path], sockets: list[Path]) -> None:
        # Forked, so that it has what it needs without loading it; there are no other threads yet.
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._pipe, reports, sockets))
        self._process.start()
        theirs.close()

    def sockets_are_made(self) -> None:
        """From now on they are this run's, and go with it."""
        self._ask({"made": True})

    def write_report(self, number: int, document: dict[str, Any]) -> None:
        """Write the report of this number. Raises HostError."""
        self._ask({"report": number, "document": document})

    def close(self) -> None:
        """Nothing is left to do."""
        with suppress(OSError):
            self._pipe.close()
        self._process.join()

    def _ask(self, request: dict[str, Any]) -> None:
        try:
            self._pipe.send_bytes(json.dumps(request).encode())
            answer = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            number = getattr(error, "errno", None) or EPIPE
            raise HostError(
                "write", number, "asking the process that writes reports", "use --no-sandbox"
            ) from None
        if answer:
            raise HostError("write", answer["errno"], answer["doing"], answer["remedy"])


def _serve(pipe: Connection, other_end: Connection, reports: list[Path], sockets: list[Path]) -> None:
    other_end.close()  # or the pipe would never end
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # meant for the guest's process, which may have something to write
    made = False
    with suppress(EOFError, OSError):
        while True:
            request = json.loads(pipe.recv_bytes(_MAX_REQUEST))
            made = made or "made" in request
            pipe.send_bytes(json.dumps(_write(reports, request)).encode())
    for path in sockets if made else ():
        with suppress(OSError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()


def _write(reports: list[Path], request: dict[str, Any]) -> dict[str, Any]:
    if "report" not in request:
        return {}
    path = reports[request["report"]]
    try:
        write_document(path, request["document"])
    except HostError as error:
        return {"errno": error.errno, "doing": f"writing the report {path}", "remedy": error.remedy}
    return {}
