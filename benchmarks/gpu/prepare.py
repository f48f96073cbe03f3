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
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor

import torch

from fastconv.gpu import choice

from . import timing
from .layers import Layer, all_layers, layers
from .plan import FIRST, TRAINED, Budget

_MOST_PROCESSES = 12  # each has a context on the GPU, and a layer at a time
_COMPILED = ("triton", "mixed")  # mixed: of other ops, which have Triton's kernels


def prepared(
    chunk: list[Layer],
    settings: list[tuple[int, str, bool]],
    seconds: float,
    trained: Collection[str] = (),
) -> int:
    """Runs each candidate of some layers once.

    Args:
        settings: batch, dtype and whether it is a step of training, the most important first
        trained: names of the layers for which that counts

    Returns:
        the number of calls
    """
    budget, count, plausible = Budget(seconds), 0, choice.plausible
    state = {"index": 0, "candidates": 0}

    def one(op, wish, made):
        found = plausible(op, wish, made)
        fitting = [candidate for candidate in found if candidate.backend in _COMPILED] or found
        if op.startswith("train_") and fitting[0].backend == "mixed":
            return fitting[:1]  # whose parts are chosen in turn
        state["candidates"] = max(state["candidates"], len(fitting))
        return [fitting[state["index"] % len(fitting)]]

    choice.plausible = one
    try:
        for batch, dtype, trains in settings:
            attempt = _attempt_to_train if trains else _attempt
            for layer in [x for x in chunk if not trains or x.name in trained]:
                state["index"] = state["candidates"] = 0
                while state["index"] < max(1, state["candidates"]) and budget.left() > 0:
                    count += attempt(layer, batch, getattr(torch, dtype))
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


def _attempt_to_train(layer: Layer, batch: int, dtype: torch.dtype) -> bool:
    """The same forward and backward, as autocast runs it inside a network."""
    choice.forget()
    try:
        module = copy.deepcopy(layer.module).to(timing.DEVICE).train().requires_grad_()
        input = torch.randn(batch, *layer.shape, device=timing.DEVICE, dtype=dtype)
        input = input.contiguous(memory_format=torch.channels_last).requires_grad_()
        casts = dtype is not torch.float32
        with torch.autocast(timing.DEVICE, dtype if casts else None, enabled=casts):
            output = module(input)
        output.backward(torch.ones_like(output))
    except Exception:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile Triton's kernels ahead, on all cores.")
    parser.add_argument("--budget", type=float, default=90, metavar="SECONDS")
    budget = Budget(parser.parse_args().budget)
    found = [next(x for x in layers(network) if x.name == name) for network, name in all_layers()]
    kinds = ((batch, dtype, part == "training") for part, batch, dtype, _ in FIRST)
    settings = list(dict.fromkeys(kinds))
    trained = frozenset(layer.name for network in TRAINED for layer in layers(network))
    count = min(_MOST_PROCESSES, os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        parts = [
            pool.submit(prepared, found[i::count], settings, budget.left(), trained)
            for i in range(count)
        ]
        print(f"{sum(part.result() for part in parts)} calls in {count} processes")


if __name__ == "__main__":
    main()
