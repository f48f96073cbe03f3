"""The native ops of training in plain PyTorch: what they mean, and what runs where no kernel does.

Maps are of any floating dtype. All else is float32, or float64 beside maps of float64, and so are
all sums. See csrc/train.h for what the arguments are for, and schema.cpp for what they are called.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import activate, activate_backward


class Gradient(NamedTuple):
    """The gradient of a raw map: coefficients[0] G + coefficients[1] (raw - coefficients[2]) +
    coefficients[3] with G = (grad * gate + offset) * activation'(raw * scale + shift). Without raw
    it is grad."""

    grad: Tensor
    raw: Tensor | None
    affine: Tensor | None  # (2, K): scale, shift
    gate: Tensor | None  # (N, K)
    offset: Tensor | None  # (N, K)
    activation: int
    coefficients: Tensor | None  # (4, K)

    @property
    def input(self) -> Tensor:
        """The map that says where and in which dtype this is computed."""
        return self.grad


class Source(NamedTuple):
    """What a convolution read, activation(input * scale + shift) * gate, and the mean from which
    the sums of its gradient count."""

    input: Tensor
    affine: Tensor | None  # (2, C)
    gate: Tensor | None  # (N, C)
    activation: int
    mean: Tensor | None  # (C,)


class Window(NamedTuple):
    """Of a convolution; padding: top, bottom, left, right."""

    stride: Sequence[int] = (1, 1)
    padding: Sequence[int] = (0, 0, 0, 0)
    dilation: Sequence[int] = (1, 1)


def train_normalize(
    input: Tensor,
    affine: Tensor,
    gate: Tensor | None,
    activation: int,
    residual: Tensor | None,
) -> Tensor:
    x = _normalized(input, affine, gate, activation)
    if residual is not None:
        x = x + _wide(residual)
    return _stored(x, input)


def train_normalized_mean(input: Tensor, affine: Tensor, activation: int) -> Tensor:
    return _normalized(input, affine, None, activation).mean((2, 3))


def train_moments(input: Tensor) -> Tensor:
    variance, mean = torch.var_mean(_wide(input), (0, 2, 3), correction=0)
    return torch.stack((mean, variance))


def train_gradient(
    grad: Tensor,
    raw: Tensor,
    affine: Tensor | None,
    gate: Tensor | None,
    offset: Tensor | None,
    activation: int,
    coefficients: Tensor | None,
) -> Tensor:
    g = _outer_gradient(grad, raw, affine, gate, offset, activation)
    if coefficients is not None:
        factor, slope, mean, constant = coefficients[:, :, None, None]
        g = factor * g + (slope * (_wide(raw) - mean) + constant)
    return _stored(g, grad)


def train_gradient_sums(
    grad: Tensor,
    raw: Tensor,
    affine: Tensor | None,
    gate: Tensor | None,
    offset: Tensor | None,
    activation: int,
    mean: Tensor,
) -> Tensor:
    g = _outer_gradient(grad, raw, affine, gate, offset, activation)
    products = g * (_wide(raw) - mean[:, None, None])
    return torch.stack((g.sum((0, 2, 3)), products.sum((0, 2, 3))))


def train_pointwise_conv2d(
    input: Tensor,
    affine: Tensor | None,
    gate: Tensor | None,
    activation: int,
    weight: Tensor,
    wants_moments: bool,
) -> tuple[Tensor, Tensor]:
    source = Source(input, affine, gate, activation, None)
    return convolution(_PLAIN, source, weight, Window(), wants_moments)


def train_depthwise_conv2d(
    input: Tensor,
    affine: Tensor | None,
    activation: int,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wants_moments: bool,
) -> tuple[Tensor, Tensor]:
    source = Source(input, affine, None, activation, None)
    return convolution(_PLAIN, source, weight, Window(stride, padding, dilation), wants_moments)


def train_pointwise_conv2d_backward(*args: Any) -> tuple[Tensor, ...]:
    gradient, (input, affine, gate, activation, mean) = Gradient(*args[:7]), args[7:12]
    weight, residual, wanted = args[12:]
    source = Source(input, affine, gate, activation, mean)
    return convolution_backward(_PLAIN, gradient, source, weight, Window(), residual, wanted)


def train_depthwise_conv2d_backward(*args: Any) -> tuple[Tensor, ...]:
    gradient, (input, affine, activation, mean) = Gradient(*args[:7]), args[7:11]
    weight, window, (residual, wanted) = args[11], Window(*args[12:15]), args[15:]
    source = Source(input, affine, None, activation, mean)
    return convolution_backward(_PLAIN, gradient, source, weight, window, residual, wanted)


def convolution(
    ops: Any, source: Source, weight: Tensor, window: Window, wants_moments: bool
) -> tuple[Tensor, Tensor]:
    """A convolution of PyTorch between maps that are written.

    Args:
        ops: has the ops on maps: this module, or torch.ops.fastconv
        weight: a depthwise one or not, as its shape says

    Returns:
        the output and its moments, (2, K); empty where they are not wanted
    """
    read, padding = _padded(_read(ops, source), window)
    options = (window.stride, padding, window.dilation, _groups(source, weight))
    output = _dense(F.conv2d(read, weight.to(read.dtype), None, *options))
    return output, ops.train_moments(output) if wants_moments else _nothing(output)


def convolution_backward(
    ops: Any,
    gradient: Gradient,
    source: Source,
    weight: Tensor,
    window: Window,
    residual: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the same, by PyTorch's convolution.

    Args:
        wanted: the gradients of input, weight and bias, and the sums

    Returns:
        What is wanted, else empty: the gradient of what is before the input's activation, plus the
        residual; with a gate of what is behind that. (K, C, KH, KW). (K,). The sums of the first
        without the residual, alone and times (input - mean), (2, C); with a gate its own, (N, C).
    """
    input, affine, gate, activation, mean = source
    outer = gradient.grad if gradient.raw is None else ops.train_gradient(*gradient)
    read, padding = _padded(_read(ops, source) if wanted[1] else input, window)
    d, grad_weight, _ = torch.ops.aten.convolution_backward(
        outer,
        read,
        weight.to(read.dtype),
        None,
        window.stride,
        padding,
        window.dilation,
        False,
        (0, 0),
        _groups(source, weight),
        (wanted[0], wanted[1], False),
    )
    grad_input, sums = _nothing(input), _nothing(input)
    if wanted[0]:
        if d.shape != input.shape:
            top, _, left, _ = window.padding
            d = d[:, :, top : top + input.shape[2], left : left + input.shape[3]]
        grad_input = d = _dense(d)
        if wanted[3] and gate is not None:
            activated = _read(ops, source._replace(gate=None))
            sums = (_wide(d) * _wide(activated)).sum((2, 3))
        elif wanted[3]:
            sums = ops.train_gradient_sums(d, input, affine, None, None, activation, mean)
        if gate is None and activation != 0:
            grad_input = ops.train_gradient(d, input, affine, None, None, activation, None)
        if residual is not None:
            grad_input = grad_input + residual
    grad_weight = _wide(grad_weight) if wanted[1] else _nothing(input)
    grad_bias = _wide(outer).sum((0, 2, 3)) if wanted[2] else _nothing(input)
    return grad_input, grad_weight, grad_bias, sums


def _wide(map: Tensor) -> Tensor:
    return map if map.dtype is torch.float64 else map.float()


def _nothing(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.float32, device=like.device)


def _dense(map: Tensor) -> Tensor:
    return map.contiguous(memory_format=torch.channels_last)


def _stored(values: Tensor, like: Tensor) -> Tensor:
    return _dense(values.to(like.dtype))


def _groups(source: Source, weight: Tensor) -> int:
    channels = source.input.shape[1]
    return channels // weight.shape[1]


def _normalized(
    input: Tensor, affine: Tensor | None, gate: Tensor | None, activation: int
) -> Tensor:
    x = _wide(input)
    if affine is not None:
        scale, shift = affine[:, :, None, None]
        x = activate(x * scale + shift, activation)
    return x if gate is None else x * gate[:, :, None, None]


def _read(ops: Any, source: Source) -> Tensor:
    """What a convolution reads, as a map."""
    input, affine, gate, activation, _ = source
    if affine is not None:
        read: Tensor = ops.train_normalize(input, affine, gate, activation, None)
        return read
    return input if gate is None else _stored(_normalized(input, None, gate, activation), input)


def _padded(map: Tensor, window: Window) -> tuple[Tensor, tuple[int, int]]:
    """The map, and the padding that PyTorch's convolution must still add."""
    top, bottom, left, right = window.padding
    if (top, left) == (bottom, right):
        return map, (top, left)
    return F.pad(map, (left, right, top, bottom)), (0, 0)


def _outer_gradient(
    grad: Tensor,
    raw: Tensor,
    affine: Tensor | None,
    gate: Tensor | None,
    offset: Tensor | None,
    activation: int,
) -> Tensor:
    g = _wide(grad)
    if gate is not None:
        g = g * gate[:, :, None, None]
    if offset is not None:
        g = g + offset[:, :, None, None]
    return activate_backward(g, _normalized(raw, affine, None, 0), activation)


_PLAIN = sys.modules[__name__]
