"""1x1 convolutions of training on a GPU. See csrc/train.h.

Either kernels that normalize what they read and differentiate on the way, or PyTorch's convolutions
between maps that are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..ops import _train_plain as plain
from ..ops._train_plain import Gradient, Source, Window
from . import cost, maps, train_maps
from .choice import Candidate
from .device import Gpu
from .train_convolutions import BackwardCall, Call, dense_source, written

_NAME = "train_pointwise_conv2d"


def train_pointwise_conv2d(
    input: Tensor,
    affine: Tensor | None,
    gate: Tensor | None,
    activation: int,
    weight: Tensor,
    wants_moments: bool,
) -> tuple[Tensor, Tensor]:
    """The op of that name, on a GPU."""
    n, c, h, w = input.shape
    k = weight.shape[0]
    if input.numel() == 0:
        moments = maps.zeros(input, 2, k) if wants_moments else maps.floats_like(input, 0)
        return maps.empty(input, n, k, h, w), moments
    source = dense_source(Source(input, affine, gate, activation, None))

    def candidates(gpu: Gpu) -> list[Candidate]:
        seconds = _seconds(gpu, input, k, 1, 1)
        found = written(gpu, seconds, plain.convolution)
        if maps.has_triton(gpu):
            from ..kernels import train_pointwise_conv2d as kernels

            for config in kernels.configs(n * h * w, c, k, input.dtype):
                found.append(Candidate("triton", str(config), seconds, _triton(kernels, config)))
        return found

    call = Call(source, weight, Window(), wants_moments)
    output: tuple[Tensor, Tensor] = maps.run(_NAME, call, call.key, candidates, weight)
    return output


def train_pointwise_conv2d_backward(
    grad: Tensor,
    raw: Tensor | None,
    raw_affine: Tensor | None,
    raw_gate: Tensor | None,
    offset: Tensor | None,
    raw_activation: int,
    coefficients: Tensor | None,
    input: Tensor,
    affine: Tensor | None,
    gate: Tensor | None,
    activation: int,
    mean: Tensor | None,
    weight: Tensor,
    residual: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op of that name, on a GPU."""
    n, k = input.shape[0], weight.shape[0]
    if input.numel() == 0:
        return maps.empty_gradients(input, weight, wanted, 2 if gate is None else n)
    gradient = Gradient(grad, raw, raw_affine, raw_gate, offset, raw_activation, coefficients)
    source = Source(input, affine, gate, activation, mean)
    call = BackwardCall(gradient, source, weight, Window(), residual, wanted).dense()

    def candidates(gpu: Gpu) -> list[Candidate]:
        seconds = _seconds(gpu, input, k, wanted[0] + wanted[1], 2)
        found = written(gpu, seconds, plain.convolution_backward)
        if maps.has_triton(gpu):
            found.append(Candidate("mixed", "fused", seconds, _fused_backward))
        return found

    found: tuple[Tensor, Tensor, Tensor, Tensor]
    found = maps.run(f"{_NAME}_backward", call, call.key, candidates, weight)
    return found


def _seconds(gpu: Gpu, input: Tensor, k: int, products: int, maps_of_output: int) -> float:
    """What the cost model expects of this many products of matrices."""
    c, bytes = input.shape[1], input.element_size()
    pixels = input.numel() // c
    work = cost.pointwise(pixels, c, k, bytes, maps_of_output - 1)
    return max(1, products) * cost.seconds(work, gpu, bytes)


def _triton(kernels: Any, config: Any) -> Any:
    def run(call: Call) -> tuple[Tensor, Tensor]:
        weight = maps.now_in_dtype(call.weight, call.input.dtype)
        output, moments = kernels.train_pointwise_conv2d(
            *call.source[:4], weight, call.wants_moments, config
        )
        return output, maps.floats_like(output, 0) if moments is None else moments

    return run


def _fused_backward(call: BackwardCall) -> tuple[Tensor, ...]:
    """The gradients of the input and of the weight, on kernels of their own."""
    grad_input, grad_weight, grad_bias, sums = (maps.floats_like(call.input, 0) for _ in range(4))
    if call.wanted[0]:
        grad_input, found = _input_gradient(call)
        sums = sums if found is None else found
    if call.wanted[1]:
        grad_weight, found = _weight_gradient(call)
        grad_bias = grad_bias if found is None else found
    elif call.wanted[2]:
        outer = call.gradient.grad
        if call.gradient.raw is not None:
            outer = train_maps.train_gradient(*call.gradient)  # type: ignore[arg-type]
        grad_bias = outer.sum((0, 2, 3), dtype=grad_bias.dtype)
    return grad_input, grad_weight, grad_bias, sums


def _input_gradient(call: BackwardCall) -> tuple[Tensor, Tensor | None]:
    from ..kernels import train_maps as types
    from ..kernels import train_pointwise_conv2d_input as kernels

    def run(call: BackwardCall, config: Any) -> Any:
        weight = maps.now_in_dtype(call.weight, call.input.dtype)
        own = types.Gradient(*call.gradient), types.Source(*call.source)
        return kernels.input_gradient(*own, weight, call.residual, call.wanted[3], config)

    return _on_triton("input", kernels.configs, run, call)


def _weight_gradient(call: BackwardCall) -> tuple[Tensor, Tensor | None]:
    from ..kernels import train_maps as types
    from ..kernels import train_pointwise_conv2d_weight as kernels

    def run(call: BackwardCall, config: Any) -> Any:
        own = types.Gradient(*call.gradient), types.Source(*call.source)
        return kernels.weight_gradient(*own, call.weight.shape[0], call.wanted[2], config)

    return _on_triton("weight", kernels.configs, run, call)


def _on_triton(
    of: str, configs: Callable[..., Any], run: Callable[..., Any], call: BackwardCall
) -> tuple[Tensor, Tensor | None]:
    """One of the gradients, in the configuration that is the fastest."""
    n, c, h, w = call.input.shape
    k = call.weight.shape[0]

    def candidates(gpu: Gpu) -> list[Candidate]:
        seconds = _seconds(gpu, call.input, k, 1, 2)
        return [
            Candidate("triton", str(config), seconds, partial(run, config=config))
            for config in configs(n * h * w, c, k, call.input.dtype)
        ]

    found: tuple[Tensor, Tensor | None]
    found = maps.run(f"{_NAME}_backward {of}", call, call.key, candidates, call.weight)
    return found
