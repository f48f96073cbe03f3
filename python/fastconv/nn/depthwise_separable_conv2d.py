"""Depthwise and 1x1 convolution as one layer."""

from collections.abc import Callable

from torch import Tensor, nn

from ..folding import pack_separable
from ..ops._sequential import StepKind
from ..ops.depthwise_separable_conv2d import OPS
from ._fused import FusedModule, Native
from ._parts import Stage, read_sequence
from ._unit import TrainRow, train_row
from .conv2d import Conv2dNormAct


class DepthwiseSeparableConv2d(FusedModule, nn.Sequential):
    """The block of MobileNetV1: depthwise and 1x1 convolution, each with norm and activation.

    Args:
        in_channels, out_channels: C, K
        kernel_size, stride, padding, dilation: of the depthwise convolution, as for Conv2dNormAct
        norm_layer: a module class, or None; convolutions have a bias only without it
        depthwise_activation_layer, activation_layer: module classes, or None for no activation

    Keys of the state_dict are 0.0, 0.1 (depthwise) and 1.0, 1.1 (1x1). In eval mode, where no
    gradient is wanted, this is one native op on the CPU.

    Example:
        >>> block = fastconv.nn.DepthwiseSeparableConv2d(32, 64, stride=2)
        >>> block(torch.randn(1, 32, 112, 112)).shape
        torch.Size([1, 64, 56, 56])

    See :func:`fastconv.depthwise_separable_conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int | tuple[int, int] = 1,
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
        *,
        depthwise_activation_layer: Callable[..., nn.Module] | None = nn.ReLU6,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU6,
    ) -> None:
        super().__init__(
            Conv2dNormAct(
                in_channels,
                in_channels,
                kernel_size,
                stride,
                padding,
                groups=in_channels,
                norm_layer=norm_layer,
                activation_layer=depthwise_activation_layer,
                dilation=dilation,
            ),
            Conv2dNormAct(
                in_channels,
                out_channels,
                kernel_size=1,
                norm_layer=norm_layer,
                activation_layer=activation_layer,
            ),
        )
        self.out_channels = out_channels

    def _plain_forward(self, input: Tensor) -> Tensor:
        return nn.Sequential.forward(self, input)

    def _train_row(self) -> TrainRow | None:
        return train_row(self)

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        if len(self) != 2:
            return None
        return native_separable(read_sequence(self[0]), read_sequence(self[1]), False, pack)


def native_separable(
    depthwise: Stage | None, pointwise: Stage | None, residual: bool, pack: bool
) -> Native | None:
    """The native op for a depthwise and a 1x1 convolution, perhaps with the input added."""
    if depthwise is None or pointwise is None:
        return None
    if not depthwise.is_depthwise or not pointwise.is_pointwise or pointwise.stride != (1, 1):
        return None
    packed = None
    if pack:
        packed = pack_separable(depthwise.weight, depthwise.bias, pointwise.weight, pointwise.bias)
    weights = (*depthwise.operands(pack), *pointwise.operands(pack))
    stride, pad, dilation = depthwise.stride, depthwise.pad(), depthwise.dilation
    activations = depthwise.activation, pointwise.activation
    op = OPS.inference(pack)
    return Native(
        lambda packed, x: op(
            x, *weights, stride, pad(x), dilation, *activations, x if residual else None, packed
        ),
        packed,
        depthwise.steps(
            StepKind.INVERTED_RESIDUAL,
            out_channels=pointwise.weight.shape[0],
            activation=depthwise.activation,
            out_activation=pointwise.activation,
            residual=residual,
        ),
    )
