"""``fastconv bench``: networks on fastconv and its rivals, checked, then timed in turns."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import _library, _resolve, _runtimes, _timing, backend
from ._progress import Progress
from ._resolve import Network, ResolveError, first_line
from ._table import print_table
from ._timing import Contender, Timing
from .nn._fused import FusedModule
from .summary import input_channels

OURS = "fastconv"
RIVALS = {  # as the option names them, and as the table does
    "eager": "PyTorch",
    "channels_last": "PyTorch channels_last",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ncnn": "ncnn",
}

# Of the largest output: other orders of summation differ by far less, a mistake by far more.
_AGREEMENT = {"float32": 1e-3, "bfloat16": 5e-2}
# How often the error of PyTorch's own rounding also agrees: bfloat16 leaves less room for luck.
_OWN_ERRORS = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Options:
    """What to compare, and how long."""

    batch: int
    threads: int
    size: int
    rounds: int
    rivals: tuple[str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Result:
    """The times of one network.

    `differences` are from PyTorch in float32, relative to its largest output.
    """

    network: Network
    options: Options
    timings: dict[str, Timing]
    differences: dict[str, float]
    skipped: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """The fastest first."""
        ours = self.timings[OURS].median
        return [
            {
                "runs_on": name,
                "ms": timing.median * 1e3,
                "iqr_ms": timing.iqr * 1e3,
                "ratio": timing.median / ours,
                "images_per_second": self.options.batch / timing.median,
                "difference": self.differences[name],
            }
            for name, timing in sorted(self.timings.items(), key=lambda item: item[1].median)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Of numbers, strings and lists, for JSON."""
        return {
            "name": self.network.name,
            "source": self.network.source,
            "results": self.rows(),
            "skipped": self.skipped,
        }

    def show(self) -> None:
        """Print the table."""
        batch, threads, size = self.options.batch, self.options.threads, self.options.size
        title = (
            f"{self.network.name}, batch {batch}, {size}x{size}, {self.options.dtype}, "
            f"{threads} thread{'s' * (threads > 1)}, "
            f"median of {self.options.rounds} interleaved rounds"
        )
        header = ["<runs on", ">ms", ">IQR", ">of fastconv's time", ">images/s"]
        rows = [
            [
                row["runs_on"],
                f"{row['ms']:.2f}",
                f"{row['iqr_ms']:.2f}",
                f"{row['ratio']:.2f}x",
                f"{row['images_per_second']:,.0f}",
            ]
            for row in self.rows()
        ]
        print_table(title, header, rows)
        for name, reason in self.skipped.items():
            print(f"  not compared: {name}: {reason}")
        if not _library.is_loaded():
            print("  fastconv ran on its reference: the compiled library is missing")


def bench(networks: Sequence[Network], options: Options, progress: Progress) -> list[Result]:
    """Times networks, each with its rivals in interleaved rounds.

    Raises:
        ResolveError: if a network does not run at this size, or fastconv's result is wrong.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with backend.use_backend("auto"):
            return [_bench_one(network, options, progress) for network in networks]
    finally:
        torch.set_num_threads(before)


def _bench_one(network: Network, options: Options, progress: Progress) -> Result:
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, input_channels(network.module), options.size, options.size)
    input = torch.randn(shape, generator=generator)
    input = input.to(getattr(torch, options.dtype))
    plain, expected = _plain_form(network, input.float())
    progress.task(f"{network.name}: preparing and checking", 1 + len(options.rivals))
    contenders: list[Contender] = []
    differences: dict[str, float] = {}
    skipped: dict[str, str] = {}
    ours = functools.partial(_ours, network, input)
    own_error = functools.cache(lambda: _own_error(plain, input, expected))
    for name, make in ({OURS: ours} | _rivals(plain, input, options)).items():
        progress.step(name)
        try:
            contender = make()
            with torch.inference_mode():
                difference = _difference(contender.result(), expected)
        except Exception as error:  # rivals fail in many ways, and all are reasons to skip them
            if name == OURS:
                raise
            skipped[name] = first_line(error)
            continue
        limit = _AGREEMENT[options.dtype]
        if difference <= limit or difference <= _OWN_ERRORS[options.dtype] * own_error():
            contenders.append(contender)
            differences[name] = difference
            continue
        skipped[name] = f"its output differs from PyTorch's by {difference:.1e} of the largest"
        if name == OURS:
            raise ResolveError(f"{network.name} runs wrong on fastconv: {skipped[OURS]}")
    progress.task(f"{network.name}: timing", options.rounds)
    with torch.inference_mode():
        timings = _timing.interleave(contenders, rounds=options.rounds, each_round=progress.step)
    return Result(network, options, timings, differences, skipped)


def _ours(network: Network, input: Tensor) -> Contender:
    from .swap import swap

    dtype = input.dtype
    is_ours = network.source == "fastconv"
    module = network.module.to(dtype) if is_ours else swap(network.module, dtype=dtype)
    input = input.contiguous(memory_format=torch.channels_last)
    return Contender(OURS, lambda: module(input), lambda: module(input))


def _rivals(
    plain: nn.Module, input: Tensor, options: Options
) -> dict[str, Callable[[], Contender]]:
    """The asked rivals by the names that the table gives them."""
    threads = options.threads
    export = functools.cache(lambda: _runtimes.export_onnx(plain, input))
    makers: dict[str, Callable[[str], Contender]] = {
        "eager": lambda name: _runtimes.eager(plain, input, torch.contiguous_format, name),
        "channels_last": lambda name: _runtimes.eager(plain, input, torch.channels_last, name),
        "compile": lambda name: _runtimes.torch_compile(plain, input, name),
        "onnxruntime": lambda name: _runtimes.onnxruntime(export(), input, threads, name=name),
        "openvino": lambda name: _runtimes.openvino(export(), input, threads, name=name),
        "ncnn": lambda name: _runtimes.ncnn(plain, input, threads, name=name),
    }
    return {RIVALS[key]: functools.partial(makers[key], RIVALS[key]) for key in options.rivals}


def _plain_form(network: Network, input: Tensor) -> tuple[nn.Module, Tensor]:
    """The network in PyTorch's own ops alone, and its output; new weights get statistics first."""
    module = network.module.requires_grad_(False)
    try:
        if network.source != "file":
            _resolve.randomize_norms(module, tuple(input.shape[1:]))
        plain = copy.deepcopy(module)
        for part in plain.modules():
            if isinstance(part, FusedModule):
                part._backend = "reference"
        with torch.inference_mode():
            output = plain(input)
    except Exception as error:  # whatever a stranger's forward raises
        shape = tuple(input.shape)
        raise ResolveError(
            f"{network.name} must run on images of shape {shape}, got: {first_line(error)}"
        ) from error
    if not isinstance(output, Tensor):
        raise ResolveError(f"{network.name} must return one tensor, got a {type(output).__name__}")
    if not output.isfinite().all() or not output.any():
        raise ResolveError(f"{network.name} must have a finite output that is not all zero")
    return plain, output


def _own_error(plain: nn.Module, input: Tensor, expected: Tensor) -> float:
    """PyTorch's own error: large where random weights make a network that amplifies rounding."""
    dtype = torch.float64 if input.dtype == torch.float32 else input.dtype
    try:
        with torch.inference_mode():
            return _difference(copy.deepcopy(plain).to(dtype)(input.to(dtype)), expected)
    except RuntimeError:  # a network that makes float32 tensors itself has no other dtype
        return 0.0


def _difference(output: object, expected: Tensor) -> float:
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return math.inf
    difference = float((output - expected).abs().max() / expected.abs().max())
    return math.inf if math.isnan(difference) else difference
