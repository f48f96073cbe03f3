"""Depthwise and 1x1 convolution on a GPU. See :func:`fastconv.depthwise_separable_conv2d`."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .. import reference
from . import cost, maps, tiles
from .choice import Candidate
from .depthwise_conv2d import depthwise_conv2d
from .device import Gpu
from .pointwise_conv2d import pointwise_conv2d

_NAME = "depthwise_separable_conv2d"


class _Call(NamedTuple):
    input: Tensor
    depthwise_weight: Tensor
    depthwise_bias: Tensor | None
    pointwise_weight: Tensor
    pointwise_bias: Tensor | None
    stride: maps.Pair
    padding: maps.Pair
    dilation: maps.Pair
    depthwise_activation: int
    activation: int
    residual: Tensor | None
    size: tuple[int, int]  # of the output


def depthwise_separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    stride: maps.Pair,
    padding: maps.Pair,
    dilation: maps.Pair,
    depthwise_activation: int,
    activation: int,
    residual: Tensor | None,
    packed: Tensor | None = None,
) -> Tensor:
    """The op of that name, on a GPU."""
    n, c, h, w = input.shape
    k, kernel = pointwise_weight.shape[0], tuple(depthwise_weight.shape[2:])
    size = maps.output_size((h, w), kernel, stride, padding, dilation)
    if n == 0:
        return maps.empty(input, n, k, *size)
    bytes = input.element_size()
    block = cost.Block(n, c, c, k, h, w, *size, kernel[0] * kernel[1], False, bytes)
    key = (maps.bucket(n), c, k, h, w, *kernel, *stride, *padding, *dilation)
    key += (depthwise_activation, activation, residual is not None)

    def candidates(gpu: Gpu) -> list[Candidate]:
        project = cost.pointwise(block.out_pixels, c, k, bytes, residual is not None)
        in_two = cost.seconds(cost.depthwise(block) + project, gpu, bytes)
        found = [
            Candidate("aten", "", 2 * in_two, _aten),
            Candidate("mixed", "in two", in_two, _in_two),
        ]
        seconds = cost.seconds(cost.fused(block, halo=1.0), gpu, bytes)
        if maps.has_triton(gpu) and (cost.separable_fits(k) or not input.is_cuda):
            from ..kernels import depthwise_separable_conv2d as kernels

            for config in kernels.configs(n, c, k, size, kernel, stride, input.dtype):
                found.append(Candidate("triton", str(config), seconds, _triton(kernels, config)))
        if maps.has_cuda(input) and tuple(dilation) == (1, 1):
            for tile in tiles.feasible(block, kernel, stride, gpu, input.dtype):
                found.append(Candidate("cuda", str(tile), seconds, _cuda(tile)))
        return found

    call = _Call(
        maps.channels_last(input),
        depthwise_weight,
        depthwise_bias,
        pointwise_weight,
        pointwise_bias,
        stride,
        padding,
        dilation,
        depthwise_activation,
        activation,
        maps.channels_last_or_none(residual),
        size,
    )
    output: Tensor = maps.run(_NAME, call, key, candidates, depthwise_weight)
    return output


def _in_two(call: _Call) -> Tensor:
    mid = depthwise_conv2d(
        call.input,
        call.depthwise_weight,
        call.depthwise_bias,
        call.stride,
        call.padding,
        call.dilation,
        call.depthwise_activation,
    )
    weights = (call.pointwise_weight, call.pointwise_bias)
    return pointwise_conv2d(mid, *weights, (1, 1), call.activation, call.residual)


def _triton(kernels: Any, config: Any) -> Any:
    return lambda call: kernels.depthwise_separable_conv2d(
        call.input,
        maps.channels_innermost(call.depthwise_weight),
        maps.floats(call.depthwise_bias),
        maps.like(call.pointwise_weight, call.input),
        maps.floats(call.pointwise_bias),
        call.stride,
        call.padding,
        call.dilation,
        call.depthwise_activation,
        call.activation,
        call.residual,
        config,
    )


def _cuda(tile: tiles.Tile) -> Any:
    def run(call: _Call) -> Tensor:
        input = call.input
        output = maps.empty(input, input.shape[0], call.pointwise_weight.shape[0], *call.size)
        tiles.launch(
            input,
            (None, None),
            (call.depthwise_weight, call.depthwise_bias),
            (call.pointwise_weight, call.pointwise_bias),
            (call.stride, call.padding),
            (0, call.depthwise_activation, call.activation),
            call.residual,
            tile,
            output,
            None,
        )
        return output

    return run


def _aten(call: _Call) -> Tensor:
    input = call.input
    return reference.depthwise_separable_conv2d(
        input,
        maps.like(call.depthwise_weight, input),
        maps.like_or_none(call.depthwise_bias, input),
        maps.like(call.pointwise_weight, input),
        maps.like_or_none(call.pointwise_bias, input),
        call.stride,
        call.padding,
        call.dilation,
        depthwise_activation=call.depthwise_activation,
        activation=call.activation,
        residual=call.residual,
    )
