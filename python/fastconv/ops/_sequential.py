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


class Step(NamedTuple):
    """One op of a chain, as the 19 numbers that the native op reads.

    Args:
        kind: a :class:`StepKind`; a dense convolution only as the first
        out_channels: K
        mid_channels: of a block, after its expansion; 0 for none
        kernel, stride, padding, dilation: (h, w); padding: top, bottom, left, right
        activation: inside a block
        out_activation: of the op's output
        residual: whether a block adds its input
        squeezed: channels between the convolutions of a squeeze-and-excitation; 0 for none
        excite: its activation and its gate
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
    residual: bool = False
    squeezed: int = 0
    excite: tuple[int, int] = (0, 0)

    def numbers(self) -> list[int]:
        """In the order of csrc/ops/sequential.cpp."""
        windows = (*self.kernel, *self.stride, *self.padding, *self.dilation)
        ends = (self.activation, self.out_activation, int(self.residual))
        sizes = (int(self.kind), self.out_channels, self.mid_channels)
        return [*sizes, *windows, *ends, self.squeezed, *self.excite]


_FIELDS = 19


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
    n, c, h, w = shape
    kind, macs = None, 0
    for begin in range(0, len(steps), _FIELDS):
        number, k, mid, kh, kw, *rest = steps[begin : begin + _FIELDS]
        stride, padding, dilation, squeezed = rest[:2], rest[2:6], rest[6:8], rest[11]
        kind = StepKind(number)
        macs += 2 * (mid or c) * squeezed
        if kind is StepKind.LINEAR:
            macs += c * k
        elif kind is StepKind.SQUEEZE_EXCITE:
            pass
        elif kind is StepKind.POOL:
            macs += h * w * c * k
            h = w = 1
        else:
            before = h * w
            h, w = common.window_size(_NAME, (h, w), (kh, kw), stride, padding, dilation)
            pixels, depth = h * w, kh * kw
            if kind is StepKind.INVERTED_RESIDUAL:
                macs += before * c * mid + pixels * (mid or c) * (depth + k)
            else:
                macs += pixels * k * depth * (1 if kind is StepKind.DEPTHWISE else c)
        c = k
    flat = kind in (StepKind.POOL, StepKind.LINEAR)
    return (n, c) if flat else (n, c, h, w), 2 * n * macs


if backend.NATIVE_MISSING is None:

    @torch.library.register_fake("fastconv::sequential")
    def _fake(input: Tensor, steps: str, packed: Tensor) -> Tensor:
        shape, _ = _follow(input.shape, steps)
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)

    @register_flop_formula(torch.ops.fastconv.sequential)
    def _flops(input: Any, steps: str, packed: Any, **_: Any) -> int:
        return int(_follow(input, steps)[1])
