"""Asks a cell server for results, and starts another one when it died (docs/design/matrix.md)."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

TRIES = 3
"""How often a cell is run whose process dies."""
_GRACE_SECONDS = 10
"""From a cell's own timeout, which ends it with a report, to the moment at which it is killed; and once more to the
moment at which its server is."""
_local = threading.local()


def crashed(detail: str) -> dict[str, Any]:
    """The answer for a cell that nobody could bring to its end."""
    result = {"outcome": "crashed", "detail": detail, "exit_code": 6, "seconds": 0.0}
    return {"result": result, "artefacts": {}}


class CellProcess:
    """One cell server, started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def run(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """``result`` and ``artefacts`` of a cell, tried up to ``TRIES`` times if what runs it dies."""
        said = ""
        for _ in range(TRIES):
            answer = self._ask(settings)
            if "died" not in answer:
                return answer
            if self._closed:
                break
            said = f"{answer['died']}; it said: {answer['said'] or 'nothing'}"
        return crashed(f"its process died {TRIES} times: {said}")

    def close(self) -> None:
        """End the server and the cell that it runs."""
        self._closed = True
        if self._process is not None:
            self._process.kill()

    def _ask(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        if self._closed:
            return {"died": "closed", "said": ""}
        if self._process is None or self._process.poll() is not None:
            self._process = _start()
        process = self._process
        assert process.stdin is not None
        seconds = settings["timeout"] + _GRACE_SECONDS
        try:
            process.stdin.write(json.dumps({"settings": dict(settings), "seconds": seconds}).encode() + b"\n")
            process.stdin.flush()
            line = self._line(process, seconds + _GRACE_SECONDS)
            answer: dict[str, Any] = json.loads(line)
            return answer
        except (OSError, ValueError):
            process.kill()
            return {"died": f"the server, exit code {process.wait()}", "said": ""}

    @staticmethod
    def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """One line of the server's; what there is of it if the server dies or takes longer than ``seconds``."""
        assert process.stdout is not None
        fd = process.stdout.fileno()
        deadline = time.monotonic() + seconds
        parts: list[bytes] = []
        while (left := deadline - time.monotonic()) > 0:
            if select.select([fd], [], [], left)[0]:
                part = os.read(fd, 1 << 20)
                parts.append(part)
                if not part or part.endswith(b"\n"):
                    break
        return b"".join(parts)


def _start() -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C at the terminal is for who collects results.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "casemate.matrix.cell_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )


def own_cell_process() -> CellProcess:
    """The one of this thread."""
    if not hasattr(_local, "process"):
        _local.process = CellProcess()
    process: CellProcess = _local.process
    return process
