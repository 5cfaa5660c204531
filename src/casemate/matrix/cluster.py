"""The cells of a matrix on a cluster of Dask workers (https://distributed.dask.org; docs/design/matrix.md).

Imports ``distributed``, which is an extra (``casemate[matrix]``): only imported once there is a cell to run there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Future, LocalCluster, as_completed, get_worker

from casemate.errors import SpecError, UnsupportedError
from casemate.files import read_file, write_whole
from casemate.matrix.cell_process import crashed, own_cell_process
from casemate.matrix.identity import code_identity, inputs_of
from casemate.matrix.run import Answer, Job, Pool
from casemate.matrix.settings import FILES

_BATCH = 1000
"""Cells that are submitted at once: one by one, submitting takes seven times as long."""
_AHEAD = 4 * _BATCH
"""Cells that the cluster knows of at least, as long as there are so many; all at once would be its memory's end."""
_LARGEST_INPUT = 1 << 30
_PROGRAM = b"\x7fELF"
"""How VMMs begin, which are run where they arrive (elf(5))."""
_CONNECT_SECONDS = 10
_FIRST_WORKER_SECONDS = 60


def cluster_pool(where: str) -> Pool:
    """The pool at ``local:N``, ``tls://HOST:PORT`` or ``tcp://HOST:PORT``. Raises SpecError for another word."""
    kind, _, rest = where.partition(":")
    if not (kind == "local" and rest.isdecimal() and int(rest)) and kind not in ("tls", "tcp"):
        raise SpecError(f"--on {where!r} names no cluster", "use local:N, tls://HOST:PORT or tcp://HOST:PORT")

    def run(jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        with contextlib.ExitStack() as stack:
            address: Any = where
            if kind == "local":
                stack.enter_context(dask.config.set({"distributed.worker.daemon": False}))
                address = stack.enter_context(
                    LocalCluster(
                        n_workers=int(rest),
                        threads_per_worker=1,
                        dashboard_address="127.0.0.1:0",
                        silence_logs=logging.CRITICAL,
                    )
                )
            try:
                client = stack.enter_context(Client(address, timeout=_CONNECT_SECONDS))
                client.wait_for_workers(1, _FIRST_WORKER_SECONDS)
            except (OSError, TimeoutError, ValueError) as error:
                remedy = "start a scheduler and workers there, or leave --on out"
                raise UnsupportedError(f"--on {where}: no worker answers: {error}", remedy) from None
            _refuse_other_versions(client, where)
            yield from run_on(client, jobs, run_on_worker)

    return run


def _refuse_other_versions(client: Client, where: str) -> None:
    """Workers that would give other results, or not understand what they are sent, are refused."""
    remedy = "install the same on every worker: casemate[matrix], Dask and Python"
    try:
        client.get_versions(check=True)
    except ValueError as error:
        raise UnsupportedError(f"--on {where}: versions differ: {error}", remedy) from None
    try:
        found = client.run(code_identity)
    except Exception as error:
        raise UnsupportedError(f"--on {where}: a worker has no casemate: {error}", remedy) from None
    own = code_identity()
    for worker, other in found.items():
        names = [name for name in own if own[name] != other.get(name)]
        if names:
            raise UnsupportedError(
                f"--on {where}: the worker {worker} has another {', '.join(names)}", remedy
            )


Work = Callable[[Mapping[str, Any], Mapping[str, str], Sequence[bytes]], Answer]
"""What a worker does for a cell: of its settings, the hashes of its inputs, and their contents."""


def run_on(client: Client, jobs: Sequence[Job], work: Work) -> Iterator[tuple[Job, Answer]]:
    """Each job with its answer once, in any order. Raises ImageError for an input that cannot be read."""
    inputs: dict[str, Future] = {}
    waiting = {f"cell-{job.key}-{job.round}": job for job in jobs}
    running = as_completed(raise_errors=False)
    keys = iter(list(waiting))
    under_way = 0

    def submit() -> int:
        batch = list(islice(keys, _BATCH))
        settings = [waiting[key].settings for key in batch]
        hashes = [inputs_of(each) for each in settings]
        for each, names in zip(settings, hashes, strict=True):
            for name, digest in names.items():
                if digest not in inputs:
                    # A task and not scattered data: what a worker had that died is made again.
                    data = read_file(each[name] if name in FILES else name, _LARGEST_INPUT)
                    inputs[digest] = client.submit(bytes, data, key=f"input-{digest}")
        parts = [[inputs[digest] for digest in names.values()] for names in hashes]
        running.update(client.map(work, settings, hashes, parts, key=batch) if batch else [])
        return len(batch)

    while under_way < _AHEAD and (more := submit()):
        under_way += more
    for ended in running.batches() if under_way else ():
        answers = iter(client.gather([future for future in ended if future.status == "finished"]))
        under_way -= len(ended)
        for future in ended:
            if future.status == "finished":
                answer: Answer = next(answers)
            else:
                answer = crashed(f"its workers died: {future.exception()}")
            yield waiting.pop(future.key), answer
            future.release()
        while under_way < _AHEAD and (more := submit()):
            under_way += more


def run_on_worker(settings: Mapping[str, Any], hashes: Mapping[str, str], parts: Sequence[bytes]) -> Answer:
    """What a worker does for a cell: lay out its inputs, each once, and ask the cell server of this thread."""
    folder = Path(get_worker().local_directory, "casemate-inputs")
    folder.mkdir(mode=0o700, exist_ok=True)
    here = dict(settings)
    for (name, digest), data in zip(hashes.items(), parts, strict=True):
        path = folder / digest
        if not path.exists():
            write_whole(path, data)
            if data.startswith(_PROGRAM):
                path.chmod(0o700)
        if name in FILES:
            here[name] = str(path)
        else:
            for words in ("command", "vmm"):
                if words in here:
                    here[words] = [word.replace(name, str(path)) for word in here[words]]
    return own_cell_process().run(here)
