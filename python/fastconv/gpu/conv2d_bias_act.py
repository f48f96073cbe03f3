"""Dense convolution on a GPU. See :func:`fastconv.conv2d_bias_act`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from . import cost, maps
from .choice import Candidate
from .device import Gpu

_NAME = "conv2d_bias_act"
_FEW = 512  # C * KH * KW: beyond it cuDNN's kernels have nothing to fear from a direct one


class _Call(NamedTuple):
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: maps.Pair
    padding: maps.Pair
    activation: int


def conv2d_bias_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: maps.Pair,
    padding: maps.Pair,
    activation: int,
    packed: Tensor | None = None,
) -> Tensor:
    """The op of that name, on a GPU."""
    n, c, h, w = input.shape
    k, _, *kernel = weight.shape
    size = maps.output_size((h, w), kernel, stride, padding)
    if n == 0:
        return maps.empty(input, n, k, *size)
    bytes, taps = input.element_size(), c * kernel[0] * kernel[1]
    layout = input.is_contiguous(memory_format=torch.channels_last)
    key = (maps.bucket(n), c, h, w, k, *kernel, *stride, *padding, activation, bias is None, layout)

    def candidates(gpu: Gpu) -> list[Candidate]:
        pixels = n * size[0] * size[1]
        moved = (input.numel() + pixels * k + weight.numel()) * bytes
        seconds = cost.seconds(cost.Work(moved, 2.0 * pixels * k * taps), gpu, bytes)
        found = [Candidate("aten", "", 2 * seconds, _aten)]
        if maps.has_triton(gpu) and (taps <= _FEW or not input.is_cuda):
            from ..kernels import conv2d_bias_act as kernels

            for config in kernels.configs(pixels, c, k, kernel, input.dtype):
                found.append(Candidate("triton", str(config), seconds, _triton(kernels, config)))
        return found

    call = _Call(input, weight, bias, stride, padding, activation)
    output: Tensor = maps.run(_NAME, call, key, candidates, weight)
    return output


def _triton(kernels: Any, config: Any) -> Any:
    return lambda call: kernels.conv2d_bias_act(
        call.input,
        maps.like(call.weight, call.input),
        maps.floats(call.bias),
        call.stride,
        call.padding,
        call.activation,
        config,
    )


def _aten(call: _Call) -> Tensor:
    return reference.conv2d_bias_act(
        maps.channels_last(call.input),
        maps.like(call.weight, call.input),
        maps.like_or_none(call.bias, call.input),
        call.stride,
        call.padding,
        activation=call.activation,
    )
