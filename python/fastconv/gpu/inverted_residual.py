"""Inverted residual block on a GPU. See :func:`fastconv.inverted_residual`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..activation import CODES
from . import cost, maps, tiles
from .choice import Candidate
from .depthwise_conv2d import depthwise_conv2d, depthwise_conv2d_pool
from .device import Gpu
from .pointwise_conv2d import pointwise_conv2d
from .squeeze_excite import Excite, gates

_NAME = "inverted_residual"
_NONE = CODES["none"]


class _Call(NamedTuple):
    input: Tensor
    expand_weight: Tensor | None
    expand_bias: Tensor | None
    depthwise_weight: Tensor
    depthwise_bias: Tensor | None
    project_weight: Tensor
    project_bias: Tensor | None
    stride: maps.Pair
    padding: maps.Pair
    dilation: maps.Pair
    activation: int
    excite: Excite | None
    residual: Tensor | None
    size: tuple[int, int]  # of the output


def inverted_residual(
    input: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_bias: Tensor | None,
    stride: maps.Pair,
    padding: maps.Pair,
    dilation: maps.Pair,
    activation: int,
    squeeze_excite: Sequence[Tensor | None],
    squeeze_excite_activation: int,
    squeeze_excite_gate: int,
    residual: Tensor | None,
    packed: Tensor | None = None,
) -> Tensor:
    """The op of that name, on a GPU."""
    n, c, h, w = input.shape
    k, mid, *_ = project_weight.shape
    kernel = tuple(depthwise_weight.shape[2:])
    size = maps.output_size((h, w), kernel, stride, padding, dilation)
    if n == 0:
        return maps.empty(input, n, k, *size)
    excite = None
    if squeeze_excite:
        w1, b1, w2, b2 = squeeze_excite
        assert w1 is not None
        assert w2 is not None
        excite = Excite(w1, b1, w2, b2, squeeze_excite_activation, squeeze_excite_gate)
    expands, bytes = expand_weight is not None, input.element_size()
    block = cost.Block(n, c, mid, k, h, w, *size, kernel[0] * kernel[1], expands, bytes)
    key = (maps.bucket(n), c, mid, k, h, w, expands, *kernel, *stride, *padding, *dilation)
    key += (activation, excite is not None, residual is not None)

    def candidates(gpu: Gpu) -> list[Candidate]:
        work = cost.depthwise(block)
        if expands:
            work += cost.pointwise(block.in_pixels, c, mid, bytes)
        project = cost.pointwise(block.out_pixels, mid, k, bytes, residual is not None)
        if excite is not None:
            project += cost.Work(0.0)  # the launch for the gates
        in_parts = cost.seconds(work + project, gpu, bytes)
        found = [
            Candidate("aten", "", 2 * in_parts, _aten),
            Candidate("mixed", "in parts", in_parts, _in_parts),
        ]
        if not maps.has_cuda(input) or tuple(dilation) != (1, 1):
            return found
        fused = block if excite is None else block._replace(out_channels=0)
        for tile in tiles.feasible(fused, kernel, stride, gpu, input.dtype):
            if excite is None:
                seconds = cost.seconds(cost.fused(block), gpu, bytes)
                found.append(Candidate("cuda", str(tile), seconds, _fused(tile)))
            else:
                half = cost.expanded_depthwise(block)
                seconds = cost.seconds(half + project, gpu, bytes)
                found.append(Candidate("cuda", f"half {tile}", seconds, _half_fused(tile)))
        return found

    call = _Call(
        maps.channels_last(input),
        expand_weight,
        expand_bias,
        depthwise_weight,
        depthwise_bias,
        project_weight,
        project_bias,
        stride,
        padding,
        dilation,
        activation,
        excite,
        maps.channels_last_or_none(residual),
        size,
    )
    output: Tensor = maps.run(_NAME, call, key, candidates, depthwise_weight)
    return output


def _in_parts(call: _Call) -> Tensor:
    mid = call.input
    if call.expand_weight is not None:
        mid = pointwise_conv2d(mid, call.expand_weight, call.expand_bias, (1, 1), call.activation)
    window = (call.stride, call.padding, call.dilation, call.activation)
    depthwise = (call.depthwise_weight, call.depthwise_bias, *window)
    if call.excite is None:
        return _project(call, depthwise_conv2d(mid, *depthwise), None)
    mid, sums = depthwise_conv2d_pool(mid, *depthwise)
    return _project(call, mid, sums)


def _project(call: _Call, mid: Tensor, sums: Tensor | None) -> Tensor:
    factors = None
    if sums is not None and call.excite is not None:
        factors = gates(sums, mid.shape[2] * mid.shape[3], mid, call.excite)
    weights = (call.project_weight, call.project_bias)
    return pointwise_conv2d(mid, *weights, (1, 1), _NONE, call.residual, factors)


def _fused(tile: tiles.Tile) -> Any:
    def run(call: _Call) -> Tensor:
        input = call.input
        output = maps.empty(input, input.shape[0], call.project_weight.shape[0], *call.size)
        _launch(call, tile, call.project_weight, output, None)
        return output

    return run


def _half_fused(tile: tiles.Tile) -> Any:
    def run(call: _Call) -> Tensor:
        input, n, mid = call.input, call.input.shape[0], call.depthwise_weight.shape[0]
        output = maps.empty(input, n, mid, *call.size)
        sums = input.new_empty((n, tile.parts(call.size), mid), dtype=torch.float32)
        _launch(call, tile, None, output, sums)
        return _project(call, output, sums)

    return run


def _launch(
    call: _Call,
    tile: tiles.Tile,
    project_weight: Tensor | None,
    output: Tensor,
    sums: Tensor | None,
) -> None:
    tiles.launch(
        call.input,
        (call.expand_weight, call.expand_bias),
        (call.depthwise_weight, call.depthwise_bias),
        (project_weight, None if project_weight is None else call.project_bias),
        (call.stride, call.padding),
        (call.activation, call.activation, _NONE),
        None if project_weight is None else call.residual,
        tile,
        output,
        sums,
    )


def _aten(call: _Call) -> Tensor:
    input, excite = call.input, None
    if call.excite is not None:
        w1, b1, w2, b2, activation, gate = call.excite
        weights = (maps.like(w1, input), maps.like_or_none(b1, input))
        more = (maps.like(w2, input), maps.like_or_none(b2, input))
        excite = (*weights, *more, activation, gate)
    return reference.inverted_residual(
        input,
        maps.like_or_none(call.expand_weight, input),
        maps.like_or_none(call.expand_bias, input),
        maps.like(call.depthwise_weight, input),
        maps.like_or_none(call.depthwise_bias, input),
        maps.like(call.project_weight, input),
        maps.like_or_none(call.project_bias, input),
        call.stride,
        call.padding,
        call.dilation,
        activation=call.activation,
        squeeze_excite=excite,
        residual=call.residual,
    )
