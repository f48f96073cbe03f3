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
        input: (N, C, H, W), of the type that the weights are packed for
        steps: from :func:`steps_text`
        packed: (size,), the packed weights of all steps, one after the other

    Returns:
        (N, K, OH, OW), channels_last, or (N, K) if the last step pools or is fully connected

    Raises:
        RuntimeError: if the steps do not fit each other, the input or the weights.
    """
    return cast(Tensor, torch.ops.fastconv.sequential.default._op(input, steps, packed))


def _follow(shape: Sequence[Any], text: str) -> tuple[tuple[Any, ...], Any]:
    """The output's shape, and the FLOPs, of a chain on an input of this shape."""
    steps = [int(number) for number in text.split()]
    n = shape[0]
    maps = [list(shape[1:])]
    written = [0]  # the input, and what each step wrote
    kind, macs = None, 0
    for begin in range(0, len(steps), _FIELDS):
        number, k, mid, kh, kw, *rest = steps[begin : begin + _FIELDS]
        stride, padding, dilation, squeezed = rest[:2], rest[2:6], rest[6:8], rest[11]
        source, joins = rest[14:]
        c, h, w = maps[written[-1 - source]]
        kind = StepKind(number)
        k = k or c
        macs += 2 * (mid or c) * squeezed
        if kind is StepKind.LINEAR:
            macs += c * k
        elif kind is StepKind.SQUEEZE_EXCITE:
            pass
        elif kind is StepKind.POOL:
            macs += h * w * c * k
            h = w = 1
        elif kind is StepKind.MEAN:
            h = w = 1
        else:
            before = h * w
            h, w = common.window_size(_NAME, (h, w), (kh, kw), stride, padding, dilation)
            pixels, depth = h * w, kh * kw
            if kind is StepKind.INVERTED_RESIDUAL:
                macs += before * c * mid + pixels * (mid or c) * (depth + k)
            elif kind not in (StepKind.MAX_POOL, StepKind.AVERAGE_POOL):
                macs += pixels * k * depth * (1 if kind is StepKind.DEPTHWISE else c)
        if joins:
            written.append(written[-joins])
            maps[written[-1]][0] += k
        else:
            written.append(len(maps))
            maps.append([k, h, w])
    flat = kind in (StepKind.POOL, StepKind.MEAN, StepKind.LINEAR)
    last = maps[written[-1]]
    return (n, last[0]) if flat else (n, *last), 2 * n * macs


if backend.NATIVE_MISSING is None:

    @torch.library.register_fake("fastconv::sequential")
    def _fake(input: Tensor, steps: str, packed: Tensor) -> Tensor:
        shape, _ = _follow(input.shape, steps)
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)

    @register_flop_formula(torch.ops.fastconv.sequential)
    def _flops(input: Any, steps: str, packed: Any, **_: Any) -> int:
        return int(_follow(input, steps)[1])
