"""The blocks of MobileNetV3 and EfficientNet as layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._fused import FusedModule, Native
from ._parts import read_sequence
from ._unit import TrainRow, train_row
from .conv2d import Conv2dNormAct
from .depthwise_separable_conv2d import native_separable
from .inverted_residual import native_inverted_residual
from .squeeze_excite import read_squeeze_excite


class StochasticDepth(nn.Module):
    """In train mode drops whole images of a residual branch, and scales up those that stay.

    Args:
        p: probability that an image is dropped

    The expected output is the input; in eval mode it is the output. The paper is
    https://arxiv.org/abs/1603.09382.

    Raises:
        ValueError: if p is no probability.

    Example:
        >>> fastconv.nn.StochasticDepth(0.2).eval()(torch.ones(2, 8, 7, 7)).sum()
        tensor(784.)
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"StochasticDepth: p must be between 0 and 1, got {p}")
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        shape = (input.shape[0],) + (1,) * (input.dim() - 1)
        kept = torch.empty(shape, dtype=input.dtype, device=input.device).bernoulli_(1 - self.p)
        return input * (kept if self.p == 1 else kept.div_(1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class MBConv(FusedModule):
    """Expand (1x1), depthwise, squeeze-and-excitation, project (1x1), plus the input if it fits.

    Args:
        in_channels, mid_channels, out_channels: C, expanded C, K; there is no expansion if the
            first two are equal
        kernel_size: of the depthwise convolution, odd
        stride: of the depthwise convolution, 1 or 2
        dilation: of the depthwise convolution; above 1 it takes the place of the stride, which then
            only says that the input is not added
        norm_layer: a module class, torch.nn.BatchNorm2d by default
        activation_layer: a module class, after expansion and depthwise convolution
        squeeze_excite: called with the expanded channels, gives the module between depthwise and
            project, such as ``lambda mid: fastconv.nn.SqueezeExcite(mid, mid // 4)``
        stochastic_depth_prob: see :class:`StochasticDepth`; only where the input is added

    Keys of the state_dict (block.0.0 ...) are those of torchvision's MobileNetV3 and EfficientNet.
    In eval mode, where no gradient is wanted, this is one native op on the CPU.

    Raises:
        ValueError: for another stride.

    Example:
        >>> block = fastconv.nn.MBConv(24, 144, 40, kernel_size=5, stride=2)
        >>> block(torch.randn(1, 24, 56, 56)).shape
        torch.Size([1, 40, 28, 28])

    See :func:`fastconv.inverted_residual`.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        *,
        norm_layer: Callable[..., nn.Module] | None = None,
        activation_layer: Callable[..., nn.Module] = nn.SiLU,
        squeeze_excite: Callable[[int], nn.Module] | None = None,
        stochastic_depth_prob: float = 0.0,
    ) -> None:
        super().__init__()
        _check_stride("MBConv", stride)
        norm_layer = norm_layer or nn.BatchNorm2d
        kinds: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": activation_layer}
        window: dict[str, Any] = {"stride": 1 if dilation > 1 else stride, "dilation": dilation}
        self._has_expand = mid_channels != in_channels
        self._has_excite = squeeze_excite is not None
        layers: list[nn.Module] = []
        if self._has_expand:
            layers.append(Conv2dNormAct(in_channels, mid_channels, kernel_size=1, **kinds))
        layers.append(
            Conv2dNormAct(
                mid_channels, mid_channels, kernel_size, groups=mid_channels, **window, **kinds
            )
        )
        if squeeze_excite is not None:
            layers.append(squeeze_excite(mid_channels))
        layers.append(_project(mid_channels, out_channels, norm_layer))
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(stochastic_depth_prob)
        self.use_res_connect = stride == 1 and in_channels == out_channels
        self.out_channels = out_channels

    def _plain_forward(self, input: Tensor) -> Tensor:
        return _residual(self, input)

    def _train_row(self) -> TrainRow | None:
        return train_row([self.block], self.use_res_connect, self.stochastic_depth)

    def _layers(self) -> list[nn.Module]:
        # The native form takes it for the identity, which it is in eval mode.
        return [self.stochastic_depth]

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        depth = self.stochastic_depth
        if type(self.block) is not nn.Sequential or type(depth) is not StochasticDepth:
            return None
        if depth.training or len(self.block) != 2 + self._has_expand + self._has_excite:
            return None
        *front, last = self.block
        excite = read_squeeze_excite(front.pop()) if self._has_excite else None
        expand = read_sequence(front[0]) if self._has_expand else None
        if (excite is None and self._has_excite) or (expand is None and self._has_expand):
            return None
        depthwise, project = read_sequence(front[-1]), read_sequence(last)
        if expand is None and excite is None:
            return native_separable(depthwise, project, self.use_res_connect, pack)
        stages = (expand, depthwise, excite, project)
        return native_inverted_residual(*stages, self.use_res_connect, pack)


class FusedMBConv(nn.Module):
    """EfficientNetV2's early block: a dense convolution that expands, project (1x1), plus the input
    if it fits.

    Args:
        in_channels, mid_channels, out_channels: C, expanded C, K; if the first two are equal, the
            dense convolution gives K channels itself and nothing follows
        kernel_size: of the dense convolution, odd
        stride: of the dense convolution, 1 or 2
        norm_layer, activation_layer: module classes
        stochastic_depth_prob: see :class:`StochasticDepth`; only where the input is added

    Keys of the state_dict (block.0.0 ...) are torchvision's. "Fused" is the paper's word for the
    dense convolution; the two convolutions run as :class:`Conv2dNormAct` each.

    Raises:
        ValueError: for another stride.

    Example:
        >>> block = fastconv.nn.FusedMBConv(24, 96, 48, stride=2)
        >>> block(torch.randn(1, 24, 56, 56)).shape
        torch.Size([1, 48, 28, 28])
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        norm_layer: Callable[..., nn.Module] | None = None,
        activation_layer: Callable[..., nn.Module] = nn.SiLU,
        stochastic_depth_prob: float = 0.0,
    ) -> None:
        super().__init__()
        _check_stride("FusedMBConv", stride)
        norm_layer = norm_layer or nn.BatchNorm2d
        kinds: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": activation_layer}
        expands = mid_channels != in_channels
        dense_channels = mid_channels if expands else out_channels
        layers: list[nn.Module] = [
            Conv2dNormAct(in_channels, dense_channels, kernel_size, stride, **kinds)
        ]
        if expands:
            layers.append(_project(mid_channels, out_channels, norm_layer))
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(stochastic_depth_prob)
        self.use_res_connect = stride == 1 and in_channels == out_channels
        self.out_channels = out_channels

    def forward(self, input: Tensor) -> Tensor:
        return _residual(self, input)


def _check_stride(name: str, stride: int) -> None:
    if stride not in (1, 2):
        raise ValueError(f"{name}: stride must be 1 or 2, got {stride}")


def _project(
    in_channels: int, out_channels: int, norm_layer: Callable[..., nn.Module]
) -> Conv2dNormAct:
    return Conv2dNormAct(
        in_channels, out_channels, kernel_size=1, norm_layer=norm_layer, activation_layer=None
    )


def _residual(module: MBConv | FusedMBConv, input: Tensor) -> Tensor:
    output: Tensor = module.block(input)
    return input + module.stochastic_depth(output) if module.use_res_connect else output
