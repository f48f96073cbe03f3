"""1x1 convolution with everything that surrounds it in a network."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import reference
from ..folding import pack_pointwise
from ..reference import Size2
from . import _common as common
from . import _derivatives

_NAME = "pointwise_conv2d"
_TENSORS = ("input", "weight", "bias", "residual", "input_scale")


def pointwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    input_scale: Tensor | None = None,
) -> Tensor:
    """Computes ``activation(conv1x1(input * input_scale) + bias + residual)`` in one pass.

    The residual is added before the activation, as ResNet does; MobileNet has no activation there.
    Native on the CPU, in any memory layout; everything else runs as plain PyTorch.
    Packed weights are remembered while the weight lives: see :func:`fastconv.folding.clear_cache`.

    Args:
        input: (N, C, H, W)
        weight: (K, C, 1, 1)
        bias: (K,)
        stride: int or (h, w); every stride-th pixel is computed
        activation: none, relu, relu6, hardswish, silu, sigmoid, hardsigmoid, tanh or gelu
        residual: (N, K, OH, OW), added before the activation
        input_scale: (N, C), one factor per image and channel, as from squeeze-excite

    Returns:
        (N, K, OH, OW), channels_last, of the dtype of the input; OH = ceil(H / stride)

    Raises:
        TypeError: for what must be a tensor and is not.
        ValueError: for a wrong shape, dtype, device, stride or activation.
        fastconv.BackendError: if the backend that was asked for cannot run the call.

    Example:
        >>> weight = torch.randn(64, 32, 1, 1)
        >>> fastconv.pointwise_conv2d(torch.randn(1, 32, 56, 56), weight, activation="relu6").shape
        torch.Size([1, 64, 56, 56])

    The layer is that of "Network In Network" (https://arxiv.org/abs/1312.4400).
    """
    stride = common.size2(_NAME, "stride", stride, 1)
    code = common.activation_code(_NAME, "activation", activation)
    args = (input, weight, bias, stride, code, residual, input_scale)
    tensors = (input, weight, bias, residual, input_scale)
    return common.call(OPS, args, tensors, pack_pointwise, weight, bias)


def _output_shape(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    activation: int,
    residual: Tensor | None,
    input_scale: Tensor | None,
) -> tuple[Any, ...]:
    n, c, h, w = common.input_dims(_NAME, input)
    k = common.check_pointwise_weight(_NAME, "weight", weight, c)
    common.check_vector(_NAME, "bias", bias, k)
    shape = (n, k, (h - 1) // stride[0] + 1, (w - 1) // stride[1] + 1)
    common.check_residual(_NAME, residual, shape)
    if input_scale is not None:
        ok = input_scale.shape == (n, c)
        common.require(ok, _NAME, "input_scale", "have shape ({}, {})", input_scale.shape, n, c)
    return shape


def _flops(input: Any, weight: Any, bias: Any, stride: Any, *_: Any) -> int:
    n, c, h, w = input
    return 2 * n * c * weight[0] * (-(-h // stride[0])) * (-(-w // stride[1]))


OPS = common.register(
    _NAME,
    _TENSORS,
    output_shape=_output_shape,
    reference=reference.pointwise_conv2d,
    flops=_flops,
    gradients=_derivatives.pointwise_conv2d,
    activation="activation",
)
