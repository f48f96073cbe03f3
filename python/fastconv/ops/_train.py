"""The native ops of training, which :mod:`fastconv.nn` strings together: fakes, FLOP formulas.

They have no derivative of their own: they are what one is made of.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backend

# Where the library is missing, nothing asks for these.
FASTCONV: Any = torch.ops.fastconv


def _map(like: Tensor, *shape: Any) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _floats(like: Tensor, wanted: bool, *shape: Any) -> Tensor:
    return torch.empty(shape if wanted else (0,), dtype=torch.float32, device=like.device)


def _window(
    input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any
) -> tuple[Any, ...]:
    sizes = []
    for i in (0, 1):
        padded = input.shape[2 + i] + padding[2 * i] + padding[2 * i + 1]
        reach = dilation[i] * (weight.shape[2 + i] - 1) + 1
        sizes.append((padded - reach) // stride[i] + 1)
    return tuple(sizes)


def _pointwise(
    input: Tensor, affine: Any, gate: Any, activation: int, weight: Tensor, wants_moments: bool
) -> tuple[Tensor, Tensor]:
    n, _, h, w = input.shape
    k = weight.shape[0]
    return _map(input, n, k, h, w), _floats(input, wants_moments, 2, k)


def _depthwise(
    input: Tensor,
    affine: Any,
    activation: int,
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    wants_moments: bool,
) -> tuple[Tensor, Tensor]:
    n, c = input.shape[:2]
    output = _map(input, n, c, *_window(input, weight, stride, padding, dilation))
    return output, _floats(input, wants_moments, 2, c)


def _gradients(
    input: Tensor, weight: Tensor, sums: tuple[Any, ...], wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    grad_input = _map(input, *input.shape) if wanted[0] else _floats(input, False)
    return (
        grad_input,
        _floats(input, wanted[1], *weight.shape),
        _floats(input, wanted[2], weight.shape[0]),
        _floats(input, wanted[3], *sums),
    )


def _pointwise_backward(*args: Any) -> tuple[Tensor, ...]:
    input, gate, weight, wanted = args[7], args[9], args[12], args[14]
    sums = (2 if gate is None else input.shape[0], input.shape[1])
    return _gradients(input, weight, sums, wanted)


def _depthwise_backward(*args: Any) -> tuple[Tensor, ...]:
    input, weight, wanted = args[7], args[11], args[16]
    return _gradients(input, weight, (2, input.shape[1]), wanted)


def _like(input: Tensor, *args: Any) -> Tensor:
    return _map(input, *input.shape)


def _per_channel(input: Tensor, *args: Any) -> Tensor:
    return _floats(input, True, 2, input.shape[1])


def _per_image(input: Tensor, *args: Any) -> Tensor:
    return _floats(input, True, *input.shape[:2])


def _pointwise_flops(
    input: Any, affine: Any, gate: Any, activation: int, weight: Any, *_: Any, **__: Any
) -> int:
    n, c, h, w = input
    return int(2 * n * c * weight[0] * h * w)


def _depthwise_flops(
    input: Any, affine: Any, activation: Any, weight: Any, *_: Any, out_shape: Any, **__: Any
) -> int:
    n, c, h, w = out_shape[0]
    return int(2 * n * c * h * w * weight[2] * weight[3])


def _pointwise_backward_flops(*args: Any, **_: Any) -> int:
    (n, c, h, w), weight, wanted = args[7], args[12], args[14]
    return int(2 * n * c * weight[0] * h * w * (wanted[0] + wanted[1]))


def _depthwise_backward_flops(*args: Any, **_: Any) -> int:
    (n, c, h, w), weight, wanted = args[0], args[11], args[16]
    return int(2 * n * c * h * w * weight[2] * weight[3] * (wanted[0] + wanted[1]))


_FAKES: dict[str, Callable[..., Any]] = {
    "train_pointwise_conv2d": _pointwise,
    "train_depthwise_conv2d": _depthwise,
    "train_pointwise_conv2d_backward": _pointwise_backward,
    "train_depthwise_conv2d_backward": _depthwise_backward,
    "train_normalize": _like,
    "train_normalized_mean": _per_image,
    "train_moments": _per_channel,
    "train_gradient": _like,
    "train_gradient_sums": _per_channel,
}
_FLOPS: dict[str, Callable[..., int]] = {
    "train_pointwise_conv2d": _pointwise_flops,
    "train_depthwise_conv2d": _depthwise_flops,
    "train_pointwise_conv2d_backward": _pointwise_backward_flops,
    "train_depthwise_conv2d_backward": _depthwise_backward_flops,
}

if backend.NATIVE_MISSING is None:
    for _name, _fake in _FAKES.items():
        torch.library.register_fake(f"fastconv::{_name}", _fake)
    for _name, _formula in _FLOPS.items():
        register_flop_formula(getattr(FASTCONV, _name))(_formula)
