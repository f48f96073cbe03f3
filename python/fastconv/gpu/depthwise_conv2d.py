"""Depthwise convolution on a GPU. See :func:`fastconv.depthwise_conv2d`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from . import cost, maps
from .choice import Candidate
from .device import Gpu

_NAME = "depthwise_conv2d"


class _Call(NamedTuple):
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: maps.Pair
    padding: maps.Pair
    dilation: maps.Pair
    activation: int
    size: tuple[int, int]  # of the output


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: maps.Pair,
    padding: maps.Pair,
    dilation: maps.Pair,
    activation: int,
    packed: Tensor | None = None,
) -> Tensor:
    """The op of that name, on a GPU."""
    output: Tensor = _run(input, weight, bias, stride, padding, dilation, activation, False)
    return output


def depthwise_conv2d_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: maps.Pair,
    padding: maps.Pair,
    dilation: maps.Pair,
    activation: int,
) -> tuple[Tensor, Tensor]:
    """The same, and what squeeze-and-excitation needs of the output.

    Returns:
        the output (N, C, OH, OW), and float32 (N, P, C): the sums of P parts of its pixels
    """
    outputs: tuple[Tensor, Tensor]
    outputs = _run(input, weight, bias, stride, padding, dilation, activation, True)
    return outputs


def _run(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: maps.Pair,
    padding: maps.Pair,
    dilation: maps.Pair,
    activation: int,
    pool: bool,
) -> Any:
    n, c, h, w = input.shape
    kernel = tuple(weight.shape[2:])
    size = maps.output_size((h, w), kernel, stride, padding, dilation)
    if n == 0:
        output = maps.empty(input, n, c, *size)
        return (output, input.new_empty((n, 1, c), dtype=torch.float32)) if pool else output
    bytes = input.element_size()
    # With stride 2 it is less work to change the layout of the output than of the input.
    is_nchw = not pool and input.is_contiguous() and not _is_channels_last(input)
    key = (maps.bucket(n), c, h, w, *kernel, *stride, *padding, *dilation, activation)
    key += (bias is not None, pool, is_nchw)

    def candidates(gpu: Gpu) -> list[Candidate]:
        block = cost.Block(n, 0, c, 0, h, w, *size, kernel[0] * kernel[1], False, bytes)
        seconds = cost.seconds(cost.depthwise(block), gpu, bytes)
        found = [Candidate("aten", "", 2 * seconds, _aten_pool if pool else _aten)]
        if maps.has_triton(gpu):
            from ..kernels import depthwise_conv2d as kernels

            for config in kernels.configs(n, c, size, kernel, stride, input.dtype):
                run = _triton(kernels, config, pool)
                found.append(Candidate("triton", str(config), 1.1 * seconds, run))
        if maps.has_cuda(input):
            if pool:
                for bands in _bands(size[0]):
                    detail = f"{bands} bands"
                    found.append(Candidate("cuda", detail, seconds, _cuda_pool(bands)))
            else:
                found.append(Candidate("cuda", "channels_last", seconds, _cuda))
            if is_nchw:
                found.append(Candidate("cuda", "contiguous", seconds, _cuda_nchw))
        return found

    call = _Call(input, weight, bias, stride, padding, dilation, activation, size)
    return maps.run(_NAME + "_pool" * pool, call, key, candidates, weight)


def _is_channels_last(input: Tensor) -> bool:
    return input.is_contiguous(memory_format=torch.channels_last)


def _bands(height: int) -> list[int]:
    """In how many bands of rows an image may be cut: more of them fill a GPU at small batches."""
    return sorted({1, min(4, height), min(16, height)})


def _triton(kernels: Any, config: Any, pool: bool) -> Any:
    return lambda call: kernels.depthwise_conv2d(
        maps.channels_last(call.input),
        maps.channels_innermost(call.weight),
        maps.floats(call.bias),
        call.stride,
        call.padding,
        call.dilation,
        call.activation,
        config,
        pool,
    )


def _launch(
    call: _Call, input: Tensor, weight: Tensor, output: Tensor, sums: Tensor | None
) -> None:
    torch.ops.fastconv.cuda_depthwise_conv2d(
        input,
        weight,
        maps.floats(call.bias),
        call.stride,
        call.padding,
        call.dilation,
        call.activation,
        output,
        sums,
    )


def _cuda(call: _Call) -> Tensor:
    input = maps.channels_last(call.input)
    output = maps.empty(input, *input.shape[:2], *call.size)
    _launch(call, input, maps.channels_innermost(call.weight), output, None)
    return output


def _cuda_pool(bands: int) -> Any:
    def run(call: _Call) -> tuple[Tensor, Tensor]:
        input = maps.channels_last(call.input)
        n, c = input.shape[:2]
        output = maps.empty(input, n, c, *call.size)
        sums = torch.empty((n, bands, c), dtype=torch.float32, device=input.device)
        _launch(call, input, maps.channels_innermost(call.weight), output, sums)
        return output, sums

    return run


def _cuda_nchw(call: _Call) -> Tensor:
    shape = (*call.input.shape[:2], *call.size)
    output = torch.empty(shape, dtype=call.input.dtype, device=call.input.device)
    weight = maps.in_dtype(call.weight, torch.float32)
    _launch(call, call.input, weight, output, None)
    return maps.channels_last(output)


def _aten(call: _Call) -> Tensor:
    return reference.depthwise_conv2d(
        call.input,
        maps.like(call.weight, call.input),
        maps.like_or_none(call.bias, call.input),
        call.stride,
        call.padding,
        call.dilation,
        activation=call.activation,
    )


def _aten_pool(call: _Call) -> tuple[Tensor, Tensor]:
    output = _aten(call)
    return output, output.sum((2, 3), dtype=torch.float32)[:, None]
