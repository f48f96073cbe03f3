"""1x1 convolution and global average pooling, the head of mobile networks, in one pass."""

from typing import Any

from torch import Tensor

from .. import reference
from ..folding import pack_pointwise
from . import _common as common

_NAME = "pointwise_conv2d_pool"
_TENSORS = ("input", "weight", "bias")


def pointwise_conv2d_pool(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none"
) -> Tensor:
    """Computes the mean over H and W of ``activation(conv1x1(input) + bias)``.

    The convolution's output, the largest tensor of a mobile network's end, is never written.
    Native on the CPU, in any memory layout; everything else runs as plain PyTorch.

    Args:
        input: (N, C, H, W)
        weight: (K, C, 1, 1)
        bias: (K,)
        activation: none, relu, relu6, hardswish, silu, sigmoid, hardsigmoid, tanh or gelu

    Returns:
        (N, K), of the dtype of the input

    Raises:
        TypeError: for what must be a tensor and is not.
        ValueError: for a wrong shape, dtype, device or activation.
        fastconv.BackendError: if the backend that was asked for cannot run the call.

    Example:
        >>> weight = torch.randn(1280, 320, 1, 1)
        >>> fastconv.pointwise_conv2d_pool(torch.randn(1, 320, 7, 7), weight).shape
        torch.Size([1, 1280])

    The head is that of MobileNetV2 (https://arxiv.org/abs/1801.04381).
    """
    code = common.activation_code(_NAME, "activation", activation)
    args = (input, weight, bias, code)
    return common.call(OPS, args, (input, weight, bias), pack_pointwise, weight, bias)


def _output_shape(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: int
) -> tuple[Any, ...]:
    n, c, _, _ = common.input_dims(_NAME, input)
    k = common.check_pointwise_weight(_NAME, "weight", weight, c)
    common.check_vector(_NAME, "bias", bias, k)
    return n, k


def _flops(input: Any, weight: Any, *_: Any) -> int:
    n, c, h, w = input
    return 2 * n * c * weight[0] * h * w


OPS = common.register(
    _NAME,
    _TENSORS,
    output_shape=_output_shape,
    reference=reference.pointwise_conv2d_pool,
    flops=_flops,
)
