"""``fastconv profile``: where the time of a network goes while the whole of it runs.

The steps of a native call have a clock of their own, so each is measured with the caches as the one
before it left them. Timed alone, a layer finds its weights in a cache where a network does not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import _library, _timing
from ._peak import fma_peak, peak_factor
from ._progress import Progress
from ._resolve import Network, ResolveError, first_line, randomize_norms
from ._table import print_table
from .ops._sequential import StepKind, Work, sequential_times, works
from .summary import input_channels

_CALLS = 5  # timed in each round
_HEADER = ["<step", ">input", ">output", ">M MACs", ">ms", ">% of time", ">GFLOP/s", ">% of peak"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class StepTime:
    """One or more steps of a native call that run as one.

    Args:
        name: what it computes
        input, output: (C, H, W) of its maps
        macs: multiply-accumulate operations of one image
        seconds: its part of a call's time
    """

    name: str
    input: Shape
    output: Shape
    macs: int
    seconds: float


@dataclass(frozen=True)
class OpTime:
    """All calls of an op that is not a step: a native one on its own, or PyTorch's.

    Args:
        name: with its namespace
        calls: how many
        seconds: of all of them, in one call of the network
    """

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """The times of one network.

    Args:
        name: of the network
        input_size: (N, C, H, W)
        dtype: of input and weights
        threads: that computed
        steps: in the order in which they ran
        ops: beside the steps, the longest first
        seconds: of a whole call
        peak: FLOP/s that FMAs alone reach on all threads, measured between the calls
    """

    name: str
    input_size: tuple[int, int, int, int]
    dtype: str
    threads: int
    steps: tuple[StepTime, ...]
    ops: tuple[OpTime, ...]
    seconds: float
    peak: float

    @property
    def rest(self) -> float:
        """Seconds of a call outside of all ops: Python, and what the clock made slower."""
        steps = sum(step.seconds for step in self.steps)
        return self.seconds - steps - sum(op.seconds for op in self.ops)

    def flops(self, step: StepTime) -> float:
        """FLOP/s: a multiply-accumulate is two."""
        return 2 * self.input_size[0] * step.macs / step.seconds

    def to_dict(self) -> dict[str, Any]:
        """Of numbers, strings and lists, for JSON."""
        return asdict(self) | {"rest": self.rest}

    def show(self) -> None:
        """Print the table."""
        batch, _, height, width = self.input_size
        title = (
            f"{self.name}, batch {batch}, {height}x{width}, {self.dtype}, "
            f"{self.threads} thread{'s' * (self.threads > 1)}, "
            f"FMA peak {self.peak / 1e9:.0f} GFLOP/s"
        )
        macs = sum(step.macs for step in self.steps)
        whole = StepTime("the whole call", (0, 0, 0), (0, 0, 0), macs, self.seconds)
        rows = [self._cells(step) for step in self.steps]
        others = [(f"{op.name}, {op.calls} x", op.seconds) for op in self.ops]
        for name, seconds in (*others, ("between the ops", self.rest)):
            cells = f"{seconds * 1e3:.3f}", f"{seconds / self.seconds:.1%}"
            rows.append([name, "", "", "", *cells, "", ""])
        rows.append(self._cells(whole))
        print_table(title, _HEADER, rows)

    def _cells(self, step: StepTime) -> list[str]:
        maps = step.input, step.output
        sizes = [" x ".join(map(str, shape)) if any(shape) else "" for shape in maps]
        cells = [step.name, *sizes, f"{step.macs / 1e6:,.2f}", f"{step.seconds * 1e3:.3f}"]
        share, flops = step.seconds / self.seconds, self.flops(step)
        return [*cells, f"{share:.1%}", f"{flops / 1e9:,.1f}", f"{flops / self.peak:.1%}"]


def profile(
    network: Network,
    *,
    batch: int,
    size: int,
    threads: int,
    rounds: int,
    dtype: str,
    progress: Progress,
) -> Profile:
    """Times the steps of a network's native calls; a network that is not fastconv's is swapped.

    Args:
        rounds: of a few calls each; every time is the median of the rounds' medians

    Raises:
        ResolveError: if the network does not run at this size, or makes no native call of steps.
    """
    if not _library.is_loaded():
        raise ResolveError(f"{network.name} has no native calls: the compiled library is missing")
    shape = (batch, input_channels(network.module), size, size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        clock = _Clock()
        module, input = _prepared(network, shape, getattr(torch, dtype), clock)
        with torch.inference_mode():
            if not clock.reading.works:
                raise ResolveError(
                    f"{network.name} must run as native calls of several steps in {dtype}: see "
                    "fastconv report"
                )
            progress.task(f"{network.name}: timing its steps", rounds)
            measured = [_round(module, input, clock, progress) for _ in range(rounds)]
    finally:
        torch.set_num_threads(before)
    readings = [reading for reading, _, _ in measured]
    seconds = _medians([reading.seconds for reading in readings])
    steps = tuple(_joined(readings[0].works, [value / threads for value in seconds]))
    ops = tuple(sorted(_op_times(readings), key=lambda op: -op.seconds))
    whole = statistics.median(seconds for _, seconds, _ in measured)
    peak = statistics.median(peak for _, _, peak in measured)
    peak *= threads * peak_factor(input.dtype) * 1e9
    return Profile(network.name, shape, dtype, threads, steps, ops, whole, peak)


def _medians(rows: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*rows, strict=True)]


@dataclass(frozen=True)
class _Reading:
    """What a clock saw of one call: steps and their seconds on all threads, ops and theirs."""

    works: list[Work] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ops: dict[str, list[float]] = field(default_factory=dict)


class _Clock(TorchDispatchMode):
    """Times all ops, and the steps of native calls that have some."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = _Reading()

    def start(self) -> _Clock:
        self.reading = _Reading()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.fastconv.sequential.default:
            input, steps, packed = args
            output, nanoseconds = sequential_times(input, steps, packed)
            self.reading.works.extend(works(input.shape[1:], steps))
            self.reading.seconds.extend(value / 1e9 for value in nanoseconds.tolist())
            return output
        begin = time.perf_counter()
        output = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - begin
        name = f"{func.namespace}::{func._opname}"
        self.reading.ops.setdefault(name, []).append(seconds)
        return output


def _prepared(
    network: Network, shape: tuple[int, ...], dtype: torch.dtype, clock: _Clock
) -> tuple[nn.Module, Tensor]:
    """The native form of a network and an input for it, after a call with the clock."""
    from .swap import swap

    try:
        if network.source != "file":
            randomize_norms(network.module, shape[1:])
        is_ours = network.source == "fastconv"
        module = network.module.to(dtype) if is_ours else swap(network.module, dtype=dtype)
        input = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        input = input.to(dtype, memory_format=torch.channels_last)
        with torch.inference_mode(), clock.start():
            module(input)
        return module, input
    except Exception as error:  # whatever a stranger's forward raises
        raise ResolveError(
            f"{network.name} must run on images of shape {shape}, got: {first_line(error)}"
        ) from error


def _round(
    module: nn.Module, input: Tensor, clock: _Clock, progress: Progress
) -> tuple[_Reading, float, float]:
    """The parts of a call, its seconds without a clock, and one thread's peak in GFLOP/s."""
    progress.step()
    _timing.settle()
    peak = fma_peak()
    assert peak is not None
    module(input)
    readings, seconds = [], []
    for _ in range(_CALLS):
        begin = time.perf_counter()
        module(input)
        seconds.append(time.perf_counter() - begin)
        with clock.start():
            module(input)
        readings.append(clock.reading)
    ops = {op.name: [op.seconds / op.calls] * op.calls for op in _op_times(readings)}
    medians = _medians([reading.seconds for reading in readings])
    return _Reading(readings[0].works, medians, ops), statistics.median(seconds), peak


def _op_times(readings: Sequence[_Reading]) -> list[OpTime]:
    """Of the ops that each call makes equally often."""
    return [
        OpTime(name, len(calls), statistics.median(sum(r.ops[name]) for r in readings))
        for name, calls in readings[0].ops.items()
    ]


def _joined(found: Sequence[Work], seconds: Sequence[float]) -> list[StepTime]:
    """One entry for each step that has a time: steps that ran with it have none of their own."""
    joined: list[StepTime] = []
    for work, time_ in zip(found, seconds, strict=True):
        name = _name(work)
        if time_ == 0 and joined:
            last = joined.pop()
            name, macs = f"{last.name} + {name}", last.macs + work.macs
            joined.append(StepTime(name, last.input, work.output, macs, last.seconds))
        else:
            joined.append(StepTime(name, work.input, work.output, work.macs, time_))
    return joined


def _name(work: Work) -> str:
    step = work.step
    window = f"{step.kernel[0]}x{step.kernel[1]}"
    strides = f", stride {step.stride[0]}" if step.stride != (1, 1) else ""
    channels = f" at {step.mid_channels} channels" if step.mid_channels else ""
    excites = ", squeeze-excite" if step.squeezed else ""
    return {
        StepKind.CONV2D_BIAS_ACT: f"{window} convolution{strides}",
        StepKind.POINTWISE: f"1x1 convolution{strides}",
        StepKind.DEPTHWISE: f"depthwise {window}{strides}",
        StepKind.INVERTED_RESIDUAL: f"block {window}{channels}{strides}{excites}",
        StepKind.POOL: "1x1 convolution, mean",
        StepKind.LINEAR: "fully connected",
        StepKind.SQUEEZE_EXCITE: "squeeze-excite",
        StepKind.MAX_POOL: f"max pooling {window}{strides}",
        StepKind.AVERAGE_POOL: f"average pooling {window}{strides}",
        StepKind.MEAN: "mean",
    }[step.kind]
