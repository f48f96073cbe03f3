"""Reads ordinary PyTorch modules as what the native ops take."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..activation import CODES, of_module
from ..folding import fold_batch_norm, pack_depthwise, pack_pointwise
from ..ops._sequential import Step, StepKind
from ..ops.conv2d_bias_act import OPS as CONV2D_BIAS_ACT
from ..ops.depthwise_conv2d import OPS as DEPTHWISE
from ..ops.pointwise_conv2d import OPS as POINTWISE
from ..ops.pointwise_conv2d_pool import OPS as POOL
from ._fused import Native

_STEM_CHANNELS = 4  # up to here the dense convolution's kernel is made for


class Stage(NamedTuple):
    """A convolution with its BatchNorm folded in, and its activation."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    activation: int
    source: Tensor  # the convolution's own weight, before the fold

    def operands(self, pack: bool) -> tuple[Tensor, Tensor | None]:
        """What a native op is given: beside packed weights it looks only at the weight's shape.

        The folded weight and bias are then not kept.
        """
        return (self.source, None) if pack else (self.weight, self.bias)

    @property
    def kernel(self) -> tuple[int, int]:
        return self.weight.shape[2], self.weight.shape[3]

    def step(self, kind: StepKind, **more: Any) -> Step:
        """This convolution, or the block that has this window, as a step of a chain."""
        fields: dict[str, Any] = {
            "out_channels": self.weight.shape[0],
            "kernel": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "out_activation": self.activation,
        }
        return Step(kind, **(fields | more))

    @property
    def is_pointwise(self) -> bool:
        return self.kernel == (1, 1) and self.groups == 1 and self.padding == (0, 0, 0, 0)

    @property
    def is_depthwise(self) -> bool:
        return self.weight.shape[1] == 1 and self.weight.shape[0] == self.groups


def read_stage(
    convolution: nn.Module, norm: nn.Module | None = None, activation: nn.Module | None = None
) -> Stage | None:
    """Folds convolution -> norm -> activation; None if that is not what these modules compute."""
    name = of_module(activation)
    padding = _padding(convolution)
    if name is None or padding is None or not isinstance(convolution, nn.Conv2d):
        return None
    source, bias = convolution.weight, convolution.bias
    weight: Tensor = source
    if not are_native(weight, bias):
        return None
    if norm is not None and type(norm) is not nn.Identity:
        if not isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)) or norm.training:
            return None
        mean, var, gamma, beta = norm.running_mean, norm.running_var, norm.weight, norm.bias
        if mean is None or var is None or not are_native(mean, var, gamma, beta):
            return None
        weight, bias = fold_batch_norm(weight, bias, mean, var, gamma, beta, norm.eps)
    stride, dilation = _two(convolution.stride), _two(convolution.dilation)
    return Stage(weight, bias, stride, padding, dilation, convolution.groups, CODES[name], source)


def read_sequence(modules: nn.Module | None) -> Stage | None:
    """Folds a Sequential of a convolution, and perhaps a norm and an activation."""
    if not isinstance(modules, nn.Sequential) or not 1 <= len(modules) <= 3:
        return None
    convolution, *rest = modules
    norm = rest.pop(0) if rest and of_module(rest[0]) is None else None
    return None if len(rest) > 1 else read_stage(convolution, norm, *rest)


def are_native(*tensors: Tensor | None) -> bool:
    """Whether the native ops can take these weights."""
    return all(
        tensor is None
        or (
            (type(tensor) is nn.Parameter or type(tensor) is Tensor)
            and tensor.dtype == torch.float32
            and tensor.device.type == "cpu"
        )
        for tensor in tensors
    )


def native_convolution(stage: Stage | None, pack: bool) -> Native | None:
    """The native op for one convolution, if there is one."""
    if stage is None:
        return None
    stride, padding, dilation, activation = (
        stage.stride,
        stage.padding,
        stage.dilation,
        stage.activation,
    )
    weight, bias = stage.operands(pack)
    if stage.is_pointwise:
        return Native(
            lambda packed, x: POINTWISE.infer(
                x, weight, bias, stride, activation, None, None, packed
            ),
            pack_pointwise(stage.weight, stage.bias) if pack else None,
            stage.step(StepKind.POINTWISE),
        )
    if stage.is_depthwise:
        return Native(
            lambda packed, x: DEPTHWISE.infer(
                x, weight, bias, stride, padding, dilation, activation, packed
            ),
            pack_depthwise(stage.weight, stage.bias) if pack else None,
            stage.step(StepKind.DEPTHWISE),
        )
    if stage.groups == 1 and dilation == (1, 1) and weight.shape[1] <= _STEM_CHANNELS:
        return Native(
            lambda packed, x: CONV2D_BIAS_ACT.infer(
                x, weight, bias, stride, padding, activation, packed
            ),
            pack_pointwise(stage.weight, stage.bias) if pack else None,
            stage.step(StepKind.CONV2D_BIAS_ACT),
        )
    return None


def native_pooled(stage: Stage | None, pack: bool) -> Native | None:
    """The native op for one 1x1 convolution and a global average pooling."""
    if stage is None or not stage.is_pointwise or stage.stride != (1, 1):
        return None
    weight, bias = stage.operands(pack)
    activation = stage.activation
    return Native(
        lambda packed, x: POOL.infer(x, weight, bias, activation, packed),
        pack_pointwise(stage.weight, stage.bias) if pack else None,
        stage.step(StepKind.POOL),
    )


def _padding(convolution: nn.Module) -> tuple[int, int, int, int] | None:
    from .conv2d import Conv2d  # which is itself made of these parts

    if type(convolution) is not nn.Conv2d and type(convolution) is not Conv2d:
        return None
    if convolution.padding_mode != "zeros":
        return None
    padding = convolution.padding
    if padding == "valid":
        return 0, 0, 0, 0
    if isinstance(padding, str):  # PyTorch's "same": the stride is 1
        kernel, dilation = _two(convolution.kernel_size), _two(convolution.dilation)
        vertical, horizontal = (dilation[i] * (kernel[i] - 1) for i in (0, 1))
        top, left = vertical // 2, horizontal // 2
        return top, vertical - top, left, horizontal - left
    vertical, horizontal = _two(padding)
    return vertical, vertical, horizontal, horizontal


def _two(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
