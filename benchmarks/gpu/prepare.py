"""Lets Triton compile what will be measured, on all cores: python -m benchmarks.gpu.prepare.

The first call of a layer would compile its candidates one after the other, which for four networks
takes longer than measuring them. Compiled kernels stay in Triton's cache on disk; nothing is
measured here, and no choice is kept.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import torch

from fastconv.gpu import choice

from . import timing
from .layers import Layer, all_layers, layers
from .plan import FIRST, Budget

_MOST_PROCESSES = 12  # each has a context on the GPU, and a layer at a time
_COMPILED = ("triton", "mixed")  # mixed: of other ops, which have Triton's kernels


def prepared(chunk: list[Layer], settings: list[tuple[int, str]], seconds: float) -> int:
    """Runs each candidate of some layers once.

    Args:
        settings: batch and dtype, the most important first

    Returns:
        the number of calls
    """
    budget, count, plausible = Budget(seconds), 0, choice.plausible
    state = {"index": 0, "candidates": 0}

    def one(op, wish, made):
        found = plausible(op, wish, made)
        fitting = [candidate for candidate in found if candidate.backend in _COMPILED] or found
        state["candidates"] = max(state["candidates"], len(fitting))
        return [fitting[state["index"] % len(fitting)]]

    choice.plausible = one
    try:
        for batch, dtype in settings:
            for layer in chunk:
                state["index"] = state["candidates"] = 0
                while state["index"] < max(1, state["candidates"]) and budget.left() > 0:
                    count += _attempt(layer, batch, getattr(torch, dtype))
                    state["index"] += 1
    finally:
        choice.plausible = plausible
        choice.forget()
    return count


def _attempt(layer: Layer, batch: int, dtype: torch.dtype) -> bool:
    """Whether the call worked: a candidate may not fit this GPU."""
    choice.forget()
    try:
        module = copy.deepcopy(layer.module).to(timing.DEVICE, dtype)
        input = torch.randn(batch, *layer.shape, device=timing.DEVICE, dtype=dtype)
        with torch.inference_mode():
            module(input.contiguous(memory_format=torch.channels_last))
    except Exception:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile Triton's kernels ahead, on all cores.")
    parser.add_argument("--budget", type=float, default=90, metavar="SECONDS")
    budget = Budget(parser.parse_args().budget)
    found = [next(x for x in layers(network) if x.name == name) for network, name in all_layers()]
    settings = list(dict.fromkeys((batch, dtype) for _, batch, dtype, _ in FIRST))
    count = min(_MOST_PROCESSES, os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        parts = [
            pool.submit(prepared, found[i::count], settings, budget.left()) for i in range(count)
        ]
        print(f"{sum(part.result() for part in parts)} calls in {count} processes")


if __name__ == "__main__":
    main()
