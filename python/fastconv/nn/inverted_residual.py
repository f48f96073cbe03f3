"""The block of MobileNetV2 and its successors as a layer."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..activation import CODES
from ..folding import pack_inverted_residual
from ..ops._sequential import StepKind
from ..ops.inverted_residual import OPS, with_biases
from ._fused import FusedModule, Native
from ._parts import Stage, read_sequence, read_stage
from ._unit import TrainRow, train_row
from .conv2d import Conv2dNormAct
from .depthwise_separable_conv2d import native_separable
from .squeeze_excite import Excite, read_squeeze_excite


class InvertedResidual(FusedModule):
    """Expand (1x1), depthwise, project (1x1), plus the input where the shapes allow it.

    Args:
        inp, oup: input and output channels
        stride: of the depthwise convolution, 1 or 2
        expand_ratio: expanded channels per input channel; 1 leaves the expansion out
        norm_layer: a module class, torch.nn.BatchNorm2d by default
        kernel_size: of the depthwise convolution, odd
        activation_layer: a module class, after expansion and depthwise convolution
        squeeze_excite: called with the expanded channels, gives the module between depthwise and
            project, such as ``lambda mid: fastconv.nn.SqueezeExcite(mid, mid // 4)``

    The first five arguments and the keys of the state_dict (conv.0.0 ...) are those of
    torchvision's MobileNetV2. In eval mode, where no gradient is wanted, this is one native op on
    the CPU.

    Example:
        >>> block = fastconv.nn.InvertedResidual(24, 24, stride=1, expand_ratio=6)
        >>> block(torch.randn(1, 24, 56, 56)).shape
        torch.Size([1, 24, 56, 56])

    See :func:`fastconv.inverted_residual`.
    """

    def __init__(
        self,
        inp: int,
        oup: int,
        stride: int,
        expand_ratio: float,
        norm_layer: Callable[..., nn.Module] | None = None,
        *,
        kernel_size: int = 3,
        activation_layer: Callable[..., nn.Module] = nn.ReLU6,
        squeeze_excite: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"InvertedResidual: stride must be 1 or 2, got {stride}")
        norm_layer = norm_layer or nn.BatchNorm2d
        kinds: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": activation_layer}
        mid = round(inp * expand_ratio)
        layers: list[nn.Module] = []
        if expand_ratio != 1:
            layers.append(Conv2dNormAct(inp, mid, kernel_size=1, **kinds))
        layers.append(Conv2dNormAct(mid, mid, kernel_size, stride, groups=mid, **kinds))
        if squeeze_excite is not None:
            layers.append(squeeze_excite(mid))
        layers += [nn.Conv2d(mid, oup, 1, bias=False), norm_layer(oup)]
        self.conv = nn.Sequential(*layers)
        self.stride = stride
        self.use_res_connect = stride == 1 and inp == oup
        self.out_channels = oup
        self._is_cn = stride > 1
        self._has_expand = expand_ratio != 1

    def _plain_forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.conv(input)
        return input + output if self.use_res_connect else output

    def _train_row(self) -> TrainRow | None:
        return train_row([self.conv], self.use_res_connect)

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        if type(self.conv) is not nn.Sequential:
            return None
        *front, convolution, norm = self.conv
        project = read_stage(convolution, norm)
        expand = read_sequence(front.pop(0)) if self._has_expand and front else None
        if not 1 <= len(front) <= 2 or (expand is None and self._has_expand):
            return None
        excite = read_squeeze_excite(front[1]) if len(front) == 2 else None
        if excite is None and len(front) == 2:
            return None
        depthwise = read_sequence(front[0])
        if expand is None and excite is None:
            return native_separable(depthwise, project, self.use_res_connect, pack)
        stages = (expand, depthwise, excite, project)
        return native_inverted_residual(*stages, self.use_res_connect, pack)


def native_inverted_residual(
    expand: Stage | None,
    depthwise: Stage | None,
    excite: Excite | None,
    project: Stage | None,
    residual: bool,
    pack: bool,
) -> Native | None:
    """The native op for a whole block, if these stages are one; expand and excite may be None."""
    if depthwise is None or project is None or not depthwise.is_depthwise:
        return None
    pointwise = [project] if expand is None else [expand, project]
    if not all(stage.is_pointwise and stage.stride == (1, 1) for stage in pointwise):
        return None
    activation = depthwise.activation
    if project.activation != CODES["none"]:
        return None
    if expand is not None and expand.activation != activation:
        return None
    stages = (expand, depthwise, project)
    packed = None
    if pack:
        packed = pack_inverted_residual(
            *_flat([s and (s.weight, s.bias) for s in stages]), *(excite.tensors if excite else ())
        )
    weights = _flat([s and s.operands(pack) for s in stages])
    stride, pad, dilation = depthwise.stride, depthwise.pad(), depthwise.dilation
    rest: tuple[Any, ...] = (dilation, activation)
    if excite is None:
        rest += ((), CODES["none"], CODES["sigmoid"])
    else:
        rest += (with_biases(*excite.tensors), excite.activation, excite.gate)
    steps = depthwise.steps(
        StepKind.INVERTED_RESIDUAL,
        out_channels=project.weight.shape[0],
        mid_channels=0 if expand is None else expand.weight.shape[0],
        activation=activation,
        out_activation=CODES["none"],
        residual=residual,
        squeezed=0 if excite is None else excite.tensors[0].shape[0],
        excite=(0, 0) if excite is None else (excite.activation, excite.gate),
    )
    op = OPS.inference(pack)
    return Native(
        lambda packed, x: op(x, *weights, stride, pad(x), *rest, x if residual else None, packed),
        packed,
        steps,
    )


def _flat(pairs: list[tuple[Tensor, Tensor | None] | None]) -> tuple[Any, ...]:
    return tuple(tensor for pair in pairs for tensor in pair or (None, None))
