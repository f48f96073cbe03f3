"""The specification: every op of fastconv in plain PyTorch.

It is the oracle of the tests, the baseline of the benchmarks, the recomputed forward of the
backward pass, and what runs where no kernel can. Any device, any floating dtype, differentiable.
Arguments are those of the public functions; padding may also be (top, bottom, left, right), and an
activation may also be its code. Four-dimensional results are channels_last, as from every backend.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import activate

Size2 = int | Sequence[int]
Padding = int | Sequence[int] | str
SqueezeExciteArgs = tuple[Tensor, Tensor | None, Tensor, Tensor | None, str | int, str | int]


def pair(value: Size2) -> tuple[int, int]:
    """3 -> (3, 3); (3, 5) -> (3, 5)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's "same" in one dimension: ceil(size / stride) outputs, the odd one at the end."""
    wanted = (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1
    total = max(wanted - size, 0)
    return total // 2, total - total // 2


def resolve_padding(
    padding: Padding,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int, int, int]:
    """Any form of padding -> (top, bottom, left, right)."""
    if isinstance(padding, str):
        vertical = same_padding(input_size[0], kernel_size[0], stride[0], dilation[0])
        return vertical + same_padding(input_size[1], kernel_size[1], stride[1], dilation[1])
    if isinstance(padding, int):
        return padding, padding, padding, padding
    if len(padding) == 4:
        return padding[0], padding[1], padding[2], padding[3]
    return padding[0], padding[0], padding[1], padding[1]


def conv2d_bias_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Padding = 0,
    dilation: Size2 = 1,
    groups: int = 1,
    *,
    activation: str | int = "none",
) -> Tensor:
    """activation(conv2d(input) + bias)"""
    return _channels_last(
        activate(_conv2d(input, weight, bias, stride, padding, dilation, groups), activation)
    )


def pointwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    *,
    activation: str | int = "none",
    residual: Tensor | None = None,
    input_scale: Tensor | None = None,
) -> Tensor:
    """activation(conv1x1(input * input_scale) + bias + residual)"""
    if input_scale is not None:
        input = input * input_scale[:, :, None, None]
    output = _conv2d(input, weight, bias, stride)
    if residual is not None:
        output = output + residual
    return _channels_last(activate(output, activation))


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Padding = 0,
    dilation: Size2 = 1,
    *,
    activation: str | int = "none",
) -> Tensor:
    """activation(one filter per channel + bias)"""
    groups = input.shape[1]
    return conv2d_bias_act(
        input, weight, bias, stride, padding, dilation, groups, activation=activation
    )


def depthwise_separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    stride: Size2 = 1,
    padding: Padding = 0,
    dilation: Size2 = 1,
    *,
    depthwise_activation: str | int = "relu6",
    activation: str | int = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """activation(pointwise(depthwise_activation(depthwise(input))) + residual)"""
    mid = depthwise_conv2d(
        input,
        depthwise_weight,
        depthwise_bias,
        stride,
        padding,
        dilation,
        activation=depthwise_activation,
    )
    return pointwise_conv2d(
        mid, pointwise_weight, pointwise_bias, activation=activation, residual=residual
    )


def inverted_residual(
    input: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_bias: Tensor | None,
    stride: Size2 = 1,
    padding: Padding = 0,
    dilation: Size2 = 1,
    *,
    activation: str | int = "relu6",
    squeeze_excite: SqueezeExciteArgs | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """project(squeeze_excite(activation(depthwise(activation(expand(input)))))) + residual"""
    mid = input
    if expand_weight is not None:
        mid = pointwise_conv2d(input, expand_weight, expand_bias, activation=activation)
    mid = depthwise_conv2d(
        mid, depthwise_weight, depthwise_bias, stride, padding, dilation, activation=activation
    )
    scale = None if squeeze_excite is None else _squeeze_excite_scale(mid, *squeeze_excite)
    return pointwise_conv2d(mid, project_weight, project_bias, residual=residual, input_scale=scale)


def squeeze_excite(
    input: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    *,
    activation: str | int = "relu",
    gate: str | int = "sigmoid",
) -> Tensor:
    """input * gate(expand(activation(reduce(mean of input over H, W))))"""
    scale = _squeeze_excite_scale(
        input, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate
    )
    return _channels_last(input * scale[:, :, None, None])


def pointwise_conv2d_pool(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | int = "none"
) -> Tensor:
    """mean over H, W of activation(conv1x1(input) + bias)"""
    return activate(_conv2d(input, weight, bias), activation).mean((2, 3))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias"""
    return F.linear(input, weight, bias)


def _squeeze_excite_scale(
    input: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    activation: str | int,
    gate: str | int,
) -> Tensor:
    pooled = input.mean((2, 3))
    reduced = activate(F.linear(pooled, reduce_weight.flatten(1), reduce_bias), activation)
    return activate(F.linear(reduced, expand_weight.flatten(1), expand_bias), gate)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size2 = 1,
    padding: Padding = 0,
    dilation: Size2 = 1,
    groups: int = 1,
) -> Tensor:
    stride, dilation = pair(stride), pair(dilation)
    size, kernel = input.shape[2:], weight.shape[2:]
    top, bottom, left, right = resolve_padding(padding, size, kernel, stride, dilation)
    if top != bottom or left != right:
        input, top, left = F.pad(input, (left, right, top, bottom)), 0, 0
    return F.conv2d(input, weight, bias, stride, (top, left), dilation, groups)


def _channels_last(output: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack():
        return output  # torch.func.vmap has no memory formats
    return output.contiguous(memory_format=torch.channels_last)
