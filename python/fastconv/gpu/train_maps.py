"""The ops of training on maps alone, on a GPU. See csrc/train.h."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ..ops import _train_plain as plain
from ..ops._train_plain import Gradient
from . import cost, maps
from .choice import Candidate
from .device import Gpu


class _Call(NamedTuple):
    """All that one of the ops may be given."""

    input: Tensor
    affine: Tensor | None = None
    gate: Tensor | None = None
    activation: int = 0
    residual: Tensor | None = None


class _SumsCall(NamedTuple):
    arguments: tuple[Any, ...]  # a Gradient without coefficients, and the mean

    @property
    def input(self) -> Tensor:
        grad: Tensor = self.arguments[0]
        return grad


def train_normalize(
    input: Tensor,
    affine: Tensor,
    gate: Tensor | None,
    activation: int,
    residual: Tensor | None,
) -> Tensor:
    """The op of that name, on a GPU."""
    if input.numel() == 0:
        return maps.empty(input, *input.shape)
    residual = maps.channels_last_or_none(residual)
    call = _Call(maps.channels_last(input), dense(affine), dense(gate), activation, residual)
    more = (activation, gate is not None, residual is not None)
    output: Tensor = _run(
        "train_normalize",
        call,
        more,
        2 + more[-1],
        lambda c: plain.train_normalize(*c),
        lambda c, config: _maps().normalize(*c, config),
    )
    return output


def train_gradient(
    grad: Tensor,
    raw: Tensor,
    raw_affine: Tensor | None,
    raw_gate: Tensor | None,
    offset: Tensor | None,
    raw_activation: int,
    coefficients: Tensor | None,
) -> Tensor:
    """The op of that name, on a GPU."""
    if grad.numel() == 0:
        return maps.empty(grad, *grad.shape)
    call = dense_gradient(
        Gradient(grad, raw, raw_affine, raw_gate, offset, raw_activation, coefficients)
    )
    output: Tensor = _run(
        "train_gradient",
        call,
        gradient_key(call),
        3,
        lambda c: plain.train_gradient(*c),
        lambda c, config: _maps().gradient(*c, config),
    )
    return output


def train_moments(input: Tensor) -> Tensor:
    """The op of that name, on a GPU."""
    if input.numel() == 0:
        return maps.zeros(input, 2, input.shape[1])
    output: Tensor = _run(
        "train_moments",
        _Call(maps.channels_last(input)),
        (),
        1,
        lambda c: plain.train_moments(c.input),
        lambda c, config: _sums().moments(c.input, config),
    )
    return output


def train_normalized_mean(input: Tensor, affine: Tensor, activation: int) -> Tensor:
    """The op of that name, on a GPU."""
    if input.numel() == 0:
        return maps.zeros(input, *input.shape[:2])
    output: Tensor = _run(
        "train_normalized_mean",
        _Call(maps.channels_last(input), dense(affine), None, activation),
        (activation,),
        1,
        lambda c: plain.train_normalized_mean(c.input, c.affine, c.activation),
        lambda c, config: _sums().normalized_mean(c.input, c.affine, c.activation, config),
    )
    return output


def train_gradient_sums(
    grad: Tensor,
    raw: Tensor,
    raw_affine: Tensor | None,
    raw_gate: Tensor | None,
    offset: Tensor | None,
    raw_activation: int,
    mean: Tensor,
) -> Tensor:
    """The op of that name, on a GPU."""
    if grad.numel() == 0:
        return maps.zeros(grad, 2, grad.shape[1])
    gradient = dense_gradient(
        Gradient(grad, raw, raw_affine, raw_gate, offset, raw_activation, None)
    )
    output: Tensor = _run(
        "train_gradient_sums",
        _SumsCall((*gradient[:-1], mean.contiguous())),
        gradient_key(gradient),
        2,
        lambda c: plain.train_gradient_sums(*c.arguments),
        lambda c, config: _sums().gradient_sums(*c.arguments, config),
    )
    return output


def dense(values: Tensor | None) -> Any:
    """What is no map, as kernels read it."""
    return None if values is None else values.contiguous()


def dense_gradient(gradient: Gradient) -> Gradient:
    """The same with maps and all else as kernels read them."""
    grad, raw, affine, gate, offset, activation, coefficients = gradient
    return Gradient(
        maps.channels_last(grad),
        maps.channels_last_or_none(raw),
        dense(affine),
        dense(gate),
        dense(offset),
        activation,
        dense(coefficients),
    )


def gradient_key(gradient: Gradient) -> tuple[Any, ...]:
    """What the speed depends on beside the sizes."""
    there = (t is not None for t in gradient if t is None or isinstance(t, Tensor))
    return (gradient.activation, *there)


def _run(
    op: str,
    call: Any,
    more: tuple[Any, ...],
    moved: int,
    aten: Callable[[Any], Any],
    triton: Callable[..., Any],
) -> Any:
    """Runs a call on PyTorch's kernels or on those of one of Triton's configurations.

    Args:
        more: what the speed depends on beside the sizes
        moved: how many maps are read or written
    """
    input = call.input
    n, c, h, w = input.shape
    bytes = input.element_size()

    def candidates(gpu: Gpu) -> list[Candidate]:
        seconds = cost.seconds(cost.Work(moved * bytes * input.numel()), gpu, bytes)
        found = [Candidate("aten", "", 4 * seconds, aten)]
        if maps.has_triton(gpu):
            kernels = _maps() if op in ("train_normalize", "train_gradient") else _sums()
            for config in kernels.configs(c, input.dtype):
                run = partial(triton, config=config)
                found.append(Candidate("triton", str(config), seconds, run))
        return found

    return maps.run(op, call, (maps.bucket(n), c, h, w, *more), candidates, input)


def _maps() -> Any:
    from ..kernels import train_maps

    return train_maps


def _sums() -> Any:
    from ..kernels import train_sums

    return train_sums
