"""Depthwise convolution: every channel with a filter of its own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import reference
from ..folding import pack_depthwise
from ..reference import Padding, Size2
from . import _common as common
from . import _derivatives

_NAME = "depthwise_conv2d"
_TENSORS = ("input", "weight", "bias")


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Padding = 0,
    dilation: Size2 = 1,
    *,
    activation: str = "none",
) -> Tensor:
    """Computes ``activation(depthwise convolution + bias)`` in one pass.

    Native on the CPU with depth multiplier m = 1, in any memory layout; everything
    else runs as plain PyTorch.

    Args:
        input: (N, C, H, W)
        weight: (C * m, 1, KH, KW)
        bias: (C * m,)
        stride: int or (h, w)
        padding: int, (h, w), or "same": TensorFlow's, for which OH = ceil(H / stride), with the
            odd row and column at the bottom and the right
        dilation: int or (h, w)
        activation: none, relu, relu6, hardswish, silu, sigmoid, hardsigmoid, tanh or gelu

    Returns:
        (N, C * m, OH, OW), channels_last, of the dtype of the input

    Raises:
        TypeError: for what must be a tensor and is not.
        ValueError: for a wrong shape, dtype, device, stride, padding, dilation or activation.
        fastconv.BackendError: if the backend that was asked for cannot run the call.

    Example:
        >>> weight = torch.randn(32, 1, 3, 3)
        >>> fastconv.depthwise_conv2d(torch.randn(1, 32, 56, 56), weight, padding=1).shape
        torch.Size([1, 32, 56, 56])

    The layer is that of MobileNets (https://arxiv.org/abs/1704.04861).
    """
    stride = common.size2(_NAME, "stride", stride, 1)
    dilation = common.size2(_NAME, "dilation", dilation, 1)
    code = common.activation_code(_NAME, "activation", activation)
    pads = common.padding4(_NAME, padding, input, weight, stride, dilation)
    args = (input, weight, bias, stride, pads, dilation, code)
    return common.call(OPS, args, (input, weight, bias), pack_depthwise, weight, bias)


def _output_shape(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
) -> tuple[Any, ...]:
    n, c, h, w = common.input_dims(_NAME, input)
    k, kernel = common.check_depthwise_weight(_NAME, "weight", weight, c)
    common.check_vector(_NAME, "bias", bias, k)
    return n, k, *common.window_size(_NAME, (h, w), kernel, stride, padding, dilation)


def _flops(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any
) -> int:
    k, _, kh, kw = weight
    oh, ow = common.window_size(_NAME, input[2:], (kh, kw), stride, padding, dilation)
    return 2 * input[0] * k * kh * kw * oh * ow


OPS = common.register(
    _NAME,
    _TENSORS,
    output_shape=_output_shape,
    reference=reference.depthwise_conv2d,
    flops=_flops,
    gradients=_derivatives.depthwise_conv2d,
    activation="activation",
    limit=common.multiplier_limit,
)
