"""Convolution layers that are fast where they can be: see fastconv.nn."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ._fused import FusedModule, Native
from ._parts import native_convolution, native_pooled, read_sequence, read_stage
from ._unit import TrainRow, train_row

Layer = Callable[..., nn.Module]


class Conv2d(FusedModule, nn.Conv2d):
    """:class:`torch.nn.Conv2d` with native inference: same arguments, same state_dict.

    In eval mode, where no gradient is wanted, 1x1 and depthwise convolutions, and dense ones
    without dilation, run as one native op on packed weights on the CPU. Everything
    else is torch.nn.Conv2d. The native result is channels_last.

    Example:
        >>> layer = fastconv.nn.Conv2d(32, 64, 1).eval()
        >>> with torch.inference_mode():
        ...     layer(torch.randn(1, 32, 56, 56)).shape
        torch.Size([1, 64, 56, 56])

    See :func:`fastconv.pointwise_conv2d`, :func:`fastconv.depthwise_conv2d`.
    """

    def _plain_forward(self, input: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, input)

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        return native_convolution(read_stage(self), pack)


class Conv2dNormAct(FusedModule, nn.Sequential):
    """Convolution, norm and activation: torchvision's Conv2dNormActivation, one native op in eval.

    Args:
        in_channels, out_channels, kernel_size, stride, groups, dilation: as for torch.nn.Conv2d
        padding: as for torch.nn.Conv2d; None keeps the size (at stride 1)
        norm_layer: made with out_channels, or None
        activation_layer: a module class, or None
        inplace: for the activation
        bias: of the convolution; None for one only if there is no norm

    Keys of the state_dict are 0 for the convolution and 1 for the norm. BatchNorm with running
    statistics is folded in eval mode; other norms run as plain PyTorch.

    Example:
        >>> fastconv.nn.Conv2dNormAct(3, 32, stride=2)(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 32, 112, 112])

    See :func:`fastconv.conv2d_bias_act`, :func:`fastconv.pointwise_conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        groups: int = 1,
        norm_layer: Layer | None = nn.BatchNorm2d,
        activation_layer: Layer | None = nn.ReLU,
        dilation: int | tuple[int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
    ) -> None:
        if padding is None:
            padding = _size_keeping_padding(kernel_size, dilation)
        if bias is None:
            bias = norm_layer is None
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
            )
        ]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation_layer is not None:
            layers.append(activation_layer(**_inplace(activation_layer, inplace)))
        super().__init__(*layers)
        self.out_channels = out_channels

    def _plain_forward(self, input: Tensor) -> Tensor:
        return nn.Sequential.forward(self, input)

    def _train_row(self) -> TrainRow | None:
        return train_row(self)

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        stage = read_sequence(self)
        return native_pooled(stage, pack) if kind == "pooled" else native_convolution(stage, pack)

    def pooled(self, input: Tensor) -> Tensor:
        """The mean of the output over H and W, (N, K), which for 1x1 convolutions is one native op.

        See :func:`fastconv.pointwise_conv2d_pool`.
        """
        hooked = self._forward_hooks or self._forward_pre_hooks
        run = None if hooked else self._native_run(input, "pooled")
        if run is not None:
            return run(input)
        return F.adaptive_avg_pool2d(self(input), (1, 1)).flatten(1)


def _size_keeping_padding(
    kernel_size: int | Sequence[int], dilation: int | Sequence[int]
) -> int | tuple[int, int]:
    if isinstance(kernel_size, int) and isinstance(dilation, int):
        return (kernel_size - 1) // 2 * dilation
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    gaps = (dilation, dilation) if isinstance(dilation, int) else dilation
    return (kernel[0] - 1) // 2 * gaps[0], (kernel[1] - 1) // 2 * gaps[1]


# Those of PyTorch that kernels compute and that know no such argument.
_WITHOUT_INPLACE = (nn.Identity, nn.Sigmoid, nn.Tanh, nn.GELU)


def _inplace(activation_layer: Layer, inplace: bool | None) -> dict[str, Any]:
    if inplace is None or activation_layer in _WITHOUT_INPLACE:
        return {}
    return {"inplace": inplace}
