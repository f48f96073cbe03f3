"""Measures how fast one thread moves data that lies in each cache, and in memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .roofline import cache_bytes


def measure_bandwidths(caches: dict[str, str], seconds: float) -> dict[str, float]:
    """GB/s of each cache from L2 on and of memory; copies count what they read and write."""
    torch.set_num_threads(1)
    sizes = {name: size for name, size in cache_bytes(caches).items() if name != "L1"}
    largest = max(sizes.values(), default=2**25)
    # Half of a cache stays in it, four times the largest one does not.
    working_sets = {name: size // 2 for name, size in sizes.items()} | {"memory": 4 * largest}
    return {name: round(_fastest(size, seconds), 1) for name, size in working_sets.items()}


def _fastest(working_set: int, seconds: float) -> float:
    """The better of copying one half to the other and reading all of it, in GB/s."""
    values = torch.ones(working_set // 4)
    source, target = values.chunk(2)
    uses: tuple[Callable[[], object], ...] = (lambda: target.copy_(source), values.sum)
    return max(working_set / _time(use, seconds) / 1e9 for use in uses)


def _time(call: Callable[[], object], seconds: float) -> float:
    """Seconds of one call at its best: the others were disturbed."""
    call()
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
