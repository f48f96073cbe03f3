"""Squeeze-and-excitation on a GPU. See :func:`fastconv.squeeze_excite`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..activation import activate
from . import cost, maps
from .choice import Candidate
from .device import Gpu

_NAME = "squeeze_excite"


class Excite(NamedTuple):
    """The weights of a squeeze-and-excitation, (R, C, 1, 1) and (C, R, 1, 1), and its codes."""

    reduce_weight: Tensor
    reduce_bias: Tensor | None
    expand_weight: Tensor
    expand_bias: Tensor | None
    activation: int
    gate: int


class _Call(NamedTuple):
    input: Tensor
    excite: Excite


class _GatesCall(NamedTuple):
    input: Tensor  # (N, P, C) sums
    pixels: int
    dtype: torch.dtype
    excite: Excite


def squeeze_excite(
    input: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    activation: int,
    gate: int,
    packed: Tensor | None = None,
) -> Tensor:
    """The op of that name, on a GPU."""
    n, c, h, w = input.shape
    if n == 0:
        return maps.empty(input, n, c, h, w)
    excite = Excite(reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate)
    r, bytes = reduce_weight.shape[0], input.element_size()

    def candidates(gpu: Gpu) -> list[Candidate]:
        work = cost.Work(3.0 * bytes * input.numel(), launches=3)
        seconds = cost.seconds(work, gpu, bytes)
        found = [Candidate("aten", "", 2 * seconds, _aten)]
        if maps.has_triton(gpu):
            from ..kernels import squeeze_excite as kernels

            for config in kernels.configs(n, c, h * w, input.dtype):
                found.append(Candidate("triton", str(config), seconds, _triton(kernels, config)))
        return found

    call = _Call(maps.channels_last(input), excite)
    key = (maps.bucket(n), c, h, w, r, activation, gate)
    output: Tensor = maps.run(_NAME, call, key, candidates, reduce_weight)
    return output


def gates(sums: Tensor, pixels: int, like: Tensor, excite: Excite) -> Tensor:
    """The factors (N, C) of squeeze-and-excitation, float32, from the sums of P parts of an image.

    Args:
        sums: (N, P, C), float32
        pixels: of an image
        like: a map, for the dtype of the weights
    """
    n, parts, c = sums.shape

    def candidates(gpu: Gpu) -> list[Candidate]:
        seconds = cost.seconds(cost.Work(4.0 * sums.numel()), gpu, 4)
        found = [Candidate("aten", "", 4 * seconds, _aten_gates)]
        if maps.has_triton(gpu):
            found.append(Candidate("triton", "", seconds, _triton_gates))
        return found

    key = (maps.bucket(n), parts, c, excite.reduce_weight.shape[0], str(like.dtype))
    call = _GatesCall(sums, pixels, like.dtype, excite)
    factors: Tensor = maps.run("squeeze_excite gates", call, key, candidates, excite.reduce_weight)
    return factors


def _triton(kernels: Any, config: Any) -> Any:
    def run(call: _Call) -> Tensor:
        input = call.input
        sums = kernels.channel_sums(input, config)
        factors = gates(sums, input.shape[2] * input.shape[3], input, call.excite)
        output: Tensor = kernels.scale(input, factors, config)
        return output

    return run


def _triton_gates(call: _GatesCall) -> Tensor:
    from ..kernels import squeeze_excite as kernels

    excite = call.excite
    factors: Tensor = kernels.gates(
        call.input,
        call.pixels,
        maps.in_dtype(excite.reduce_weight, call.dtype),
        maps.floats(excite.reduce_bias),
        maps.in_dtype(excite.expand_weight, call.dtype),
        maps.floats(excite.expand_bias),
        excite.activation,
        excite.gate,
    )
    return factors


def _aten_gates(call: _GatesCall) -> Tensor:
    w1, b1, w2, b2, activation, gate = call.excite
    mean = (call.input.sum(1) / call.pixels).to(call.dtype)

    def fully_connected(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else maps.in_dtype(bias, call.dtype)
        matrix = maps.in_dtype(weight, call.dtype).flatten(1)
        return reference.linear(input, matrix, bias)

    reduced = activate(fully_connected(mean, w1, b1), activation)
    return activate(fully_connected(reduced, w2, b2), gate).float()


def _aten(call: _Call) -> Tensor:
    w1, b1, w2, b2, activation, gate = call.excite
    input = call.input
    return reference.squeeze_excite(
        input,
        maps.like(w1, input),
        maps.like_or_none(b1, input),
        maps.like(w2, input),
        maps.like_or_none(b2, input),
        activation=activation,
        gate=gate,
    )
