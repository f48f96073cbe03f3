"""One comparison: check every result, time all in one interleaved run, relate to the FMA peak."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from fastconv import _library, _timing
from fastconv._peak import LEVELS, fma_peak, peak_factor
from fastconv._timing import Contender, Timing

from . import peers

# Largest difference to float64, relative to the largest output, that still counts as right.
# Random weights amplify the rounding of bfloat16, for PyTorch as for everybody.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.25}
# Ours must also be within so many times PyTorch's own error in bfloat16.
OF_EAGER = 2
# How many different images a batch has. Odd: tiles of 2, 4, 8 ... images meet different ones.
IMAGES = 5


@dataclass(frozen=True)
class Speed:
    """How the machine was measured: rounds per contender and seconds per measured block."""

    rounds: int = 20
    block_seconds: float = 0.05


FULL = Speed()
LAYER = Speed(block_seconds=0.02)
QUICK = Speed(rounds=3, block_seconds=0.002)


@dataclass(frozen=True)
class Work:
    """Something to compare: what the rivals run, and the same by fastconv."""

    id: str
    threads: int
    module: torch.nn.Module
    ours: tuple[Contender, ...]
    input: torch.Tensor
    flops: int
    skipped: Mapping[str, str] = field(default_factory=dict)  # rivals left out, and why


@dataclass(frozen=True)
class Comparison:
    """Everybody's times on one piece of work."""

    work: Work
    contenders: dict[str, Contender]
    timings: dict[str, Timing]
    errors: dict[str, float]
    skipped: dict[str, str]
    peak_gflops: float | None

    def row(self, name: str) -> dict[str, float | int | None]:
        """One contender's numbers, rounded, as results and extra_info show them."""
        timing = self.timings[name]
        gflops = self.work.flops / timing.median / 1e9
        percent = None if self.peak_gflops is None else round(100 * gflops / self.peak_gflops, 1)
        return {
            "median_ms": _significant(timing.median * 1e3),
            "iqr_ms": _significant(timing.iqr * 1e3),
            "gflops": _significant(gflops),
            "percent_of_peak": percent,
            "error": _significant(self.errors[name], 2),
            "rounds": len(timing.seconds),
        }

    def ratio(self, name: str, others: Iterable[str]) -> float | None:
        """The median time of `name` over that of the fastest of `others` that ran."""
        times = [self.timings[other].median for other in others if other in self.timings]
        return _significant(self.timings[name].median / min(times)) if times else None


def _significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def isa_name() -> str:
    """The ISA level that the native kernels use now, "none" without the library."""
    return LEVELS[torch.ops.fastconv.isa(-1)] if _library.is_loaded() else "none"


def truth(work: Work) -> torch.Tensor:
    """The rivals' module in float64, on the images that differ."""
    with torch.inference_mode():
        some = copy.deepcopy(work.module).double()(work.input[:IMAGES].double())
    return some[torch.arange(work.input.shape[0]) % IMAGES]


def check(
    contenders: Iterable[Contender], expected: torch.Tensor, tolerance: float
) -> dict[str, float]:
    """Each contender's largest relative error; raises AssertionError on a wrong result."""
    errors = {}
    scale = expected.abs().max()
    for contender in contenders:
        actual = contender.result()
        assert isinstance(actual, torch.Tensor)
        assert actual.shape == expected.shape, f"{contender.name}: {actual.shape}"
        error = float((actual.double() - expected).abs().max() / scale)
        assert error <= tolerance, f"{contender.name} is wrong by {error:.1e} of the largest output"
        errors[contender.name] = error
    return errors


def check_rounding(errors: Mapping[str, float], ours: Iterable[str]) -> None:
    """Raises AssertionError if one of `ours` is less exact than PyTorch in the same dtype."""
    eager = max((errors[name] for name in peers.EAGER if name in errors), default=None)
    for name in ours:
        assert eager is None or errors[name] <= OF_EAGER * eager, (
            f"{name} is wrong by {errors[name]:.1e} of the largest output, PyTorch by {eager:.1e}"
        )


def compare(work: Work, names: Iterable[str] = peers.RIVALS, speed: Speed = FULL) -> Comparison:
    """Check and time our contenders against the rivals `names` on one piece of work.

    The truth is the float64 result of the rivals' module. Sets torch's number of threads.
    """
    torch.set_num_threads(work.threads)
    dtype = work.input.dtype
    expected = truth(work)
    names = [name for name in names if name not in work.skipped]
    rivals, skipped = peers.rivals(work.module, work.input, names)
    contenders = [*work.ours, *rivals]
    peaks = _Peaks(peak_factor(dtype))
    with torch.inference_mode():
        errors = check(contenders, expected, TOLERANCES[dtype])
        if dtype == torch.bfloat16:
            check_rounding(errors, [contender.name for contender in work.ours])
        timings = _timing.interleave(
            contenders,
            rounds=speed.rounds,
            block_seconds=speed.block_seconds,
            each_round=peaks.measure,
        )
    by_name = {contender.name: contender for contender in contenders}
    return Comparison(work, by_name, timings, errors, {**work.skipped, **skipped}, peaks.median())


class _Peaks:
    """The peak of a dtype, measured anew in each round: clocks drift during a run."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.values: list[float] = []

    def measure(self) -> None:
        peak = fma_peak()
        if peak is not None:
            self.values.append(peak)

    def median(self) -> float | None:
        if not self.values:
            return None
        peak = self.factor * torch.get_num_threads() * statistics.median(self.values)
        return _significant(peak)
