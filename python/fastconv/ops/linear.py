"""Fully connected layer on packed weights."""

from typing import Any

from torch import Tensor

from .. import reference
from ..folding import pack_pointwise
from . import _common as common

_NAME = "linear"
_TENSORS = ("input", "weight", "bias")


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes ``input @ weight.T + bias``, for the classifier at a network's end.

    Native on the CPU; everything else runs as plain PyTorch.

    Args:
        input: (N, C)
        weight: (K, C)
        bias: (K,)

    Returns:
        (N, K), of the dtype of the input

    Raises:
        TypeError: for what must be a tensor and is not.
        ValueError: for a wrong shape, dtype or device.
        fastconv.BackendError: if the backend that was asked for cannot run the call.

    Example:
        >>> fastconv.linear(torch.randn(1, 1280), torch.randn(1000, 1280)).shape
        torch.Size([1, 1000])

    See :func:`torch.nn.functional.linear`.
    """
    args = (input, weight, bias)
    return common.call(OPS, args, args, pack_pointwise, weight, bias)


def _output_shape(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    n, c = common.dims(_NAME, "input", input, 2)
    common.require(c > 0, _NAME, "input", "have shape (N, C) with C at least 1", input.shape)
    k, columns = common.dims(_NAME, "weight", weight, 2)
    ok = columns == c and k > 0
    common.require(ok, _NAME, "weight", "have shape (K, {})", weight.shape, c)
    common.check_vector(_NAME, "bias", bias, k)
    return n, k


def _flops(input: Any, weight: Any, *_: Any) -> int:
    return 2 * input[0] * input[1] * weight[0]


OPS = common.register(
    _NAME, _TENSORS, output_shape=_output_shape, reference=reference.linear, flops=_flops
)
