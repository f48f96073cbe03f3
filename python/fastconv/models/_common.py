"""What several networks share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._sequence import Part, Pool, build_sequence, sequence_items
from ..nn import Conv2dNormAct
from ..nn._fused import FusedModule, Native


class Network(FusedModule):
    """A network whose parts run one after the other. In eval mode they have one native form, in as
    few calls as possible, with one check of the weights."""

    def _row(self) -> list[Part]:
        """The parts, in the order in which they run."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        # A graph is compiled from the layers: the network's own form exists only packed.
        run = None if torch.compiler.is_compiling() else self._native_run(input, "network")
        return self._plain_forward(input) if run is None else run(input)

    def _layers(self) -> list[nn.Module]:
        return [m for m in self.modules() if m is not self and isinstance(m, FusedModule)]

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        return build_sequence(sequence_items(self._row()), pack)


def round_channels(channels: float, multiple: int = 8) -> int:
    """To the nearest multiple, but never down by more than 10 %."""
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * channels else rounded


def check_in_chans(name: str, in_chans: int) -> None:
    if in_chans < 1:
        raise ValueError(f"{name}: in_chans must be at least 1, got {in_chans}")


def published(*files: str) -> dict[str, str]:
    """Addresses of torchvision's weights by their names there; the last file is the default."""
    urls = [f"https://download.pytorch.org/models/{file}.pth" for file in files]
    return {f"IMAGENET1K_V{i}": url for i, url in enumerate(urls, 1)} | {"DEFAULT": urls[-1]}


def normal_linear(module: nn.Linear) -> None:
    """torchvision's first weights of the MobileNets' classifiers."""
    nn.init.normal_(module.weight, 0, 0.01)


def uniform_linear(module: nn.Linear) -> None:
    """The first weights of EfficientNet's classifier, from its authors' code."""
    bound = module.out_features**-0.5
    nn.init.uniform_(module.weight, -bound, bound)


def kaiming_convolution(module: nn.Conv2d) -> None:
    """torchvision's first weights of convolutions."""
    nn.init.kaiming_normal_(module.weight, mode="fan_out")


def initialize(
    network: nn.Module,
    linear: Callable[[nn.Linear], None] | None = normal_linear,
    convolution: Callable[[nn.Conv2d], None] = kaiming_convolution,
) -> None:
    """Random weights; norms and biases are the identity. Without `linear`, fully connected layers
    keep what PyTorch gave them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            convolution(module)
        elif isinstance(module, nn.Linear) and linear is not None:
            linear(module)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def pooled_features(features: nn.Module, avgpool: nn.Module, input: Tensor) -> Tensor:
    """Features, pooling and flatten; the last 1x1 convolution and the pooling as one native op
    where nobody can tell."""
    parts = list(features) if type(features) is nn.Sequential else []
    watched = any(m._forward_hooks or m._forward_pre_hooks for m in (features, avgpool))
    if watched or not _pools_all(avgpool) or not parts or not isinstance(parts[-1], Conv2dNormAct):
        output: Tensor = avgpool(features(input))
        return output.flatten(1)
    for layer in parts[:-1]:
        input = layer(input)
    return parts[-1].pooled(input)


def pooling(avgpool: nn.Module) -> list[Part]:
    """The pooling of a row of parts, and the flatten behind it."""
    return [Pool()] if _pools_all(avgpool) else [avgpool, nn.Flatten()]


def _pools_all(module: nn.Module) -> bool:
    return type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1))
