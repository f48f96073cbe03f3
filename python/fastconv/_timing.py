"""Fair timing of several callables: interleaved blocks, idle pools, medians and quartiles."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_LONG_CALL = 0.1  # seconds


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Contender:
    """One callable to time.

    ``call`` runs once and returns anything; ``result`` runs once and returns the output as a
    tensor, for checks; ``prepare`` runs untimed before each block of timed calls; ``buffers`` keeps
    alive what the call reads by address.
    """

    name: str
    call: Callable[[], object]
    result: Callable[[], object]
    prepare: Callable[[], object] = _nothing
    buffers: object = None


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one value for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def iqr(self) -> float:
        """The distance between the quartiles; 0 for fewer than two rounds."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return third - first


def settle(limit: float = 0.5) -> None:
    """Wait until no thread of this process is busy.

    Thread pools of runtimes go on spinning after a call (libgomp and ONNX Runtime for several ms)
    and would steal cores from whatever runs next.
    """
    end = time.perf_counter() + limit
    quiet = 0
    while quiet < 3 and time.perf_counter() < end:
        quiet = 0 if _is_busy() else quiet + 1


def _is_busy() -> bool:
    """Whether another thread of this process runs; takes some milliseconds."""
    tasks = pathlib.Path("/proc/self/task")
    if tasks.is_dir():
        time.sleep(0.002)
        own = str(threading.get_native_id())
        return any(_is_running(task) for task in tasks.iterdir() if task.name != own)
    # The time of threads on other cores is only counted at the kernel's ticks, up to 10 ms apart.
    wall, cpu = time.perf_counter(), time.process_time()
    time.sleep(0.025)
    return time.process_time() - cpu > 0.1 * (time.perf_counter() - wall)


def _is_running(task: pathlib.Path) -> bool:
    try:
        return task.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # it has ended
        return False


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _block(contender: Contender, iterations: int, warmup: int) -> float:
    settle()
    contender.prepare()
    for _ in range(warmup):
        contender.call()
    start = time.perf_counter()
    for _ in range(iterations):
        contender.call()
    return (time.perf_counter() - start) / iterations


def _estimate(contender: Contender) -> float:
    """Seconds per call."""
    first = _block(contender, iterations=1, warmup=1)
    return first if first > _LONG_CALL else _block(contender, iterations=2, warmup=1)


def interleave(
    contenders: Sequence[Contender],
    *,
    rounds: int = 20,
    block_seconds: float = 0.05,
    each_round: Callable[[], object] = _nothing,
) -> dict[str, Timing]:
    """Time each contender once per round, in an order that rotates from round to round.

    Args:
        contenders: with different names.
        rounds: values for each contender.
        block_seconds: about how long one value is measured; never less than one call.
            Calls longer than 0.1 s are repeated less, also untimed: one fills caches and pools.
        each_round: runs once at the start of each round, while all else is idle.

    Returns: name -> Timing, in the order given.
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    if len(seconds) != len(contenders):
        raise ValueError(f"interleave: contenders must have different names, got {list(seconds)}")
    with _no_garbage_collection():
        estimates = {contender.name: _estimate(contender) for contender in contenders}
        for round_index in range(rounds):
            settle()
            each_round()
            first = round_index % len(contenders)
            for contender in [*contenders[first:], *contenders[:first]]:
                estimate = estimates[contender.name]
                count = max(1, round(block_seconds / estimate))
                # A fifth of the block, untimed, brings caches, pools and clocks back to speed.
                warmup = 1 if estimate > _LONG_CALL else max(2, count // 5)
                value = _block(contender, count, warmup)
                seconds[contender.name].append(value)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
