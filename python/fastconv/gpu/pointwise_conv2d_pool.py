"""1x1 convolution and mean over all pixels on a GPU. See :func:`fastconv.pointwise_conv2d_pool`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from . import cost, maps
from .choice import Candidate
from .device import Gpu
from .pointwise_conv2d import pointwise_conv2d

_NAME = "pointwise_conv2d_pool"


class _Call(NamedTuple):
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    activation: int


def pointwise_conv2d_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: int,
    packed: Tensor | None = None,
) -> Tensor:
    """The op of that name, on a GPU."""
    n, c, h, w = input.shape
    k, bytes = weight.shape[0], input.element_size()
    if n == 0:
        return maps.empty(input, n, k)

    def candidates(gpu: Gpu) -> list[Candidate]:
        whole = cost.pointwise(n * h * w, c, k, bytes)
        stored = cost.Work(1.0 * bytes * n * h * w * k)
        fused = whole._replace(bytes=whole.bytes - stored.bytes)
        seconds = cost.seconds(fused, gpu, bytes)
        in_two = cost.seconds(whole + stored, gpu, bytes)
        found = [
            Candidate("aten", "", 2 * in_two, _aten),
            Candidate("mixed", "1x1, then mean", in_two, _two),
        ]
        if maps.has_triton(gpu):
            from ..kernels import pointwise_conv2d_pool as kernels

            for config in kernels.configs(n, h * w, c, k, input.dtype):
                found.append(Candidate("triton", str(config), seconds, _triton(kernels, config)))
        return found

    key = (maps.bucket(n), c, h, w, k, activation, bias is not None)
    call = _Call(maps.channels_last(input), weight, bias, activation)
    output: Tensor = maps.run(_NAME, call, key, candidates, weight)
    return output


def _triton(kernels: Any, config: Any) -> Any:
    return lambda call: kernels.pointwise_conv2d_pool(
        call.input,
        maps.like(call.weight, call.input),
        maps.floats(call.bias),
        call.activation,
        config,
    )


def _two(call: _Call) -> Tensor:
    output = pointwise_conv2d(call.input, call.weight, call.bias, (1, 1), call.activation)
    return output.mean((2, 3), dtype=torch.float32).to(call.input.dtype)


def _aten(call: _Call) -> Tensor:
    return reference.pointwise_conv2d_pool(
        call.input,
        maps.like(call.weight, call.input),
        maps.like_or_none(call.bias, call.input),
        activation=call.activation,
    )
