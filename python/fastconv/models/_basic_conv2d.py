"""What both Inception networks are made of."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nn._fused import FusedModule, Native
from ..nn._parts import native_convolution, read_stage
from ..nn._unit import TrainRow, train_row
from ._common import Network
from ._weights import Weights

Layer = Callable[..., nn.Module]


class BasicConv2d(FusedModule):
    """Convolution (conv), norm (bn) and ReLU: torchvision's block of the Inception networks.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as for torch.nn.Conv2d
        norm_layer: a module class, torch.nn.BatchNorm2d with eps 0.001 by default

    In eval mode, where no gradient is wanted, this is one native op.

    Example:
        >>> fastconv.models.BasicConv2d(3, 32, 3, stride=2)(torch.randn(1, 3, 299, 299)).shape
        torch.Size([1, 32, 149, 149])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        norm_layer: Layer | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = _norm(out_channels) if norm_layer is None else norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def _plain_forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.relu(self.bn(self.conv(input)))
        return output

    def _train_row(self) -> TrainRow | None:
        return train_row([self.conv, self.bn, self.relu])

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        return native_convolution(read_stage(self.conv, self.bn, self.relu), pack)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=0.001)


def initialize_truncated(network: nn.Module, std: Callable[[str], float]) -> None:
    """torchvision's first weights of the Inception networks.

    Args:
        std: called with a layer's name, gives the deviation of its weights
    """
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, 0, std(name), a=-2, b=2)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def check_transform_input(name: str, transform_input: bool, in_chans: int) -> None:
    if transform_input and in_chans != 3:
        raise ValueError(
            f"{name}: transform_input must be False unless in_chans is 3, got True and {in_chans}"
        )


class InceptionNetwork(Network):
    """A network whose input may be normalized anew."""

    transform_input: bool

    def _transform(self) -> list[nn.Module]:
        return [_Transformed()] if self.transform_input else []

    def _may_choose(self, module: nn.Module) -> bool:
        return module is self  # transform_input can be set later


class _Transformed(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return transformed(input)


def transformed(input: Tensor) -> Tensor:
    """Images normalized as for other networks, as those that the published weights were made for:
    from -1 to 1."""
    channels = [
        input[:, index] * (std / 0.5) + (mean - 0.5) / 0.5
        for index, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225)))
    ]
    return torch.stack(channels, 1)


def is_published(weights: Weights, published: Mapping[str, str]) -> bool:
    """Whether these are torchvision's, also as a file that keeps its name, which has a hash."""
    if getattr(weights, "url", None) in published.values():
        return True
    if not isinstance(weights, (str, Path)):
        return False
    names = {address.rpartition("/")[2] for address in published.values()}
    return str(weights).rpartition(".")[2] in published or Path(weights).name in names


def transforming(
    kwargs: dict[str, Any], weights: Weights, published: Mapping[str, str]
) -> dict[str, Any]:
    """The arguments of a network, with the `transform_input` that the weights need."""
    return {"transform_input": is_published(weights, published)} | kwargs
