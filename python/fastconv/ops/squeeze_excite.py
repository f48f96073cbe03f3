"""Squeeze-and-excitation: one factor per channel, computed from the mean of every channel."""

from typing import Any

from torch import Tensor

from .. import reference
from ..activation import GATES
from ..folding import pack_squeeze_excite
from . import _common as common

_NAME = "squeeze_excite"
_TENSORS = ("input", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias")


def squeeze_excite(
    input: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    *,
    activation: str = "relu",
    gate: str = "sigmoid",
) -> Tensor:
    """Computes ``input * gate(expand(activation(reduce(mean of input over H and W))))``.

    Native on the CPU, in any memory layout; everything else runs as plain PyTorch.

    Args:
        input: (N, C, H, W)
        reduce_weight: (R, C, 1, 1)
        reduce_bias: (R,) or None
        expand_weight: (C, R, 1, 1)
        expand_bias: (C,) or None
        activation: none, relu, relu6, hardswish, silu, sigmoid, hardsigmoid, tanh or gelu
        gate: sigmoid or hardsigmoid

    Returns:
        (N, C, H, W), channels_last, of the dtype of the input

    Raises:
        TypeError: for what must be a tensor and is not.
        ValueError: for a wrong shape, dtype, device, activation or gate.
        fastconv.BackendError: if the backend that was asked for cannot run the call.

    Example:
        >>> reduce, expand = torch.randn(8, 32, 1, 1), torch.randn(32, 8, 1, 1)
        >>> fastconv.squeeze_excite(torch.randn(1, 32, 56, 56), reduce, None, expand, None).shape
        torch.Size([1, 32, 56, 56])

    From "Squeeze-and-Excitation Networks" (https://arxiv.org/abs/1709.01507).
    """
    code = common.activation_code(_NAME, "activation", activation)
    gate_code = common.activation_code(_NAME, "gate", gate, GATES)
    tensors = (input, reduce_weight, reduce_bias, expand_weight, expand_bias)
    args = (*tensors, code, gate_code)
    return common.call(OPS, args, tensors, pack_squeeze_excite, *tensors[1:])


def check_weights(
    op: str,
    prefix: str,
    channels: Any,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
) -> None:
    """Checks the four weights; also those inside of an inverted residual."""
    name = prefix + "reduce_weight"
    reduced = common.check_pointwise_weight(op, name, reduce_weight, channels)
    common.check_vector(op, prefix + "reduce_bias", reduce_bias, reduced)
    name = prefix + "expand_weight"
    shape, rule = common.dims(op, name, expand_weight), "have shape ({}, {}, 1, 1)"
    ok = shape == (channels, reduced, 1, 1)
    common.require(ok, op, name, rule, shape, channels, reduced)
    common.check_vector(op, prefix + "expand_bias", expand_bias, channels)


def _output_shape(
    input: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    activation: int,
    gate: int,
) -> tuple[Any, ...]:
    shape = common.input_dims(_NAME, input)
    check_weights(_NAME, "", shape[1], reduce_weight, reduce_bias, expand_weight, expand_bias)
    return shape


def _flops(input: Any, reduce_weight: Any, *_: Any) -> int:
    return 4 * input[0] * input[1] * reduce_weight[0]


OPS = common.register(
    _NAME, _TENSORS, output_shape=_output_shape, reference=reference.squeeze_excite, flops=_flops
)
