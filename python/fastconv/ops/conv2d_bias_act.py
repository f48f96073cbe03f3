"""Dense convolution with bias and activation."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import backend, reference
from ..folding import pack_conv2d, pack_pointwise
from ..reference import Padding, Size2
from . import _common as common
from . import _derivatives

_NAME = "conv2d_bias_act"
_TENSORS = ("input", "weight", "bias")


def conv2d_bias_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Padding = 0,
    dilation: Size2 = 1,
    groups: int = 1,
    *,
    activation: str = "none",
) -> Tensor:
    """Computes ``activation(conv2d(input) + bias)`` in one pass.

    Native on the CPU with groups = 1 and dilation = 1, in any memory layout; everything else runs
    as plain PyTorch. Windows of 3x3 with stride 1 and 16 to some hundred channels, in float32, are
    computed by Winograd's minimal filtering where the weights are kept packed, that is, without a
    gradient. Its rounding errors are up to twice those of the direct sum, and a value that is
    infinite or NaN reaches all of the 4x4 outputs that are computed together.

    Args:
        input: (N, C, H, W)
        weight: (K, C / groups, KH, KW)
        bias: (K,)
        stride: int or (h, w)
        padding: int, (h, w), or "same": TensorFlow's, for which OH = ceil(H / stride), with the
            odd row and column at the bottom and the right
        dilation: int or (h, w)
        groups: divides C and K
        activation: none, relu, relu6, hardswish, silu, sigmoid, hardsigmoid, tanh or gelu

    Returns:
        (N, K, OH, OW), channels_last, of the dtype of the input

    Raises:
        TypeError: for what must be a tensor and is not.
        ValueError: for a wrong shape, dtype, device, or other argument.
        fastconv.BackendError: if the backend that was asked for cannot run the call.

    Example:
        >>> weight = torch.randn(32, 3, 3, 3)
        >>> fastconv.conv2d_bias_act(torch.randn(1, 3, 224, 224), weight, None, 2, 1).shape
        torch.Size([1, 32, 112, 112])

    See :func:`torch.nn.functional.conv2d`, https://arxiv.org/abs/1509.09308.
    """
    stride = common.size2(_NAME, "stride", stride, 1)
    dilation = common.size2(_NAME, "dilation", dilation, 1)
    code = common.activation_code(_NAME, "activation", activation)
    pads = common.padding4(_NAME, padding, input, weight, stride, dilation)
    if groups != 1 or dilation != (1, 1):
        return _on_reference(input, weight, bias, stride, pads, dilation, groups, activation)
    args = (input, weight, bias, stride, pads, code)
    pack = pack_conv2d if stride == (1, 1) else pack_pointwise
    return common.call(OPS, args, (input, weight, bias), pack, weight, bias)


def _on_reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    activation: str,
) -> Tensor:
    """What the kernels do not have."""
    limit, _ = common.inspect(_NAME, _TENSORS, (input, weight, bias))
    windows = (stride, padding, dilation, groups)
    _checked_shape(input, weight, bias, *windows)
    limit = limit or "the kernels have groups = 1 and dilation = 1 only"
    backend.choose(_NAME, limit, device=input.device)  # which raises where they were asked for
    return reference.conv2d_bias_act(input, weight, bias, *windows, activation=activation)


def _checked_shape(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> tuple[Any, ...]:
    n, c, h, w = common.input_dims(_NAME, input)
    if groups != 1:
        ok = isinstance(groups, int) and groups > 0 and c % groups == 0
        common.require(ok, _NAME, "groups", "divide the {} input channels", groups, c)
    k, group, kh, kw = common.dims(_NAME, "weight", weight)
    ok = group == c // groups and k % groups == 0 and k > 0 and kh > 0 and kw > 0
    rule = "have shape (K, {}, KH, KW) with K a multiple of {}"
    common.require(ok, _NAME, "weight", rule, weight.shape, c // groups, groups)
    common.check_vector(_NAME, "bias", bias, k)
    return n, k, *common.window_size(_NAME, (h, w), (kh, kw), stride, padding, dilation)


def _output_shape(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    activation: int,
) -> tuple[Any, ...]:
    return _checked_shape(input, weight, bias, stride, padding)


def _flops(input: Any, weight: Any, bias: Any, stride: Any, padding: Any, *_: Any) -> int:
    k, c, kh, kw = weight
    oh, ow = common.window_size(_NAME, input[2:], (kh, kw), stride, padding, (1, 1))
    return 2 * input[0] * k * c * kh * kw * oh * ow


OPS = common.register(
    _NAME,
    _TENSORS,
    output_shape=_output_shape,
    reference=reference.conv2d_bias_act,
    flops=_flops,
    gradients=_derivatives.conv2d_bias_act,
    activation="activation",
)
