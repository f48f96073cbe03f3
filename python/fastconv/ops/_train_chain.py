"""A row of convolutions in training as one differentiable function.

Of the forward pass only what the convolutions wrote is kept: BatchNorm, activation and gate are
applied where the next convolution reads it, and again in the backward pass. Reading a map costs
less than writing another one: this takes about half the traffic and half the memory.

For a BatchNorm with statistics of the batch, of M values a channel, mean m and r = 1 / sqrt(var +
eps), y = gamma r (x - m) + beta. With G the gradient of y, and sums over the M values:
grad_beta = sum G; grad_gamma = r sum G (x - m); grad_x = gamma r (G - sum G / M - (x - m) r^2 sum G
(x - m) / M) (https://arxiv.org/abs/1502.03167): of the form a G + b (x - m) + c, which the next
convolution backward computes as it reads G and x.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import CODES, activate, activate_backward
from . import _train_plain as plain
from ._train import FASTCONV

_NONE = CODES["none"]


class TrainStage(NamedTuple):
    """A convolution and what follows it.

    Args:
        kind: "pointwise", "depthwise" or "dense"
        padding: top, bottom, left, right
        activation: its code
        eps: of a BatchNorm with statistics of the batch; None for a fixed scale and shift
        excite: the codes of a squeeze-and-excitation's two activations, which scales what is behind
            the activation; None if there is none
    """

    kind: str
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    activation: int
    eps: float | None
    excite: tuple[int, int] | None

    @property
    def tensors(self) -> int:
        """How many tensors belong to it."""
        return 4 + (0 if self.excite is None else 4)


class _Kept(NamedTuple):
    """What the backward pass needs of a stage."""

    weight: Tensor
    raw: Tensor | None
    affine: Tensor  # (2, C)
    mean: Tensor  # (C,): 0 for a fixed scale
    rstd: Tensor | None
    gamma: Tensor | None
    excite: tuple[Tensor, ...]  # pooled, before and behind the first activation, before the gate,
    #                             gate, both weights


def run_chain(
    stages: tuple[TrainStage, ...],
    residual: bool,
    input: Tensor,
    drop: Tensor | None,
    tensors: Sequence[Tensor | None],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs the stages one after the other.

    Args:
        residual: whether the input is added to the last one's output
        input: (N, C, H, W)
        drop: (N, K) or None: factors of the last stage's output
        tensors: for each stage its weight; gamma, beta and the convolution's bias, which changes
            nothing but the mean, or the (2, K) scale and shift and twice None; and of its
            squeeze-and-excitation two weights (S, K, 1, 1), (K, S, 1, 1) and biases: reduce, bias,
            expand, bias

    Returns:
        the output, and mean and biased variance, one after the other, for each stage with
        statistics of the batch
    """
    output, *moments = _Chain.apply(stages, residual, input, drop, *tensors)
    return output, tuple(moments)


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stages: tuple[TrainStage, ...],
        residual: bool,
        input: Tensor,
        drop: Tensor | None,
        *tensors: Tensor | None,
    ) -> Any:
        with torch.autocast(input.device.type, enabled=False):
            kept, moments = convolve(stages, input, tensors)
            last, shortcut = kept[-1], input if residual else None
            assert last.raw is not None
            output = FASTCONV.train_normalize(
                last.raw, last.affine, drop, stages[-1].activation, shortcut
            )
        ctx.stages, ctx.residual = stages, residual
        ctx.excite_counts = [len(k.excite) for k in kept]
        flat = [t for k in kept for t in (*k[:6], *k.excite)]
        ctx.save_for_backward(input, drop, *tensors, *flat)
        ctx.dtypes = [None if t is None else t.dtype for t in tensors]
        ctx.mark_non_differentiable(*moments)
        return (output, *moments)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> Any:
        input, drop, *flat = ctx.saved_tensors
        tensors, flat = flat[: len(ctx.dtypes)], flat[len(ctx.dtypes) :]
        if torch.is_grad_enabled():  # somebody wants to differentiate again
            return _twice_differentiable(ctx, input, drop, tensors, grad_output)
        kept: list[_Kept] = []
        for count in ctx.excite_counts:
            fields, flat = flat[: 6 + count], flat[6 + count :]
            kept.append(_Kept._make((*fields[:6], tuple(fields[6:]))))
        with torch.autocast(grad_output.device.type, enabled=False):
            grad_input, grads = differentiate(
                ctx.stages,
                ctx.residual,
                input,
                drop,
                kept,
                grad_output,
                ctx.needs_input_grad[2],
                ctx.needs_input_grad[4:],
            )
        typed = [
            None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)
        ]
        return None, None, grad_input, None, *typed


def _twice_differentiable(
    ctx: Any, input: Tensor, drop: Tensor | None, tensors: list[Tensor | None], grad_output: Tensor
) -> Any:
    """The gradients by PyTorch, of the same in its own functions."""
    sources = [input, *tensors]
    wanted = [ctx.needs_input_grad[2], *ctx.needs_input_grad[4:]]
    with torch.autocast(input.device.type, enabled=False), torch.enable_grad():
        own = [None if t is None else t.view_as(t) for t in sources]
        output = reference(ctx.stages, ctx.residual, own[0], drop, own[1:])  # type: ignore[arg-type]
        asked = [t for t, wish in zip(own, wanted, strict=True) if wish and t is not None]
        # A bias before a live BatchNorm changes nothing.
        found = iter(
            torch.autograd.grad(
                output, asked, grad_output, create_graph=True, materialize_grads=True
            )
        )
    grads = [next(found) if wish else None for wish in wanted]
    return None, None, grads[0], None, *grads[1:]


def reference(
    stages: tuple[TrainStage, ...],
    residual: bool,
    input: Tensor,
    drop: Tensor | None,
    tensors: Sequence[Tensor | None],
) -> Tensor:
    """The output of :func:`run_chain`, in plain PyTorch."""
    position, map_ = 0, input
    for stage in stages:
        weight, scale, shift, bias, *excite = tensors[position : position + stage.tensors]
        position += stage.tensors
        assert weight is not None
        top, bottom, left, right = stage.padding
        groups = weight.shape[0] if stage.kind == "depthwise" else 1
        padded = F.pad(map_, (left, right, top, bottom))
        window: tuple[Any, ...] = (stage.stride, 0, stage.dilation, groups)
        bias = None if bias is None else bias.to(map_.dtype)
        map_ = F.conv2d(padded, weight.to(map_.dtype), bias, *window)
        if stage.eps is not None:
            gamma, beta = (None if t is None else t.float() for t in (scale, shift))
            map_ = F.batch_norm(map_, None, None, gamma, beta, True, 0.0, stage.eps)
        else:
            assert scale is not None
            factor, offset = scale.to(map_.dtype)[:, :, None, None]
            map_ = map_ * factor + offset
        map_ = activate(map_, stage.activation)
        if stage.excite is not None:
            gate = _excite(stage.excite, map_.mean((2, 3), dtype=torch.float32), excite)[4]
            map_ = map_ * gate.to(map_.dtype)[:, :, None, None]
    if drop is not None:
        map_ = map_ * drop.to(map_.dtype)[:, :, None, None]
    return map_ + input if residual else map_


def convolve(
    stages: tuple[TrainStage, ...],
    input: Tensor,
    tensors: Sequence[Tensor | None],
    skips_last: bool = False,
) -> tuple[list[_Kept], list[Tensor]]:
    """The maps that the stages write, with what belongs to them, and the moments of
    :func:`run_chain`.

    Args:
        skips_last: leaves the last one out, which is then the result itself: no activation, scale 1
    """
    kept: list[_Kept] = []
    moments: list[Tensor] = []
    position = 0
    map_, affine, gate, activation = input, None, None, _NONE
    for stage in stages:
        own = tensors[position : position + stage.tensors]
        position += stage.tensors
        weight, scale, shift = own[0], own[1], own[2]
        assert weight is not None
        live = stage.eps is not None
        raw = moment = None
        if not (skips_last and len(kept) == len(stages) - 1):
            raw, moment = _convolution(stage, map_, affine, gate, activation, weight, live)
        rstd = gamma = None
        if stage.eps is not None:
            assert moment is not None
            mean, variance = moment[0], moment[1]
            moments += [mean, variance]
            rstd = torch.rsqrt(variance + stage.eps)
            gamma = None if scale is None else scale.float()
            factor = rstd if gamma is None else rstd * gamma
            offset = -mean * factor if shift is None else shift.float() - mean * factor
            affine = torch.stack((factor, offset))
        else:
            assert scale is not None
            affine, mean = scale.float(), torch.zeros_like(scale[0], dtype=torch.float32)
        excite: tuple[Tensor, ...] = ()
        gate = None
        if stage.excite is not None:
            pooled = FASTCONV.train_normalized_mean(raw, affine, stage.activation)
            excite = _excite(stage.excite, pooled, own[4:])
            gate = excite[4]
        kept.append(_Kept(weight, raw, affine, mean, rstd, gamma, excite))
        if raw is not None:
            map_, activation = raw, stage.activation
    return kept, moments


def _convolution(
    stage: TrainStage,
    map_: Tensor,
    affine: Tensor | None,
    gate: Tensor | None,
    activation: int,
    weight: Tensor,
    moments: bool,
) -> tuple[Tensor, Tensor]:
    if stage.kind == "pointwise" and stage.stride == (1, 1):
        pair = FASTCONV.train_pointwise_conv2d(map_, affine, gate, activation, weight, moments)
        return pair[0], pair[1]
    if stage.kind == "depthwise" and gate is None:
        window = (stage.stride, stage.padding, stage.dilation)
        pair = FASTCONV.train_depthwise_conv2d(map_, affine, activation, weight, *window, moments)
        return pair[0], pair[1]
    if affine is not None:
        map_ = FASTCONV.train_normalize(map_, affine, gate, activation, None)
    if stage.kind == "pointwise":
        map_ = map_[:, :, :: stage.stride[0], :: stage.stride[1]]
        raw = FASTCONV.train_pointwise_conv2d(map_, None, None, _NONE, weight, False)[0]
    elif stage.kind == "depthwise":
        window = (stage.stride, stage.padding, stage.dilation)
        raw = FASTCONV.train_depthwise_conv2d(map_, None, _NONE, weight, *window, False)[0]
    else:
        raw = FASTCONV.conv2d_bias_act_infer(map_, weight, None, stage.stride, stage.padding, _NONE)
    return raw, FASTCONV.train_moments(raw) if moments else raw


class _Gradient(NamedTuple):
    """The gradient of a stage's normalized output: grad gate + offset, times the slope of the
    activation unless that is done."""

    grad: Tensor
    gate: Tensor | None
    offset: Tensor | None
    activation: int
    sums: Tensor | None  # of it, and of it times (raw - mean), if they are known


def differentiate(
    stages: tuple[TrainStage, ...],
    residual: bool,
    input: Tensor,
    drop: Tensor | None,
    kept: list[_Kept],
    grad_output: Tensor,
    wants_input: bool,
    wants: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of the input and of the tensors of :func:`run_chain`, as far as wanted."""
    grads: list[Tensor | None] = [None] * len(wants)
    gradient = _Gradient(grad_output, drop, None, stages[-1].activation, None)
    position = len(wants)
    result: Tensor | None = None
    for index in range(len(stages) - 1, -1, -1):
        stage, k = stages[index], kept[index]
        position -= stage.tensors
        wanted = wants[position : position + stage.tensors]
        # What is before this stage that wants a gradient.
        deeper = wants_input or any(wants[:position])
        norm_grads, coefficients = _norm_backward(stage, k, gradient, any(wanted[1:3]))
        grads[position + 1 : position + 3] = [
            grad if wish else None for grad, wish in zip(norm_grads, wanted[1:3], strict=True)
        ]
        if wanted[3]:
            grads[position + 3] = torch.zeros_like(k.mean)
        if not (deeper or wanted[0]):
            break
        shortcut = grad_output if residual and index == 0 else None
        if index == 0:
            source: tuple[Any, ...] = (input, None, None, _NONE, None)
        else:
            p = kept[index - 1]
            gate = p.excite[4] if p.excite else None
            source = (p.raw, p.affine, gate, stages[index - 1].activation, p.mean)
        found, grad_weight, sums = _convolution_backward(
            stage, k, gradient, coefficients, source, shortcut, deeper, wanted[0]
        )
        grads[position] = grad_weight
        if index == 0:
            result = found if wants_input else None
        elif deeper:
            assert found is not None
            before = stages[index - 1]
            if before.excite is None:
                gradient = _Gradient(found, None, None, _NONE, sums)
            else:
                assert sums is not None
                first = position - before.tensors + 4
                offset, excite_grads = _excite_backward(
                    before.excite, kept[index - 1].excite, sums, wants[first : first + 4]
                )
                grads[first : first + 4] = excite_grads
                pixels = found.shape[2] * found.shape[3]
                gate = kept[index - 1].excite[4]
                gradient = _Gradient(found, gate, offset / pixels, before.activation, None)
        else:
            break
    return result, grads


def _norm_backward(
    stage: TrainStage, k: _Kept, gradient: _Gradient, wanted: bool
) -> tuple[tuple[Tensor | None, Tensor | None], Tensor | None]:
    """Gradients of scale and shift, and the coefficients of the gradient of the raw map."""
    if k.raw is None:
        sums = gradient.grad.sum((0, 2, 3), dtype=torch.float32) if wanted else None
        return (None if sums is None else torch.stack((sums, sums)), None), None
    live = stage.eps is not None
    sums = gradient.sums
    if sums is None and (live or wanted):
        sums = FASTCONV.train_gradient_sums(
            gradient.grad,
            k.raw,
            k.affine,
            gradient.gate,
            gradient.offset,
            gradient.activation,
            k.mean,
        )
    factor = k.affine[0]
    if not live:
        nothing = torch.zeros_like(factor)
        coefficients = torch.stack((factor, nothing, nothing, nothing))
        return (None if sums is None else sums.flip(0), None), coefficients
    assert sums is not None
    assert k.rstd is not None
    count = k.raw.numel() // k.raw.shape[1]
    grad_gamma = sums[1] * k.rstd
    slope = factor * k.rstd * grad_gamma / -count
    constant = factor * sums[0] / -count
    return (grad_gamma, sums[0]), torch.stack((factor, slope, k.mean, constant))


def _convolution_backward(
    stage: TrainStage,
    k: _Kept,
    gradient: _Gradient,
    coefficients: Tensor | None,
    source: tuple[Any, ...],
    shortcut: Tensor | None,
    wants_map: bool,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the map that the convolution read (of what is before its activation), of the
    weight, and the sums that belong to the first or, with a gate, the gradient of that."""
    map_, affine, gate, activation, mean = source
    affine_if_activated = k.affine if gradient.activation != _NONE else None
    about = (
        gradient.grad,
        k.raw,
        affine_if_activated,
        gradient.gate,
        gradient.offset,
        gradient.activation,
        coefficients,
    )
    window = (stage.stride, stage.padding, stage.dilation)
    wanted = [wants_map, wants_weight, False, wants_map and affine is not None]
    if stage.kind == "pointwise" and stage.stride == (1, 1):
        found = FASTCONV.train_pointwise_conv2d_backward(
            *about, *source, k.weight, shortcut, wanted
        )
    elif stage.kind == "depthwise" and gate is None:
        read = (map_, affine, activation, mean)
        found = FASTCONV.train_depthwise_conv2d_backward(
            *about, *read, k.weight, *window, shortcut, wanted
        )
    else:
        found = plain.convolution_backward(
            FASTCONV,
            plain.Gradient(*about),
            plain.Source(*source),
            k.weight,
            plain.Window(*window),
            shortcut,
            wanted,
        )
    grad_input, grad_weight, _, sums = (
        grad if wish else None for grad, wish in zip(found, wanted, strict=True)
    )
    return grad_input, grad_weight, sums


def _excite(
    codes: tuple[int, int], pooled: Tensor, tensors: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """The factors (N, K) of a squeeze-and-excitation, and what its backward pass needs."""
    reduce, expand = (_matrix(tensors[i]) for i in (0, 2))
    reduce_bias, expand_bias = (None if t is None else t.float() for t in tensors[1::2])
    hidden = F.linear(pooled, reduce, reduce_bias)
    squeezed = activate(hidden, codes[0])
    logits = F.linear(squeezed, expand, expand_bias)
    return pooled, hidden, squeezed, logits, activate(logits, codes[1]), reduce, expand


def _matrix(weight: Tensor | None) -> Tensor:
    assert weight is not None
    return weight.float().flatten(1)


def _excite_backward(
    codes: tuple[int, int], kept: tuple[Tensor, ...], grad_gate: Tensor, wants: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients of the pooled map, and of the weights and biases."""
    pooled, hidden, squeezed, logits, _, reduce, expand = kept
    grad_logits = activate_backward(grad_gate, logits, codes[1])
    grad_hidden = activate_backward(grad_logits @ expand, hidden, codes[0])
    grads = [
        lambda: (grad_hidden.t() @ pooled)[:, :, None, None],
        lambda: grad_hidden.sum(0),
        lambda: (grad_logits.t() @ squeezed)[:, :, None, None],
        lambda: grad_logits.sum(0),
    ]
    return grad_hidden @ reduce, [
        make() if wish else None for make, wish in zip(grads, wants, strict=True)
    ]
