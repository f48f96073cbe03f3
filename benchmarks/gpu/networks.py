"""Whole networks against PyTorch, with and without CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastconv

from .layers import NETWORKS, TOLERANCE, plain_copy, random_network
from .timing import Budget, compare, wall_seconds

# The most important first: a budget may end early.
SETTINGS = [
    *((name, 256, torch.bfloat16) for name in NETWORKS),
    *((name, 1, torch.bfloat16) for name in NETWORKS),
    *((name, 32, torch.bfloat16) for name in NETWORKS),
    *((name, 256, torch.float32) for name in NETWORKS),
    *((name, 256, torch.float16) for name in NETWORKS),
    *((name, 1, torch.float32) for name in NETWORKS),
]


def measure_networks(
    budget: Budget, emit: Callable[[dict[str, Any]], None], compiled: bool
) -> None:
    """Measures one setting after the other until the budget is spent."""
    for name, batch, dtype in SETTINGS:
        if budget.left() < 20:
            return
        emit(_row(name, batch, dtype, compiled))
        torch.cuda.empty_cache()


def _row(name: str, batch: int, dtype: torch.dtype, compiled: bool) -> dict[str, Any]:
    model = random_network(name)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        truth = plain_copy(model).double()(images.double()).cuda()
        input = images.to("cuda", dtype)[torch.arange(batch, device="cuda") % 2]
        input = input.contiguous(memory_format=torch.channels_last)
        ours = copy.deepcopy(model).to("cuda", dtype)
        plain = plain_copy(model).to("cuda", dtype)
        calls: dict[str, Callable[[], Tensor]] = {
            "fastconv": lambda: ours(input),
            "eager": lambda: plain(input),
        }
        if compiled:
            function = torch.compile(plain, mode="max-autotune-no-cudagraphs")
            calls["torch.compile"] = lambda: function(input)
        # Whole networks add up the roundings of their layers.
        graphs = compare(calls, truth[: min(2, batch)], 3 * TOLERANCE[dtype], target=20e-3)
        plainly = {}
        for kind, call in calls.items():
            if kind in graphs.seconds:
                plainly[kind] = wall_seconds(call)
        speeds = {f"{kind}, graph": batch / s for kind, s in graphs.seconds.items()}
        speeds |= {kind: batch / s for kind, s in plainly.items()}
        memory = {kind: _peak(call) for kind, call in calls.items() if kind in graphs.seconds}
        try:
            graphed = fastconv.graphed(ours, input)
            speeds["fastconv.graphed"] = batch / wall_seconds(lambda: graphed(input))
        except Exception as error:
            graphs.errors["fastconv.graphed"] = f"{type(error).__name__}: {error}"[:300]
    text = str(dtype).removeprefix("torch.")
    return {
        "id": f"{name}, batch {batch}, {text}",
        "images_per_second": speeds,
        "quartiles": graphs.quartiles,
        "peak_bytes": memory,
        "errors": graphs.errors,
    }


def _peak(call: Callable[[], Tensor]) -> int:
    """Bytes that a call needs beside what is there already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
