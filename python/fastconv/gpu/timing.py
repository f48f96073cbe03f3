"""Times of several functions on a GPU, without what the CPU takes to launch them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_CALLS = 8  # in one graph
_ROUNDS = 5

Function = Callable[[Any], Any]


def measure(functions: Sequence[Function], call: Any) -> list[float]:
    """Seconds per call of each function, infinite for one that fails; the last must not.

    Every function is captured in a CUDA graph, so that kernels are compared and not launches. The
    graphs are replayed in turns, and of each the shortest time counts. Where the last cannot be
    captured, all are called as they are.
    """
    with torch.no_grad(), torch.cuda.device(call.input.device):
        runs = [_attempt(function, call) for function in functions[:-1]]
        functions[-1](call)
        last = _captured(functions[-1], call)
        if last is None:
            called = [
                None if run is None else _calling(function, call)
                for run, function in zip(runs, functions[:-1], strict=True)
            ]
            runs, last = called, _calling(functions[-1], call)
        times = [float("inf")] * len(functions)
        for _ in range(_ROUNDS):
            for index, run in enumerate([*runs, last]):
                if run is not None:
                    times[index] = min(times[index], _seconds(run) / _CALLS)
    return times


def _attempt(function: Function, call: Any) -> Callable[[], None] | None:
    """Some calls at once, or None: a configuration may not fit this GPU, for example."""
    try:
        for _ in range(2):  # compiles, and lets what is inside choose
            function(call)
        torch.cuda.synchronize()
    except Exception:
        return None
    return _captured(function, call) or _calling(function, call)


def _calling(function: Function, call: Any) -> Callable[[], None]:
    def run() -> None:
        for _ in range(_CALLS):
            function(call)

    return run


def _captured(function: Function, call: Any) -> Callable[[], None] | None:
    """The same as a CUDA graph, None where that is not possible."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")  # other threads may go on
            try:
                _calling(function, call)()
            finally:
                graph.capture_end()
    except RuntimeError:
        return None
    torch.cuda.current_stream().wait_stream(stream)
    graph.replay()
    return graph.replay


def _seconds(run: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3
