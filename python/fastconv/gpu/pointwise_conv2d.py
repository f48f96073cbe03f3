"""1x1 convolution on a GPU. See :func:`fastconv.pointwise_conv2d`."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .. import reference
from . import cost, maps
from .choice import Candidate
from .device import Gpu

_NAME = "pointwise_conv2d"


class _Call(NamedTuple):
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: maps.Pair
    activation: int
    residual: Tensor | None
    input_scale: Tensor | None


def pointwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: maps.Pair,
    activation: int,
    residual: Tensor | None = None,
    input_scale: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """The op of that name, on a GPU."""
    n, c, h, w = input.shape
    k, size = weight.shape[0], ((h - 1) // stride[0] + 1, (w - 1) // stride[1] + 1)
    if n == 0:
        return maps.empty(input, n, k, *size)
    extras = (bias is not None, residual is not None, input_scale is not None)
    key = (maps.bucket(n), c, h, w, k, *stride, activation, *extras)

    def candidates(gpu: Gpu) -> list[Candidate]:
        work = cost.pointwise(n * size[0] * size[1], c, k, input.element_size(), extras[1])
        seconds = cost.seconds(work, gpu, input.element_size())
        found = [Candidate("aten", "", 2 * seconds, _aten)]
        if maps.has_triton(gpu):
            from ..kernels import pointwise_conv2d as kernels

            for config in kernels.configs(n, size[0] * size[1], c, k, input.dtype):
                found.append(Candidate("triton", str(config), seconds, _triton(kernels, config)))
        return found

    call = _Call(
        maps.channels_last(input),
        weight,
        bias,
        stride,
        activation,
        maps.channels_last_or_none(residual),
        None if input_scale is None else input_scale.contiguous(),
    )
    output: Tensor = maps.run(_NAME, call, key, candidates, weight)
    return output


def _triton(kernels: Any, config: Any) -> Any:
    return lambda call: kernels.pointwise_conv2d(
        call.input,
        maps.like(call.weight, call.input),
        maps.floats(call.bias),
        call.stride,
        call.activation,
        call.residual,
        call.input_scale,
        config,
    )


def _aten(call: _Call) -> Tensor:
    scale = call.input_scale
    return reference.pointwise_conv2d(
        call.input,
        maps.like(call.weight, call.input),
        maps.like_or_none(call.bias, call.input),
        call.stride,
        activation=call.activation,
        residual=call.residual,
        input_scale=None if scale is None else scale.to(call.input.dtype),
    )
