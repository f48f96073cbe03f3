"""Depthwise and 1x1 convolution in one kernel: the tensor between them stays in the cache."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import reference
from ..folding import pack_separable
from ..reference import Padding, Size2
from . import _common as common
from . import _derivatives

_NAME = "depthwise_separable_conv2d"
_TENSORS = (
    "input",
    "depthwise_weight",
    "depthwise_bias",
    "pointwise_weight",
    "pointwise_bias",
    "residual",
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
    depthwise_activation: str = "relu6",
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Computes a depthwise convolution, its activation, and a 1x1 convolution in one pass:
    ``activation(pointwise(depthwise_activation(depthwise(input))) + residual)``, each with bias.

    Native on the CPU with depth multiplier 1, in any memory layout; everything else
    runs as plain PyTorch.

    Args:
        input: (N, C, H, W)
        depthwise_weight: (C * m, 1, KH, KW)
        depthwise_bias: (C * m,) or None
        pointwise_weight: (K, C * m, 1, 1)
        pointwise_bias: (K,) or None
        stride: int or (h, w), of the depthwise convolution
        padding: int, (h, w), or "same": TensorFlow's, for which OH = ceil(H / stride), with the
            odd row and column at the bottom and the right
        dilation: int or (h, w)
        depthwise_activation: none, relu, relu6, hardswish, silu, sigmoid, hardsigmoid, tanh or gelu
        activation: likewise, after the 1x1 convolution
        residual: (N, K, OH, OW), added before the activation

    Returns:
        (N, K, OH, OW), channels_last, of the dtype of the input

    Raises:
        TypeError: for what must be a tensor and is not.
        ValueError: for a wrong shape, dtype, device, stride, padding, dilation or activation.
        fastconv.BackendError: if the backend that was asked for cannot run the call.

    Example:
        >>> depthwise, pointwise = torch.randn(32, 1, 3, 3), torch.randn(64, 32, 1, 1)
        >>> input = torch.randn(1, 32, 56, 56)
        >>> fastconv.depthwise_separable_conv2d(
        ...     input, depthwise, None, pointwise, None, stride=2, padding="same").shape
        torch.Size([1, 64, 28, 28])

    The block is that of MobileNets (https://arxiv.org/abs/1704.04861).
    """
    stride = common.size2(_NAME, "stride", stride, 1)
    dilation = common.size2(_NAME, "dilation", dilation, 1)
    mid_code = common.activation_code(_NAME, "depthwise_activation", depthwise_activation)
    code = common.activation_code(_NAME, "activation", activation)
    weights = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias)
    pads = common.padding4(
        _NAME, padding, input, depthwise_weight, stride, dilation, "depthwise_weight"
    )
    args = (input, *weights, stride, pads, dilation, mid_code, code, residual)
    return common.call(OPS, args, (input, *weights, residual), pack_separable, *weights)


def _output_shape(
    input: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise_activation: int,
    activation: int,
    residual: Tensor | None,
) -> tuple[Any, ...]:
    n, c, h, w = common.input_dims(_NAME, input)
    mid, kernel = common.check_depthwise_weight(_NAME, "depthwise_weight", depthwise_weight, c)
    common.check_vector(_NAME, "depthwise_bias", depthwise_bias, mid)
    k = common.check_pointwise_weight(_NAME, "pointwise_weight", pointwise_weight, mid)
    common.check_vector(_NAME, "pointwise_bias", pointwise_bias, k)
    shape = (n, k, *common.window_size(_NAME, (h, w), kernel, stride, padding, dilation))
    common.check_residual(_NAME, residual, shape)
    return shape


def _flops(
    input: Any,
    depthwise_weight: Any,
    depthwise_bias: Any,
    pointwise_weight: Any,
    pointwise_bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    *_: Any,
) -> int:
    mid, _, kh, kw = depthwise_weight
    oh, ow = common.window_size(_NAME, input[2:], (kh, kw), stride, padding, dilation)
    return 2 * input[0] * oh * ow * mid * (kh * kw + pointwise_weight[0])


OPS = common.register(
    _NAME,
    _TENSORS,
    output_shape=_output_shape,
    reference=reference.depthwise_separable_conv2d,
    flops=_flops,
    gradients=_derivatives.depthwise_separable_conv2d,
    activation="activation",
    limit=common.multiplier_limit,
)
