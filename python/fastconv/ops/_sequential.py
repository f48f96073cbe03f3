"""A chain of inference ops as one native call: a network's layers without the way between them."""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backend
from . import _common as common

_NAME = "sequential"


class StepKind(IntEnum):
    """The ops that can be a step, numbered as in csrc/sequential.h."""

    CONV2D_BIAS_ACT = 0
    POINTWISE = 1
    DEPTHWISE = 2
    INVERTED_RESIDUAL = 3
    POOL = 4
    LINEAR = 5
    SQUEEZE_EXCITE = 6
    MAX_POOL = 7
    AVERAGE_POOL = 8  # padding counts as pixels
    MEAN = 9


class Step(NamedTuple):
    """One op of a chain, as the 21 numbers that the native op reads.

    Args:
        kind: a :class:`StepKind`
        out_channels: K; 0 for a pooling, which has as many as its input
        mid_channels: of a block, after its expansion; 0 for none
        kernel, stride, padding, dilation: (h, w); padding: top, bottom, left, right
        activation: inside a block
        out_activation: of the op's output
        residual: 0 for none; n adds the map before the step n - 1 before: 1 what the step before
            wrote
        squeezed: channels between the convolutions of a squeeze-and-excitation; 0 for none
        excite: its activation and its gate
        source: it reads the map before the step so many before: 0 what the step before wrote
        joins: 0 for a map of its own; n writes into that of the step n before, behind its channels
    """

    kind: StepKind
    out_channels: int
    mid_channels: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    activation: int = 0
    out_activation: int = 0
    residual: int = 0
    squeezed: int = 0
    excite: tuple[int, int] = (0, 0)
    source: int = 0
    joins: int = 0

    def numbers(self) -> list[int]:
        """In the order of csrc/ops/sequential.cpp."""
        windows = (*self.kernel, *self.stride, *self.padding, *self.dilation)
        ends = (self.activation, self.out_activation, int(self.residual))
        maps = (self.source, self.joins)
        sizes = (int(self.kind), self.out_channels, self.mid_channels)
        return [*sizes, *windows, *ends, self.squeezed, *self.excite, *maps]


_FIELDS = 21


def steps_text(steps: Iterable[Step]) -> str:
    """All numbers of a chain, as the native op takes them."""
    return " ".join(str(number) for step in steps for number in step.numbers())


def sequential(input: Tensor, steps: str, packed: Tensor) -> Tensor:
    """Runs a chain of ops on the CPU, without derivatives.

    Args:
        input: (N, C, H, W), or (N, C) if the first step is fully connected, of the type that the
            weights are packed for
        steps: from :func:`steps_text`
        packed: (size,), the packed weights of all steps, one after the other

    Returns:
        (N, K, OH, OW), channels_last, or (N, K) if the last step pools or is fully connected

    Raises:
        RuntimeError: if the steps do not fit each other, the input or the weights.
    """
    return cast(Tensor, torch.ops.fastconv.sequential.default._op(input, steps, packed))


def sequential_times(input: Tensor, steps: str, packed: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a clock.

    Returns:
        the output, and what each step took, (steps,) int64: nanoseconds, of all threads together.
        Steps that run as one have their time in the first of them, the others have 0.
    """
    op = torch.ops.fastconv.sequential_times.default
    return cast(tuple[Tensor, Tensor], op(input, steps, packed))


class Work(NamedTuple):
    """What one step of a chain does with one image.

    Args:
        step: the op
        input, output: (C, H, W) of the map that it reads, and of what it writes
        macs: its multiply-accumulate operations
    """

    step: Step
    input: tuple[Any, Any, Any]
    output: tuple[Any, Any, Any]
    macs: Any


def works(image: Sequence[Any], text: str) -> list[Work]:
    """What a chain does with an image of this shape, (C, H, W) or (C,), step by step."""
    return list(_works(image, text)[0])


def _works(image: Sequence[Any], text: str) -> tuple[list[Work], tuple[Any, Any, Any]]:
    """The same, and the shape of the last map, which several steps may have written."""
    numbers = [int(number) for number in text.split()]
    c, h, w = image if len(image) == 3 else (*image, 1, 1)
    maps = [(c, h, w)]
    written = [0]  # the input, and what each step wrote
    found = []
    for begin in range(0, len(numbers), _FIELDS):
        step = _read_step(numbers[begin : begin + _FIELDS])
        input = maps[written[-1 - step.source]]
        output, macs = _work(step, input)
        found.append(Work(step, input, output, macs))
        if step.joins:
            joint = written[-step.joins]
            written.append(joint)
            maps[joint] = (maps[joint][0] + output[0], *maps[joint][1:])
        else:
            written.append(len(maps))
            maps.append(output)
    return found, maps[written[-1]]


def _read_step(numbers: Sequence[int]) -> Step:
    kind, k, mid, kh, kw, sh, sw, top, bottom, left, right, dh, dw, *rest = numbers
    activation, out_activation, residual, squeezed, act, gate, source, joins = rest
    return Step(
        StepKind(kind), k, mid, (kh, kw), (sh, sw), (top, bottom, left, right), (dh, dw),
        activation, out_activation, residual, squeezed, (act, gate), source, joins,
    )  # fmt: skip


def _work(step: Step, input: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any, Any], Any]:
    """The shape of what a step makes of such a map, and its multiply-accumulate operations."""
    c, h, w = input
    kind, k, mid = step.kind, step.out_channels or c, step.mid_channels
    macs = 2 * (mid or c) * step.squeezed
    if kind is StepKind.SQUEEZE_EXCITE:
        return input, macs
    if kind is StepKind.LINEAR:
        return (k, h, w), c * k
    if kind is StepKind.MEAN:
        return (k, 1, 1), macs
    if kind is StepKind.POOL:
        return (k, 1, 1), h * w * c * k
    before, depth = h * w, step.kernel[0] * step.kernel[1]
    window = step.kernel, step.stride, step.padding, step.dilation
    h, w = common.window_size(_NAME, (h, w), *window)
    if kind is StepKind.INVERTED_RESIDUAL:
        macs += before * c * mid + h * w * (mid or c) * (depth + k)
    elif kind not in (StepKind.MAX_POOL, StepKind.AVERAGE_POOL):
        macs += h * w * k * depth * (1 if kind is StepKind.DEPTHWISE else c)
    return (k, h, w), macs


def _output_shape(input: Sequence[Any], text: str) -> tuple[Any, ...]:
    found, last = _works(input[1:], text)
    is_flat = found[-1].step.kind in (StepKind.POOL, StepKind.MEAN, StepKind.LINEAR)
    return (input[0], last[0]) if is_flat else (input[0], *last)


if backend.NATIVE_MISSING is None:

    @torch.library.register_fake("fastconv::sequential")
    def _fake(input: Tensor, steps: str, packed: Tensor) -> Tensor:
        shape = _output_shape(input.shape, steps)
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)

    @torch.library.register_fake("fastconv::sequential_times")
    def _fake_times(input: Tensor, steps: str, packed: Tensor) -> tuple[Tensor, Tensor]:
        count = len(steps.split()) // _FIELDS
        return _fake(input, steps, packed), torch.empty(count, dtype=torch.int64)

    @register_flop_formula([torch.ops.fastconv.sequential, torch.ops.fastconv.sequential_times])
    def _flops(input: Any, steps: str, packed: Any, **_: Any) -> int:
        return int(2 * input[0] * sum(work.macs for work in works(input[1:], steps)))
