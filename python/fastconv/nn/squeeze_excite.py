"""Squeeze-and-excitation as a layer."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from ..activation import CODES, GATES, of_module
from ..folding import pack_squeeze_excite
from ..ops._sequential import Step, StepKind
from ..ops.squeeze_excite import OPS
from ._fused import FusedModule, Native
from ._parts import Stage, read_stage


class SqueezeExcite(FusedModule):
    """One factor per channel from the mean of every channel: torchvision's SqueezeExcitation.

    Args:
        input_channels: C
        squeeze_channels: between the two 1x1 convolutions, fc1 and fc2 in the state_dict
        activation: a module class, after the first
        scale_activation: a module class, after the second; Sigmoid or Hardsigmoid for native runs

    Example:
        >>> fastconv.nn.SqueezeExcite(32, 8)(torch.randn(1, 32, 56, 56)).shape
        torch.Size([1, 32, 56, 56])

    See :func:`fastconv.squeeze_excite`.
    """

    def __init__(
        self,
        input_channels: int,
        squeeze_channels: int,
        activation: Callable[..., nn.Module] = nn.ReLU,
        scale_activation: Callable[..., nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(input_channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, input_channels, 1)
        self.activation = activation()
        self.scale_activation = scale_activation()

    def _plain_forward(self, input: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(self.avgpool(input))))
        return input * self.scale_activation(scale)

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        return native_excite(read_squeeze_excite(self), pack)


class Excite(NamedTuple):
    """The tensors (reduce and expand weight and bias) and codes of a squeeze-and-excitation."""

    tensors: tuple[Tensor, Tensor | None, Tensor, Tensor | None]
    activation: int
    gate: int


def read_squeeze_excite(module: nn.Module) -> Excite | None:
    """The parts of a SqueezeExcite, or None if they are not what the native ops compute."""
    if type(module) is not SqueezeExcite or type(module.avgpool) is not nn.AdaptiveAvgPool2d:
        return None
    return read_excite(module.fc1, module.activation, module.fc2, module.scale_activation)


def read_excite(
    reduce: nn.Module, activation: nn.Module, expand: nn.Module, gate: nn.Module
) -> Excite | None:
    """The four modules that a squeeze-and-excitation consists of, beside the pooling."""
    first, second, name = read_stage(reduce, None, activation), read_stage(expand), of_module(gate)
    if first is None or second is None or name not in GATES:
        return None
    if not _is_plain(first) or not _is_plain(second):
        return None
    tensors = (first.weight, first.bias, second.weight, second.bias)
    return Excite(tensors, first.activation, CODES[name])


def native_excite(parts: Excite | None, pack: bool) -> Native | None:
    """The native op for a squeeze-and-excitation alone."""
    if parts is None:
        return None
    (w1, b1, w2, b2), activation, gate = parts
    step = Step(
        StepKind.SQUEEZE_EXCITE,
        w2.shape[0],
        squeezed=w1.shape[0],
        excite=(activation, gate),
    )
    op = OPS.inference(pack)
    return Native(
        lambda packed, x: op(x, w1, b1, w2, b2, activation, gate, packed),
        pack_squeeze_excite(*parts.tensors) if pack else None,
        (step,),
    )


def _is_plain(stage: Stage) -> bool:
    return stage.is_pointwise and stage.stride == (1, 1)
