"""Whole networks against PyTorch, with and without CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

import fastconv

from . import timing
from .layers import TOLERANCE, compiled, numbers, plain_copy, random_network, wanted
from .plan import Job
from .timing import IMAGES, Call, Contender, compare, repeated

SIZE = 224  # of the images


def measure_network(job: Job, begin: Callable[[str], object]) -> dict[str, Any]:
    """One row: images per second and all else."""
    dtype: torch.dtype = getattr(torch, job.dtype)
    model = copy.deepcopy(random_network(job.network)).to(
        dtype
    )  # what the dtype can hold is the same for all
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator).to(dtype)
    with torch.no_grad():
        truth = plain_copy(model).double()(images.double()).to(timing.DEVICE)
    ours = copy.deepcopy(model).to(timing.DEVICE)
    plain = plain_copy(model).to(timing.DEVICE)
    input = repeated(images.to(timing.DEVICE), job.batch)
    input = input.contiguous(memory_format=torch.channels_last)

    def graphed() -> Call:
        replayed = fastconv.graphed(ours, input)
        return lambda: replayed(input)

    contenders = [
        Contender("fastconv", lambda: lambda: ours(input), captured=False),
        Contender("fastconv, graph", lambda: lambda: ours(input)),
        # It replays its own graph, on a copy of the input.
        Contender("fastconv.graphed", graphed, captured=False),
        Contender("eager", lambda: lambda: plain(input), captured=False),
        Contender("eager, graph", lambda: lambda: plain(input)),
    ]
    if job.compiled:
        contenders += _compiled(plain, input)
    with torch.inference_mode():
        # Whole networks add up the roundings of their layers.
        found = compare(
            wanted(contenders, job), truth, 3 * TOLERANCE[dtype], target=20e-3, begin=begin
        )
    speeds = {name: job.batch / seconds for name, seconds in found.seconds.items()}
    return {"images_per_second": speeds, **numbers(found, job)}


def _compiled(plain: torch.nn.Module, input: torch.Tensor) -> list[Contender]:
    """Once in max-autotune as it comes, with graphs of its own, and once without them."""
    made: list[Call] = []

    def bare() -> Call:
        if not made:
            made.append(compiled(plain, input))
        return made[0]

    def as_it_comes() -> Call:
        return compiled(plain, input, "max-autotune")

    return [
        Contender("torch.compile", bare, captured=False),
        Contender("torch.compile, graph", bare),
        Contender("torch.compile max-autotune", as_it_comes, captured=False),
    ]
