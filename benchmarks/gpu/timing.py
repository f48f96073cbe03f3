"""Times on a GPU: every contender in a CUDA graph, replayed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Budget:
    """The time that is left for measuring."""

    seconds: float
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        return self._end - time.monotonic()


@dataclass
class Measured:
    """Seconds of each contender, and why the others have none."""

    seconds: dict[str, float] = field(default_factory=dict)
    quartiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def compare(
    calls: dict[str, Callable[[], torch.Tensor]],
    expected: torch.Tensor | None,
    tolerance: float,
    *,
    rounds: int = 15,
    target: float = 2e-3,
    flush: torch.Tensor | None = None,
) -> Measured:
    """Checks each contender's result, then times all of them.

    Args:
        expected: the true result of the first images; None for no check
        tolerance: of the largest value
        target: seconds that one replay should take
        flush: written to before each replay, larger than the L2 cache, so that inputs come from
            memory; then a replay is one call
    """
    found = Measured()
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]] = {}
    for name, call in calls.items():
        try:
            if expected is not None:
                _check(call(), expected, tolerance)
            graphs[name] = _captured(call, target, flush is not None)
        except Exception as error:
            found.errors[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, (graph, count) in graphs.items():
            if flush is not None:
                flush.zero_()
            times[name].append(_seconds(graph) / count)
    for name, values in times.items():
        found.seconds[name] = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4)
        found.quartiles[name] = (low, high)
    return found


def _check(output: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    part = output[: len(expected)].double()
    error = ((part - expected).abs().max() / expected.abs().max()).item()
    if not error <= tolerance:
        raise ValueError(f"the result is wrong by {error:.2g} of the largest value")


def _captured(
    call: Callable[[], torch.Tensor], target: float, single: bool
) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of as many calls as take about `target` seconds, and how many these are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    one = _graph(call, 1)
    one.replay()
    count = 1 if single else max(1, min(200, round(target / max(1e-6, _seconds(one)))))
    graph = one if count == 1 else _graph(call, count)
    graph.replay()
    return graph, count


def _graph(call: Callable[[], torch.Tensor], count: int) -> torch.cuda.CUDAGraph:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            call()
    return graph


def _seconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def wall_seconds(call: Callable[[], torch.Tensor], rounds: int = 20) -> float:
    """Of one call, with what the CPU takes to launch it: for what is called without a graph."""
    for _ in range(3):
        call()
    values = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        values.append(time.perf_counter() - begin)
    return statistics.median(values)
