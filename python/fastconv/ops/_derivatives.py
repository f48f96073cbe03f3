"""Derivatives of the ops by the kernels of training.

relu and relu6 are differentiated by their output; the other activations by what is before them,
which is computed again, as are the maps inside a fused block. Each function returns the gradients
of the op's arguments, None for what is not wanted or no tensor.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..activation import CODES
from ._train import FASTCONV
from ._train_chain import TrainStage, convolve, differentiate

_NONE = CODES["none"]
_BY_OUTPUT = frozenset((CODES["relu"], CODES["relu6"]))

Arguments = tuple[Any, ...]
Gradients = list[Any]


def needs_output(activation: int) -> bool:
    """Whether the output is what the activation is differentiated by."""
    return activation in _BY_OUTPUT


def _bent_at(activation: int, output: Tensor | None, again: Callable[[], Tensor]) -> Tensor | None:
    """Where the slope of an activation is taken; None where there is none."""
    if activation == _NONE:
        return None
    return output if output is not None else again()


def _before(grad: Tensor, activation: int, bent_at: Tensor | None) -> Tensor:
    """The gradient of what is before the activation."""
    if bent_at is None:
        return grad
    found: Tensor = FASTCONV.train_gradient(grad, bent_at, None, None, None, activation, None)
    return found


def pointwise_conv2d(
    args: Arguments, output: Tensor | None, grad: Tensor, wanted: Sequence[Any]
) -> Gradients:
    input, weight, bias, stride, activation, residual, scale = args
    bent_at = _bent_at(
        activation,
        output,
        lambda: FASTCONV.pointwise_conv2d_infer(
            input, weight, bias, stride, _NONE, residual, scale
        ),
    )
    grad_residual = None
    if wanted[5]:
        grad_residual = grad = _before(grad, activation, bent_at)
        bent_at = None
    read = input if tuple(stride) == (1, 1) else input[:, :, :: stride[0], :: stride[1]]
    gate = None if scale is None else scale.float()
    wants = [wanted[0] or wanted[6], wanted[1], wanted[2], wanted[6]]
    d, grad_weight, grad_bias, grad_scale = FASTCONV.train_pointwise_conv2d_backward(
        grad,
        bent_at,
        None,
        None,
        None,
        _NONE if bent_at is None else activation,
        None,
        read,
        None,
        gate,
        _NONE,
        None,
        weight,
        None,
        wants,
    )
    grad_input = None
    if wanted[0]:
        if scale is not None:
            d = d * scale[:, :, None, None]
        if read is input:
            grad_input = d
        else:
            grad_input = torch.zeros_like(input, memory_format=torch.channels_last)
            grad_input[:, :, :: stride[0], :: stride[1]] = d
    return [
        grad_input,
        grad_weight if wanted[1] else None,
        grad_bias if wanted[2] else None,
        None,
        None,
        grad_residual,
        grad_scale if wanted[6] else None,
    ]


def depthwise_conv2d(
    args: Arguments, output: Tensor | None, grad: Tensor, wanted: Sequence[Any]
) -> Gradients:
    input, weight, bias, stride, padding, dilation, activation = args
    window = (stride, padding, dilation)
    bent_at = _bent_at(
        activation,
        output,
        lambda: FASTCONV.depthwise_conv2d_infer(input, weight, bias, *window, _NONE),
    )
    found = FASTCONV.train_depthwise_conv2d_backward(
        grad,
        bent_at,
        None,
        None,
        None,
        activation,
        None,
        input,
        None,
        _NONE,
        None,
        weight,
        *window,
        None,
        [wanted[0], wanted[1], wanted[2], False],
    )
    return [f if wish else None for f, wish in zip(found[:3], wanted, strict=False)] + [None] * 4


def conv2d_bias_act(
    args: Arguments, output: Tensor | None, grad: Tensor, wanted: Sequence[Any]
) -> Gradients:
    input, weight, bias, stride, padding, activation = args
    bent_at = _bent_at(
        activation,
        output,
        lambda: FASTCONV.conv2d_bias_act_infer(input, weight, bias, stride, padding, _NONE),
    )
    grad = _before(grad, activation, bent_at)
    top, bottom, left, right = padding
    padded = torch.nn.functional.pad(input, (left, right, top, bottom))
    found = torch.ops.aten.convolution_backward(
        grad,
        padded,
        weight.to(grad.dtype),
        None if bias is None else [weight.shape[0]],
        stride,
        (0, 0),
        (1, 1),
        False,
        (0, 0),
        1,
        (wanted[0], wanted[1], wanted[2]),
    )
    grad_input = found[0]
    if wanted[0]:
        height, width = input.shape[2:]
        grad_input = grad_input[:, :, top : top + height, left : left + width]
    return [grad_input, found[1], found[2], None, None, None]


def _stage(kind: str, activation: int = _NONE, **window: Any) -> TrainStage:
    plain: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
    return TrainStage(kind, activation=activation, eps=None, excite=None, **(plain | window))


def _affine(weight: Tensor, bias: Tensor | None) -> Tensor:
    ones = torch.ones(weight.shape[0], device=weight.device)
    return torch.stack((ones, torch.zeros_like(ones) if bias is None else bias.float()))


def _block(
    stages: Sequence[TrainStage],
    input: Tensor,
    pairs: Sequence[tuple[Tensor, Tensor | None]],
    excite: Sequence[Tensor],
    grad: Tensor,
    wants_input: bool,
    wants: Sequence[bool],
    wants_excite: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """Gradients of the input, of weights and biases of convolutions in a row, and of the weights of
    a squeeze-and-excitation behind the second last. The last one has no activation."""
    tensors: list[Tensor | None] = []
    wishes: list[bool] = []
    places: list[int] = []
    excite_place = 0
    for index, (weight, bias) in enumerate(pairs):
        places.append(len(tensors))
        tensors += [weight, _affine(weight, bias), None, None]
        wishes += [wants[2 * index], wants[2 * index + 1], False, False]
        if stages[index].excite is not None:
            excite_place = len(tensors)
            tensors += excite
            wishes += wants_excite
    kept, _ = convolve(tuple(stages), input, tensors, skips_last=True)
    grad_input, grads = differentiate(
        tuple(stages), False, input, None, kept, grad, wants_input, wishes
    )
    found: list[Tensor | None] = []
    for place in places:
        affine = grads[place + 1]
        found += [grads[place], None if affine is None else affine[1]]
    return grad_input, found, grads[excite_place : excite_place + len(excite)]


def depthwise_separable_conv2d(
    args: Arguments, output: Tensor | None, grad: Tensor, wanted: Sequence[Any]
) -> Gradients:
    input, *weights, stride, padding, dilation, mid_activation, activation, residual = args
    depthwise, depthwise_bias, pointwise, pointwise_bias = weights
    window = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    bent_at = _bent_at(
        activation,
        output,
        lambda: FASTCONV.depthwise_separable_conv2d_infer(*args[:9], _NONE, residual),
    )
    grad = _before(grad, activation, bent_at)
    stages = [_stage("depthwise", mid_activation, **window), _stage("pointwise")]
    pairs = [(depthwise, depthwise_bias), (pointwise, pointwise_bias)]
    grad_input, found, _ = _block(stages, input, pairs, (), grad, wanted[0], wanted[1:5], ())
    return [grad_input, *found, *[None] * 5, grad if wanted[10] else None]


def inverted_residual(
    args: Arguments, output: Tensor | None, grad: Tensor, wanted: Sequence[Any]
) -> Gradients:
    input, *weights, stride, padding, dilation, activation, excite, code, gate, _ = args
    window = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    depthwise = _stage("depthwise", activation, **window)
    if excite:
        depthwise = depthwise._replace(excite=(code, gate))
    stages = [depthwise, _stage("pointwise")]
    pairs = [(weights[i], weights[i + 1]) for i in (2, 4)]
    first = 3
    if weights[0] is not None:
        stages.insert(0, _stage("pointwise", activation))
        pairs.insert(0, (weights[0], weights[1]))
        first = 1
    grad_input, found, grads_excite = _block(
        stages, input, pairs, excite, grad, wanted[0], wanted[first:7], wanted[11]
    )
    grads = [None] * (first - 1) + found
    return [grad_input, *grads, *[None] * 4, grads_excite, None, None, grad if wanted[14] else None]
