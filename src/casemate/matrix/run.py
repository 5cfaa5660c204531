"""Runs the cells that have no result yet, and keeps each as it comes (docs/design/matrix.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from casemate.matrix.cell_process import CellProcess
from casemate.matrix.identity import cell_key
from casemate.matrix.plan import Matrix
from casemate.matrix.results import Record, Results

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One repetition of one cell's work. Cells whose keys are the same are one job."""

    name: str
    key: str
    round: int
    settings: dict[str, Any]


Pool = Callable[[Sequence[Job]], Iterator[tuple[Job, Answer]]]
"""Runs jobs, in any order, and gives each with its answer once."""


def keys_of(matrix: Matrix) -> dict[str, str]:
    """The key of every cell by its name. Raises ImageError for an input that cannot be read."""
    return {cell.name: cell_key(cell.settings, timed=cell.is_timed) for cell in matrix.cells}


def jobs_to_run(
    matrix: Matrix, keys: Mapping[str, str], records: Iterable[Record], repeat: int = 1
) -> list[Job]:
    """What has no final result among ``records``."""
    done = {(record.key, record.round) for record in records if record.is_final}
    jobs: dict[tuple[str, int], Job] = {}
    for number in range(1, repeat + 1):
        for cell in matrix.cells:
            place = keys[cell.name], number
            if place not in done:
                jobs.setdefault(place, Job(cell.name, *place, cell.settings))
    return list(jobs.values())


def run_jobs(jobs: Sequence[Job], pool: Pool, results: Results) -> Iterator[Record]:
    """Run them; each result is on the disk before it is given. Closing the iterator, or Ctrl-C, ends what runs."""
    running = pool(jobs)
    try:
        for job, answer in running:
            artefacts = answer["artefacts"]
            record = Record(job.name, job.key, job.round, time.time(), answer["result"], tuple(artefacts))
            results.add(record, artefacts)
            yield record
    finally:
        close = getattr(running, "close", None)
        if close:
            close()


def local_pool(workers: int) -> Pool:
    """The pool of this machine: as many cell servers as ``workers``, in this process threads that wait for them."""

    def run(jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        processes = [CellProcess() for _ in range(min(workers, len(jobs)))]
        free: SimpleQueue[CellProcess] = SimpleQueue()
        for process in processes:
            free.put(process)

        def ask(settings: Mapping[str, Any]) -> Answer:
            process = free.get()
            try:
                return process.run(settings)
            finally:
                free.put(process)

        executor = ThreadPoolExecutor(max(1, len(processes)))
        try:
            futures = {executor.submit(ask, job.settings): job for job in jobs}
            for future in as_completed(list(futures)):
                yield futures.pop(future), future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.close()

    return run
