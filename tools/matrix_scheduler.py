"""What Dask's scheduler costs for the cells of a matrix that do nothing (docs/design/matrix.md).

    python -m tools.matrix_scheduler --cells 100000 --workers 2

Starts a scheduler and workers as programs of their own, has them do empty cells by the way that ``casemate matrix
--on`` takes, and says what CPU time the scheduler, this process and the workers used (proc(5)).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from distributed import Client

from casemate.matrix.cluster import run_on
from casemate.matrix.run import Answer, Job

_STARTING_SECONDS = 120
_TICKS = os.sysconf("SC_CLK_TCK")


def nothing(settings: Mapping[str, object], hashes: Mapping[str, str], parts: Sequence[bytes]) -> Answer:
    """What a worker does for an empty cell."""
    result = {"outcome": "done", "detail": "", "exit_code": 0, "seconds": 0.0}
    return {"result": result, "artefacts": {}}


def cpu_seconds(pid: int) -> float:
    """What a process used, and its children that ended (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


@contextlib.contextmanager
def programs(workers: int, folder: Path) -> Iterator[tuple[str, int, list[int]]]:
    """Address and process of a scheduler, and processes of its workers."""
    file = folder / "scheduler.json"
    words = [
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--dashboard-address",
        "127.0.0.1:0",
        "--scheduler-file",
        str(file),
    ]
    with contextlib.ExitStack() as stack:

        def start(name: str, *options: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *options]
            process = stack.enter_context(subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL))
            stack.callback(process.terminate)
            return process

        scheduler = start("scheduler", *words)
        deadline = time.monotonic() + _STARTING_SECONDS
        address = ""
        while not address:
            if scheduler.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the scheduler does not start")
            with contextlib.suppress(OSError, ValueError):  # not written, or not to its end
                address = json.loads(file.read_text())["address"]
        found = [
            start("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
            for _ in range(workers)
        ]
        yield address, scheduler.pid, [worker.pid for worker in found]


def main() -> int:
    """Run the cells, and print one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    jobs = [Job(str(number), f"{number:064x}", 1, {}) for number in range(args.cells)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address, scheduler, workers = stack.enter_context(programs(args.workers, folder))
        client = stack.enter_context(Client(address, timeout=_STARTING_SECONDS))
        client.wait_for_workers(args.workers, _STARTING_SECONDS)
        pids = {"scheduler": [scheduler], "this process": [os.getpid()], "workers": workers}
        before = {who: sum(map(cpu_seconds, each)) for who, each in pids.items()}
        start, done = time.monotonic(), 0
        for _job, _answer in run_on(client, jobs, nothing):
            done += 1
            if sys.stderr.isatty() and done % 1000 == 0:
                print(f"\r{done} of {args.cells}", end="", file=sys.stderr)
        passed = time.monotonic() - start
        used = {who: sum(map(cpu_seconds, each)) - before[who] for who, each in pids.items()}
    told = ", ".join(
        f"{who} {seconds:.0f} s ({seconds * 1000 / done:.2f} ms a cell)" for who, seconds in used.items()
    )
    print(f"{done} cells, {args.workers} workers, {passed:.0f} s; CPU time: {told}")
    return 0 if done == args.cells else 1


if __name__ == "__main__":
    sys.exit(main())
