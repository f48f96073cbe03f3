"""Reads ordinary PyTorch modules as what the native ops take."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from .. import _precision
from .._precision import DTYPES
from ..activation import CODES, of_module
from ..folding import fold_batch_norm, pack_conv2d, pack_depthwise, pack_pointwise
from ..gpu.weights import own
from ..ops._sequential import Step, StepKind
from ..ops.conv2d_bias_act import OPS as CONV2D_BIAS_ACT
from ..ops.depthwise_conv2d import OPS as DEPTHWISE
from ..ops.pointwise_conv2d import OPS as POINTWISE
from ..ops.pointwise_conv2d_pool import OPS as POOL
from ..reference import resolve_padding
from ._fused import Native, original_class

Padding4 = tuple[int, int, int, int]


class Stage(NamedTuple):
    """A convolution with its BatchNorm folded in, and its activation."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: Padding4 | None  # None: TensorFlow's "same", which depends on the input's size
    dilation: tuple[int, int]
    groups: int
    activation: int
    source: Tensor  # the convolution's own weight, before the fold

    def operands(self, pack: bool) -> tuple[Tensor, Tensor | None]:
        """What a native op is given: beside packed weights it looks only at the weight's shape.

        The folded weight and bias are then not kept. On a GPU nothing is packed, and the folded
        ones are kept.
        """
        if not pack:
            return self.weight, self.bias
        if not self.weight.is_cuda:
            return self.source, None
        weight = self.weight.to(_precision.wanted() or self.source.dtype)
        # Aliases, because what is kept beside them must not outlive the fold.
        bias = None if self.bias is None else own(self.bias.detach().view_as(self.bias))
        return own(weight.detach().view_as(weight), self.source), bias

    @property
    def kernel(self) -> tuple[int, int]:
        return self.weight.shape[2], self.weight.shape[3]

    def pad(self) -> Callable[[Tensor], Padding4]:
        """The padding for an input."""
        padding, kernel, stride, dilation = self.padding, self.kernel, self.stride, self.dilation
        if padding is not None:
            return lambda _: padding
        return lambda x: resolve_padding("same", x.shape[2:], kernel, stride, dilation)

    def steps(self, kind: StepKind, **more: Any) -> tuple[Step, ...] | None:
        """This convolution, or the block that has this window, as a chain of one step, if it can be
        one for every size of the input."""
        if self.padding is None:
            return None
        fields: dict[str, Any] = {
            "out_channels": self.weight.shape[0],
            "kernel": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "out_activation": self.activation,
        }
        return (Step(kind, **(fields | more)),)

    @property
    def is_pointwise(self) -> bool:
        # A 1x1 window is never padded by "same".
        unpadded = self.padding is None or self.padding == (0, 0, 0, 0)
        return self.kernel == (1, 1) and self.groups == 1 and unpadded

    @property
    def is_depthwise(self) -> bool:
        return self.weight.shape[1] == 1 and self.weight.shape[0] == self.groups


def read_stage(
    convolution: nn.Module, norm: nn.Module | None = None, activation: nn.Module | None = None
) -> Stage | None:
    """Folds convolution -> norm -> activation; None if that is not what these modules compute."""
    if not is_convolution(convolution) or not isinstance(convolution, nn.Conv2d):
        return None
    source, bias = convolution.weight, convolution.bias
    weight: Tensor = source
    # What is no parameter, but computed or set as an attribute, can change without being seen.
    own = convolution._parameters
    if own.get("weight") is not source or own.get("bias") is not bias:
        return None
    if not are_native(weight, bias):
        return None
    if norm is not None and type(norm) is not nn.Identity:
        if not is_norm(norm) or norm.training:
            return None
        inner = norm_activation(norm)
        if inner is not None:
            if activation is not None:
                return None
            activation = inner
        statistics: Any = norm  # whose class may be none of PyTorch's
        mean, var = statistics.running_mean, statistics.running_var
        gamma, beta = statistics.weight, statistics.bias
        owned: dict[str, Any] = {**norm._parameters, **norm._buffers}
        names = ("running_mean", "running_var", "weight", "bias")
        if any(owned.get(n) is not t for n, t in zip(names, (mean, var, gamma, beta), strict=True)):
            return None
        if mean is None or var is None or not are_native(mean, var, gamma, beta):
            return None
        weight, bias = fold_batch_norm(weight, bias, mean, var, gamma, beta, statistics.eps)
    name = of_module(activation)
    if name is None:
        return None
    stride, dilation = two(convolution.stride), two(convolution.dilation)
    padding = padding_of(convolution, stride)
    return Stage(weight, bias, stride, padding, dilation, convolution.groups, CODES[name], source)


def is_convolution(module: nn.Module | None) -> bool:
    """Whether this computes what torch.nn.Conv2d does, or with TensorFlow's "same" padding."""
    from .conv2d import Conv2d  # which is itself made of these parts

    kind = original_class(module)
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return False
    return kind is nn.Conv2d or kind is Conv2d or pads_like_tensorflow(kind)


def is_supported(convolution: nn.Module) -> bool:
    """Whether a native op has this shape of convolution."""
    if not isinstance(convolution, nn.Conv2d) or not is_convolution(convolution):
        return False
    shape, dilation = tuple(convolution.weight.shape), two(convolution.dilation)
    return is_supported_shape(shape, convolution.groups, dilation)


def is_supported_shape(weight: tuple[int, ...], groups: int, dilation: tuple[int, int]) -> bool:
    """The same of the weight's shape: 1x1, dense without dilation, or one filter per channel."""
    if groups == 1:
        return weight[2:] == (1, 1) or dilation == (1, 1)
    return weight[1] == 1 and weight[0] == groups


def is_norm(module: nn.Module | None) -> bool:
    """Whether this is a BatchNorm that can be folded: PyTorch's, one with an activation behind it
    as in timm, or torchvision's frozen one."""
    if type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm):
        return True
    if isinstance(module, nn.BatchNorm2d):
        return norm_activation(module) is not None
    kind = type(module)
    return kind.__name__ == "FrozenBatchNorm2d" and kind.__module__.startswith("torchvision.")


def norm_activation(module: nn.Module | None) -> nn.Module | None:
    """The activation inside a norm, None where there is none."""
    children = {} if module is None else module._modules
    if not isinstance(children.get("drop"), nn.Identity):
        return None
    return children.get("act")


def pads_like_tensorflow(kind: type) -> bool:
    return kind.__name__ == "Conv2dSame" and kind.__module__.startswith("timm.")


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
            and tensor.dtype in DTYPES
            and tensor.device.type in ("cpu", "cuda")
        )
        for tensor in tensors
    )


def native_convolution(stage: Stage | None, pack: bool) -> Native | None:
    """The native op for one convolution, if there is one."""
    if stage is None:
        return None
    stride, dilation, activation = stage.stride, stage.dilation, stage.activation
    pad = stage.pad()
    weight, bias = stage.operands(pack)
    if stage.is_pointwise:
        op = POINTWISE.inference(pack)
        return Native(
            lambda packed, x: op(x, weight, bias, stride, activation, None, None, packed),
            pack_pointwise(stage.weight, stage.bias) if pack else None,
            stage.steps(StepKind.POINTWISE),
        )
    if stage.is_depthwise:
        op = DEPTHWISE.inference(pack)
        return Native(
            lambda packed, x: op(x, weight, bias, stride, pad(x), dilation, activation, packed),
            pack_depthwise(stage.weight, stage.bias) if pack else None,
            stage.steps(StepKind.DEPTHWISE),
        )
    if stage.groups == 1 and dilation == (1, 1):
        op = CONV2D_BIAS_ACT.inference(pack)
        return Native(
            lambda packed, x: op(x, weight, bias, stride, pad(x), activation, packed),
            pack_conv2d(stage.weight, stage.bias, stride) if pack else None,
            stage.steps(StepKind.CONV2D_BIAS_ACT),
        )
    return None


def native_pooled(stage: Stage | None, pack: bool) -> Native | None:
    """The native op for one 1x1 convolution and a global average pooling."""
    if stage is None or not stage.is_pointwise or stage.stride != (1, 1):
        return None
    weight, bias = stage.operands(pack)
    activation = stage.activation
    op = POOL.inference(pack)
    return Native(
        lambda packed, x: op(x, weight, bias, activation, packed),
        pack_pointwise(stage.weight, stage.bias) if pack else None,
        stage.steps(StepKind.POOL),
    )


def padding_of(convolution: nn.Conv2d, stride: tuple[int, int]) -> Padding4 | None:
    padding = convolution.padding
    if pads_like_tensorflow(original_class(convolution)):
        if stride != (1, 1):
            return None
        padding = "same"
    if padding == "valid":
        return 0, 0, 0, 0
    if isinstance(padding, str):  # PyTorch's "same": the stride is 1
        kernel, dilation = two(convolution.kernel_size), two(convolution.dilation)
        vertical, horizontal = (dilation[i] * (kernel[i] - 1) for i in (0, 1))
        top, left = vertical // 2, horizontal // 2
        return top, vertical - top, left, horizontal - left
    vertical, horizontal = two(padding)
    return vertical, vertical, horizontal, horizontal


def two(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
