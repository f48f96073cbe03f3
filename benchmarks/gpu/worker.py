"""A process that measures, and the one that watches it.

A kernel that accesses what it must not ends the GPU's context of its process, one that hangs never
comes back: then the process is ended, the contender that did it is named in the results, and the
rest is measured by a new one.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from .plan import Job

_STARTING = 120.0  # seconds
OVER = "the time for measuring is over"

Measure = Callable[[Job, Callable[[str], object]], dict[str, Any]]


def measure(job: Job, begin: Callable[[str], object]) -> dict[str, Any]:
    """Runs one job on the GPU of this process."""
    import torch

    torch.backends.cudnn.benchmark = True
    if job.compiled:
        torch._dynamo.reset()
    try:
        if job.part == "ceilings":
            from .ceilings import ceilings

            return ceilings(begin)
        if job.part == "networks":
            from .networks import measure_network

            return measure_network(job, begin)
        if job.part == "training":
            from .training import measure_training

            return measure_training(job, begin)
        from .layers import measure_layer

        return measure_layer(job, begin)
    finally:
        gc.collect()
        with contextlib.suppress(Exception):  # of a broken context
            torch.cuda.empty_cache()


def serve(connection: Connection, measure: Measure) -> None:
    """Says that it is there, then runs jobs until there are no more: of each it sends what begins,
    then the row or the failure."""
    from .timing import BrokenError, raise_if_broken, shortened

    connection.send(("ready",))
    while (job := connection.recv()) is not None:
        try:
            connection.send(("row", measure(job, lambda name: connection.send(("begin", name)))))
        except BrokenError as error:
            connection.send(("broken", error.name, error.reason))
            return
        except Exception as error:
            reason = shortened(error)
            try:
                raise_if_broken("", reason)
            except BrokenError:
                connection.send(("broken", "", reason))
                return
            connection.send(("failed", reason))


class Watched:
    """Measures jobs in another process, in as many as it takes."""

    def __init__(self, measure: Measure = measure) -> None:
        self._measure = measure
        self._process: Any = None
        self._connection: Any = None

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, job: Job, left: float) -> tuple[dict[str, Any] | None, str]:
        """Its row, or None and the reason why there is none.

        Args:
            left: seconds after which the reason is that the time is over; a job may run into its
                own limit before
        """
        end = time.monotonic() + left
        while True:
            row, culprit, reason = self._once(job, end)
            if row is not None or not culprit:
                return row, reason
            job = replace(job, without=(*job.without, (culprit, reason)))

    def _once(self, job: Job, end: float) -> tuple[dict[str, Any] | None, str, str]:
        """The row, else who broke the process, "" for nobody in particular, and the reason."""
        connection, running = self._started(), ""
        hanging = time.monotonic() + job.limit
        try:
            connection.send(job)
            while connection.poll(max(0.0, min(hanging, end) - time.monotonic())):
                kind, *content = connection.recv()
                if kind == "begin":
                    running = content[0]
                elif kind == "row":
                    return content[0], "", ""
                elif kind == "failed":
                    return None, "", content[0]
                else:
                    self._end()
                    return None, content[0], content[1]
            reason = f"did not end within {job.limit:.0f} s"
            if end < hanging:
                running, reason = "", OVER
        except (EOFError, OSError):
            self._process.join(10)
            reason = f"ended its process: exit code {self._process.exitcode}"
        self._end()
        return None, running, reason

    def _started(self) -> Connection:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=serve, args=(other, self._measure))
            self._process.start()
            other.close()
            if self._connection.poll(_STARTING):
                self._connection.recv()
        return self._connection

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            self._connection.send(None)
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        self._connection.close()
