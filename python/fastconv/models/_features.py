"""Networks without their classifier, for detection and segmentation."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..nn._parts import two
from .efficientnet import EfficientNet
from .mobilenet_v1 import MobileNetV1
from .mobilenet_v2 import MobileNetV2
from .mobilenet_v3 import MobileNetV3
from .resnet import ResNet
from .vgg import VGG


class _Level(NamedTuple):
    """The last layer of a network at one size of its maps."""

    layer: int
    reduction: int
    channels: int


class FeatureNetwork(nn.Module):
    """The last feature map at each size: :func:`create_model` makes it for ``features_only=True``.

    Args:
        network: a MobileNet, EfficientNet, ResNet or VGG of this package; what is kept of it is
            shared, not copied
        out_indices: which maps, in rising order: 0 is the largest, in steps of 2 from half the
            image's size, for VGG from the image's size; None for all

    `channels` and `reductions` say what each map has, and how many pixels of the image one of its
    pixels stands for, in each direction. Keys of the state_dict are the network's.

    Raises:
        ValueError: for another network, and if there are no such maps.

    Example:
        >>> model = fastconv.models.create_model("mobilenet_v2", features_only=True)
        >>> [tuple(map.shape) for map in model(torch.randn(1, 3, 64, 64))][-1]
        (1, 320, 2, 2)
        >>> model.channels, model.reductions
        ((16, 24, 32, 96, 320), (2, 4, 8, 16, 32))
    """

    def __init__(self, network: nn.Module, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        paths = _paths(network)
        levels = _levels([network.get_submodule(path) for path in paths])
        if out_indices is None:
            out_indices = range(len(levels))
        wanted = list(out_indices)
        if not wanted or wanted != sorted(set(wanted) & set(range(len(levels)))):
            raise ValueError(
                f"{type(network).__name__}: out_indices must be rising numbers from 0 to "
                f"{len(levels) - 1}, got {out_indices!r}"
            )
        chosen = [levels[index] for index in wanted]
        self.channels = tuple(level.channels for level in chosen)
        self.reductions = tuple(level.reduction for level in chosen)
        self._outputs = frozenset(level.layer for level in chosen)
        self._paths = paths[: chosen[-1].layer + 1]
        for path in self._paths:
            _put(self, path, network.get_submodule(path))

    def forward(self, input: Tensor) -> list[Tensor]:
        outputs = []
        for index, path in enumerate(self._paths):
            input = self.get_submodule(path)(input)
            if index in self._outputs:
                outputs.append(input)
        return outputs


def _paths(network: nn.Module) -> list[str]:
    """The layers before the pooling that are features, in the order in which they run."""
    if isinstance(network, MobileNetV1):
        stages = [f"blocks.{name}" for name, _ in network.blocks.named_children()]
        return ["conv_stem", "bn1", "act", *stages]
    if isinstance(network, ResNet):
        return ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    if not isinstance(network, (MobileNetV2, MobileNetV3, EfficientNet, VGG)):
        raise ValueError(
            "FeatureNetwork: network must be a MobileNet, EfficientNet, ResNet or VGG, got "
            f"{type(network).__name__}"
        )
    names = [f"features.{name}" for name, _ in network.get_submodule("features").named_children()]
    # The last 1x1 convolution is for the classifier. MobileNetV3's own such layer comes after the
    # pooling, and its last convolution before counts as features, in timm too.
    return names if isinstance(network, (MobileNetV3, VGG)) else names[:-1]


def _levels(layers: Sequence[nn.Module]) -> list[_Level]:
    levels: list[_Level] = []
    reduction, channels = 1, 0
    for index, layer in enumerate(layers):
        modules = [m for name, m in layer.named_modules() if "downsample" not in name]
        convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
        reduction *= math.prod(convolution.stride[0] for convolution in convolutions)
        reduction *= math.prod(two(m.stride)[0] for m in modules if isinstance(m, nn.MaxPool2d))
        if convolutions:
            channels = convolutions[-1].out_channels
        if levels and levels[-1].reduction == reduction:
            levels.pop()
        levels.append(_Level(index, reduction, channels))
    return levels


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Sequential())
        root = root.get_submodule(parent)
    root.add_module(name, module)
