"""Modules in training, or with frozen norms and gradients: their rows of units as one function."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _precision
from ..activation import CODES, GATES, of_module
from ..gpu.device import gpu_of
from ..gpu.maps import has_triton
from ..ops._train_chain import TrainStage, run_chain
from ..reference import resolve_padding
from ._fused import original_class
from ._parts import (
    are_native,
    is_convolution,
    is_norm,
    is_supported,
    norm_activation,
    padding_of,
    two,
)
from ._unit import TrainRow, drops


class _Part(NamedTuple):
    """A convolution, what follows it, and perhaps the squeeze-and-excitation behind it: its
    reducing convolution, activation, expanding convolution and gate."""

    convolution: nn.Module
    norm: nn.Module | None
    activation: nn.Module | None
    excite: tuple[nn.Module, nn.Module, nn.Module, nn.Module] | None


def _parts(row: TrainRow) -> list[_Part] | None:
    found: list[_Part] = []
    for unit in row.units:
        if unit.excite is None:
            found.append(_Part(unit.convolution, unit.norm, unit.activation, None))
        elif not found or found[-1].excite is not None:
            return None
        else:
            found[-1] = found[-1]._replace(excite=unit.excite)
    return found if found and found[-1].excite is None else None


def train_limit(
    module: nn.Module, row: TrainRow, like: Tensor, in_train_mode: bool = False
) -> str | None:
    """Why the kernels cannot train a module, which is this row; None if they can.

    Args:
        like: a tensor of the dtype of the maps, and where they are
        in_train_mode: asks for what would be in train mode, whatever the mode is
    """
    casts = _precision.autocast_dtype(like.device.type) is not None
    if like.is_cuda and not _gpu_trains(like.device):
        return "training on a GPU needs Triton, and a GPU that it compiles for"
    if any(drops(m) for m in module.modules() if m is not row.drop):
        return "a dropout is at work inside"
    parts = _parts(row)
    if parts is None:
        return "a squeeze-and-excitation stands alone"
    for unit in parts:
        limit = _convolution_limit(unit.convolution, like)
        limit = limit or _norm_limit(unit.norm, like, in_train_mode)
        if limit is not None:
            return limit
        activations = [unit.activation, norm_activation(unit.norm)]
        names = [of_module(activation) for activation in activations]
        if None in names or names.count("none") == 0:
            return f"{_name(unit.activation)} is no activation of the kernels"
        convolutions = [unit.convolution]
        if unit.excite is not None:
            reduce, activation, expand, gate = unit.excite
            convolutions += [reduce, expand]
            limit = _convolution_limit(reduce, like) or _convolution_limit(expand, like)
            if limit is not None:
                return limit
            if of_module(activation) is None or of_module(gate) not in GATES:
                return "the squeeze-and-excitation has activations that the kernels do not have"
        if not casts and any(c.weight.dtype is not like.dtype for c in convolutions):
            return "weights and input have different dtypes"
    for module in row.drop.modules() if row.drop is not None else ():
        if getattr(module, "mode", "row") != "row":
            return "the branch is dropped for the whole batch at once"
    return None


def _gpu_trains(device: torch.device) -> bool:
    return has_triton(gpu_of(device))


# What torch.compiler.assume_constant_result does, which imports the compiler.
_gpu_trains._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _name(module: nn.Module | None) -> str:
    return original_class(module).__name__


def _convolution_limit(module: nn.Module, like: Tensor) -> str | None:
    if not isinstance(module, nn.Conv2d) or not is_convolution(module):
        return f"{_name(module)} is no convolution of the kernels"
    if not is_supported(module):
        return "the kernels have dense, 1x1 and depthwise convolutions"
    own = module._parameters
    if own.get("weight") is not module.weight or own.get("bias") is not module.bias:
        return "a weight is no parameter of its own"
    if not are_native(module.weight, module.bias) or module.weight.device != like.device:
        return "the weights have a type or device that the kernels do not have"
    return None


def uses_batch(norm: nn.Module) -> bool:
    """Whether this norm takes its statistics from the batch."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return False
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def _norm_limit(norm: nn.Module | None, like: Tensor, in_train_mode: bool) -> str | None:
    if norm is None or type(norm) is nn.Identity:
        return None
    if not is_norm(norm):
        return f"the norm is a {_name(norm)}"
    if isinstance(norm, nn.SyncBatchNorm) and (in_train_mode or uses_batch(norm)):
        return "a SyncBatchNorm takes its statistics from all processes"
    own = {**norm._parameters, **norm._buffers}
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor: Any = getattr(norm, name)
        if own.get(name) is not tensor:
            return "a norm's weight or statistic is no parameter or buffer of its own"
        if not are_native(tensor) or (tensor is not None and tensor.device != like.device):
            return "a norm has a type or device that the kernels do not have"
    return None


def run_row(row: TrainRow, input: Tensor) -> Tensor:
    """Runs a row that :func:`train_limit` has nothing against, and updates running statistics."""
    dtype = _precision.result_dtype(input)
    map_ = input.to(_precision.computed_in(dtype, input.device.type))
    stages: list[TrainStage] = []
    tensors: list[Tensor | None] = []
    size = (input.shape[2], input.shape[3])
    live: list[tuple[nn.modules.batchnorm._BatchNorm, Tensor | None, int]] = []
    parts = _parts(row)
    assert parts is not None
    for unit in parts:
        stage, size = _stage(unit, size)
        stages.append(stage)
        tensors += _tensors(unit)
        if stage.eps is not None:
            norm: Any = unit.norm
            count = input.shape[0] * size[0] * size[1]
            live.append((norm, unit.convolution.bias, count))  # type: ignore[arg-type]
            if count == 1:
                shape = torch.Size((input.shape[0], norm.num_features, *size))
                raise ValueError(
                    f"Expected more than 1 value per channel when training, got input size {shape}"
                )
    drop = None
    if row.drop is not None and row.residual:
        drop = _drop_factors(row.drop, input, stages, tensors)
    output, moments = run_chain(tuple(stages), row.residual, map_, drop, tensors)
    with torch.no_grad():
        for (norm, bias, count), mean, variance in zip(
            live, moments[::2], moments[1::2], strict=True
        ):
            _update(norm, mean, variance, bias, count)
    return output.to(dtype)


def _stage(unit: _Part, size: tuple[int, int]) -> tuple[TrainStage, tuple[int, int]]:
    """The stage for an input of this height and width, and those of its output."""
    convolution: Any = unit.convolution
    kernel, stride = two(convolution.kernel_size), two(convolution.stride)
    dilation = two(convolution.dilation)
    padding = padding_of(convolution, stride)
    if padding is None:
        padding = resolve_padding("same", size, kernel, stride, dilation)
    if convolution.groups == 1:
        kind = "pointwise" if kernel == (1, 1) and padding == (0, 0, 0, 0) else "dense"
    else:
        kind = "depthwise"
    inner = norm_activation(unit.norm)
    name = of_module(inner if inner is not None else unit.activation)
    excite = None
    if unit.excite is not None:
        codes = [CODES[str(of_module(unit.excite[i]))] for i in (1, 3)]
        excite = (codes[0], codes[1])
    norm: Any = unit.norm
    eps = norm.eps if norm is not None and uses_batch(norm) else None
    stage = TrainStage(kind, stride, padding, dilation, CODES[str(name)], eps, excite)
    out = [
        (size[i] + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (kernel[i] - 1) - 1)
        // stride[i]
        + 1
        for i in (0, 1)
    ]
    return stage, (out[0], out[1])


def _tensors(unit: _Part) -> list[Tensor | None]:
    convolution: Any = unit.convolution
    norm: Any = unit.norm
    found: list[Tensor | None] = [convolution.weight]
    if norm is not None and uses_batch(norm):
        found += [norm.weight, norm.bias, convolution.bias]
    else:
        found += [_fixed_affine(convolution, norm), None, None]
    if unit.excite is not None:
        reduce, _, expand, _ = unit.excite
        found += [reduce.weight, reduce.bias, expand.weight, expand.bias]  # type: ignore[list-item]
    return found


def _fixed_affine(convolution: Any, norm: Any) -> Tensor:
    """Scale and shift (2, K) of a norm in eval mode, with the convolution's bias."""
    weight = convolution.weight
    bias = None if convolution.bias is None else convolution.bias.float()
    if norm is None or type(norm) is nn.Identity:
        scale = torch.ones(weight.shape[0], device=weight.device)
        return torch.stack((scale, torch.zeros_like(scale) if bias is None else bias))
    scale = torch.rsqrt(norm.running_var.float() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.float()
    mean = norm.running_mean.float()
    shift = (-mean if bias is None else bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.float()
    return torch.stack((scale, shift))


def _drop_factors(
    drop: nn.Module, input: Tensor, stages: Sequence[TrainStage], tensors: Sequence[Tensor | None]
) -> Tensor | None:
    """What a drop of whole images multiplies the branch by, (N, K); drawn by the module itself."""
    if not drops(drop):
        return None
    last = tensors[-stages[-1].tensors]
    assert last is not None
    factors = drop(torch.ones((input.shape[0], 1, 1, 1), dtype=input.dtype, device=input.device))
    return factors.float().flatten(1).expand(-1, last.shape[0]).contiguous()


def _update(
    norm: nn.modules.batchnorm._BatchNorm,
    mean: Tensor,
    variance: Tensor,
    bias: Tensor | None,
    count: int,
) -> None:
    """Running statistics as torch.nn.BatchNorm2d keeps them."""
    if not norm.training or not norm.track_running_stats:
        return
    factor: Any = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / norm.num_batches_tracked.to(mean.dtype)
    if factor is None:
        factor = 0.0
    if norm.running_mean is None or norm.running_var is None:
        return
    if bias is not None:
        mean = mean + bias.to(mean.dtype)
    for running, value in (
        (norm.running_mean, mean),
        (norm.running_var, variance * (count / (count - 1))),
    ):
        running.mul_(1 - factor).add_(factor * value.to(running.dtype))
