"""Depthwise convolutions of training on a GPU. See csrc/train.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import _train_plain as plain
from ..ops._train_plain import Gradient, Source, Window
from . import cost, maps
from .choice import Candidate
from .device import Gpu, gpu_of
from .train_convolutions import BackwardCall, Call, dense_source, written

_NAME = "train_depthwise_conv2d"
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/data_type.h


def train_depthwise_conv2d(
    input: Tensor,
    affine: Tensor | None,
    activation: int,
    weight: Tensor,
    stride: maps.Pair,
    padding: maps.Pair,
    dilation: maps.Pair,
    wants_moments: bool,
) -> tuple[Tensor, Tensor]:
    """The op of that name, on a GPU."""
    n, c, h, w = input.shape
    window = Window(stride, padding, dilation)
    if input.numel() == 0:
        size = maps.output_size((h, w), tuple(weight.shape[2:]), *window)
        moments = maps.zeros(input, 2, c) if wants_moments else maps.floats_like(input, 0)
        return maps.empty(input, n, c, *size), moments
    source = dense_source(Source(input, affine, None, activation, None))

    def candidates(gpu: Gpu) -> list[Candidate]:
        seconds = _seconds(gpu, input, weight, window, 1)
        found = written(gpu, seconds, plain.convolution)
        if maps.has_cuda(input):
            found.append(Candidate("cuda", "", seconds, _cuda))
        return found

    call = Call(source, weight, window, wants_moments)
    output: tuple[Tensor, Tensor] = maps.run(_NAME, call, call.key, candidates, weight)
    return output


def train_depthwise_conv2d_backward(
    grad: Tensor,
    raw: Tensor | None,
    raw_affine: Tensor | None,
    raw_gate: Tensor | None,
    offset: Tensor | None,
    raw_activation: int,
    coefficients: Tensor | None,
    input: Tensor,
    affine: Tensor | None,
    activation: int,
    mean: Tensor | None,
    weight: Tensor,
    stride: maps.Pair,
    padding: maps.Pair,
    dilation: maps.Pair,
    residual: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op of that name, on a GPU."""
    if input.numel() == 0:
        return maps.empty_gradients(input, weight, wanted, 2)
    gradient = Gradient(grad, raw, raw_affine, raw_gate, offset, raw_activation, coefficients)
    source = Source(input, affine, None, activation, mean)
    window = Window(stride, padding, dilation)
    call = BackwardCall(gradient, source, weight, window, residual, wanted).dense()

    def candidates(gpu: Gpu) -> list[Candidate]:
        seconds = _seconds(gpu, input, weight, window, 2)
        found = written(gpu, seconds, plain.convolution_backward)
        if maps.has_cuda(input):
            found.append(Candidate("cuda", "", seconds, _cuda_backward))
        return found

    found: tuple[Tensor, Tensor, Tensor, Tensor]
    found = maps.run(f"{_NAME}_backward", call, call.key, candidates, weight)
    return found


def _seconds(gpu: Gpu, input: Tensor, weight: Tensor, window: Window, passes: int) -> float:
    n, c, h, w = input.shape
    kernel, bytes = tuple(weight.shape[2:]), input.element_size()
    size = maps.output_size((h, w), kernel, *window)
    block = cost.Block(n, 0, c, 0, h, w, *size, kernel[0] * kernel[1], False, bytes)
    return passes * cost.seconds(cost.depthwise(block), gpu, bytes)


def _parts(call: Call | BackwardCall, backward: bool) -> int:
    """Into how many parts the kernels divide the pixels that they sum up."""
    input, weight = call.input, call.weight
    count = gpu_of(input.device).multiprocessors
    about = (input.shape, weight.shape[2:], *call.window, _TYPES[input.dtype], count)
    return int(torch.ops.fastconv.train_depthwise_conv2d_parts(*about)[backward])


def _cuda(call: Call) -> tuple[Tensor, Tensor]:
    input, c = call.input, call.input.shape[1]
    size = maps.output_size(input.shape[2:], call.weight.shape[2:], *call.window)
    output = maps.empty(input, input.shape[0], c, *size)
    partial = moments = None
    if call.wants_moments:
        partial = maps.floats_like(input, _parts(call, False), 3, c)
        moments = maps.floats_like(input, 2, c)
    torch.ops.fastconv.cuda_train_depthwise_conv2d(
        input,
        call.source.affine,
        call.source.activation,
        maps.now_innermost(call.weight),
        *call.window,
        output,
        partial,
        moments,
    )
    return output, maps.floats_like(input, 0) if moments is None else moments


def _cuda_backward(call: BackwardCall) -> tuple[Tensor, ...]:
    input, c, wanted = call.input, call.input.shape[1], call.wanted
    taps = call.weight.shape[2:].numel()
    rows = taps * wanted[1] + wanted[2] + 2 * wanted[3]
    partial = maps.floats_like(input, _parts(call, True), rows, c) if rows else None
    results = (
        maps.empty(input, *input.shape) if wanted[0] else None,
        maps.floats_like(input, *call.weight.shape) if wanted[1] else None,
        maps.floats_like(input, c) if wanted[2] else None,
        maps.floats_like(input, 2, c) if wanted[3] else None,
    )
    source = call.source
    torch.ops.fastconv.cuda_train_depthwise_conv2d_backward(
        *call.gradient,
        input,
        source.affine,
        source.activation,
        source.mean,
        maps.now_innermost(call.weight),
        *call.window,
        call.residual,
        partial,
        *results,
    )
    return tuple(maps.floats_like(input, 0) if t is None else t for t in results)
