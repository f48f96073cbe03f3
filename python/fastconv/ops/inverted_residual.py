"""A whole inverted residual block, expand -> depthwise -> project, in one kernel."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import reference
from ..activation import CODES, GATES
from ..folding import pack_inverted_residual
from ..reference import Padding, Size2
from . import _common as common
from . import _derivatives
from .squeeze_excite import check_weights

_NAME = "inverted_residual"
_TENSORS = (
    "input",
    "expand_weight",
    "expand_bias",
    "depthwise_weight",
    "depthwise_bias",
    "project_weight",
    "project_bias",
    "residual",
    "squeeze_excite reduce_weight",
    "squeeze_excite reduce_bias",
    "squeeze_excite expand_weight",
    "squeeze_excite expand_bias",
)
SqueezeExcite = tuple[Tensor, Tensor | None, Tensor, Tensor | None, str, str]


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
    activation: str = "relu6",
    squeeze_excite: SqueezeExcite | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Computes expand (1x1), depthwise and project (1x1) convolutions in one pass:
    ``project(activation(depthwise(activation(expand(input))))) + residual``, each with bias.

    The two expanded tensors, the largest of the block, never go to memory. Native on the CPU with
    depth multiplier 1, in any memory layout; everything else runs as plain PyTorch.

    Args:
        input: (N, C, H, W)
        expand_weight: (M, C, 1, 1), or None for no expansion (then M = C)
        expand_bias: (M,) or None
        depthwise_weight: (M, 1, KH, KW)
        depthwise_bias: (M,) or None
        project_weight: (K, M, 1, 1)
        project_bias: (K,) or None
        stride: int or (h, w), of the depthwise convolution
        padding: int, (h, w), or "same": TensorFlow's, for which OH = ceil(H / stride), with the
            odd row and column at the bottom and the right
        dilation: int or (h, w)
        activation: none, relu, relu6, hardswish, silu, sigmoid, hardsigmoid, tanh or gelu
        squeeze_excite: before the projection, a tuple of reduce_weight (R, M, 1, 1), reduce_bias
            (R,) or None, expand_weight (M, R, 1, 1), expand_bias (M,) or None, activation, and
            gate (sigmoid or hardsigmoid)
        residual: (N, K, OH, OW), in most networks the input

    Returns:
        (N, K, OH, OW), channels_last, of the dtype of the input

    Raises:
        TypeError: for what must be a tensor and is not.
        ValueError: for a wrong shape, dtype, device, stride, padding, dilation or activation.
        fastconv.BackendError: if the backend that was asked for cannot run the call.

    Example:
        >>> input = torch.randn(1, 24, 56, 56)
        >>> expand, project = torch.randn(144, 24, 1, 1), torch.randn(24, 144, 1, 1)
        >>> depthwise = torch.randn(144, 1, 3, 3)
        >>> fastconv.inverted_residual(
        ...     input, expand, None, depthwise, None, project, None, padding=1, residual=input
        ... ).shape
        torch.Size([1, 24, 56, 56])

    From "MobileNetV2" (https://arxiv.org/abs/1801.04381); with squeeze_excite, MobileNetV3's
    (https://arxiv.org/abs/1905.02244) and EfficientNet's (https://arxiv.org/abs/1905.11946).
    """
    stride = common.size2(_NAME, "stride", stride, 1)
    dilation = common.size2(_NAME, "dilation", dilation, 1)
    code = common.activation_code(_NAME, "activation", activation)
    excite, codes = _split(squeeze_excite)
    convolutions = (expand_weight, expand_bias, depthwise_weight, depthwise_bias)
    weights = (*convolutions, project_weight, project_bias)
    pads = common.padding4(
        _NAME, padding, input, depthwise_weight, stride, dilation, "depthwise_weight"
    )
    args = (input, *weights, stride, pads, dilation, code, excite, *codes, residual)
    tensors = (input, *weights, residual, *excite)
    if any(tensor is None for tensor in excite):
        common.inspect(_NAME, OPS.tensors, tensors)
        _output_shape(*args)
        excite = with_biases(*excite)
        args = (*args[:11], excite, *codes, residual)
        tensors = (input, *weights, residual, *excite)
    return common.call(OPS, args, tensors, pack_inverted_residual, *weights, *excite)


def _split(squeeze_excite: SqueezeExcite | None) -> tuple[tuple[Any, ...], tuple[int, int]]:
    """The tensors and the codes of activation and gate."""
    if squeeze_excite is None:
        return (), _NO_CODES
    if not isinstance(squeeze_excite, (tuple, list)) or len(squeeze_excite) != 6:
        raise ValueError(
            f"{_NAME}: squeeze_excite must be (reduce_weight, reduce_bias, expand_weight, "
            f"expand_bias, activation, gate), got a {type(squeeze_excite).__name__}"
        )
    *tensors, activation, gate = squeeze_excite
    code = common.activation_code(_NAME, "squeeze_excite activation", activation)
    gate_code = common.activation_code(_NAME, "squeeze_excite gate", gate, GATES)
    return tuple(tensors), (code, gate_code)


def with_biases(
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
) -> tuple[Tensor, ...]:
    """The four weights of a squeeze-and-excitation, with zeros for what is None."""
    if reduce_bias is None:
        reduce_bias = reduce_weight.new_zeros(reduce_weight.shape[0])
    if expand_bias is None:
        expand_bias = expand_weight.new_zeros(expand_weight.shape[0])
    return reduce_weight, reduce_bias, expand_weight, expand_bias


def _output_shape(
    input: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    squeeze_excite: Sequence[Any],
    squeeze_excite_activation: int,
    squeeze_excite_gate: int,
    residual: Tensor | None,
) -> tuple[Any, ...]:
    n, mid, h, w = common.input_dims(_NAME, input)
    if expand_weight is not None:
        mid = common.check_pointwise_weight(_NAME, "expand_weight", expand_weight, mid)
        common.check_vector(_NAME, "expand_bias", expand_bias, mid)
    elif expand_bias is not None:
        raise ValueError(f"{_NAME}: expand_bias must be None without expand_weight")
    count, one, *kernel = common.dims(_NAME, "depthwise_weight", depthwise_weight)
    ok = count == mid and one == 1 and kernel[0] > 0 and kernel[1] > 0
    rule = "have shape ({}, 1, KH, KW)"
    common.require(ok, _NAME, "depthwise_weight", rule, depthwise_weight.shape, mid)
    common.check_vector(_NAME, "depthwise_bias", depthwise_bias, mid)
    if squeeze_excite:
        check_weights(_NAME, "squeeze_excite ", mid, *squeeze_excite)
    k = common.check_pointwise_weight(_NAME, "project_weight", project_weight, mid)
    common.check_vector(_NAME, "project_bias", project_bias, k)
    shape = (n, k, *common.window_size(_NAME, (h, w), kernel, stride, padding, dilation))
    common.check_residual(_NAME, residual, shape)
    return shape


def _reference(
    squeeze_excite: Sequence[Tensor],
    squeeze_excite_activation: int,
    squeeze_excite_gate: int,
    **arguments: Any,
) -> Tensor:
    excite: Any = None
    if squeeze_excite:
        excite = (*squeeze_excite, squeeze_excite_activation, squeeze_excite_gate)
    return reference.inverted_residual(squeeze_excite=excite, **arguments)


def _flops(*args: Any) -> int:
    input, expand_weight, depthwise_weight, project_weight = args[0], args[1], args[3], args[5]
    stride, padding, dilation, squeeze_excite = args[7], args[8], args[9], args[11]
    n, c, h, w = input
    mid, _, kh, kw = depthwise_weight
    oh, ow = common.window_size(_NAME, (h, w), (kh, kw), stride, padding, dilation)
    expand = 0 if expand_weight is None else h * w * c * mid
    excite = 2 * mid * squeeze_excite[0][0] if squeeze_excite else 0
    return 2 * n * (expand + oh * ow * mid * (kh * kw + project_weight[0]) + excite)


_NO_CODES = (CODES["none"], CODES["sigmoid"])
OPS = common.register(
    _NAME,
    _TENSORS,
    output_shape=_output_shape,
    reference=_reference,
    flops=_flops,
    gradients=_derivatives.inverted_residual,
)
