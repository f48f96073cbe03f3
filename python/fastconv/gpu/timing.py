"""Times of several functions on a GPU, without what the CPU takes to launch them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_CALLS = 8  # in one graph
_ROUNDS = 5


def measure(functions: Sequence[Callable[[Any], Any]], call: Any) -> list[float]:
    """Seconds per call of each function, infinite for one that fails; the last must not.

    Every function is captured in a CUDA graph, so that kernels are compared and not launches. The
    graphs are replayed in turns, and of each the shortest time counts.
    """
    device = call.input.device
    with torch.no_grad(), torch.cuda.device(device):
        graphs: list[torch.cuda.CUDAGraph | None] = []
        for index, function in enumerate(functions):
            try:
                graphs.append(_captured(function, call))
            except Exception:
                # A configuration that does not fit this GPU, for example.
                if index == len(functions) - 1:
                    raise
                graphs.append(None)
        times = [float("inf")] * len(functions)
        for _ in range(_ROUNDS):
            for index, graph in enumerate(graphs):
                if graph is not None:
                    times[index] = min(times[index], _replay(graph))
    return times


def _captured(function: Callable[[Any], Any], call: Any) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, and lets what is inside choose, before the capture
            function(call)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(_CALLS):
            function(call)
    graph.replay()
    return graph


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / _CALLS
