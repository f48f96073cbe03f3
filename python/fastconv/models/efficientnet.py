"""EfficientNet (https://arxiv.org/abs/1905.11946)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from .._sequence import Part
from ..nn import Conv2dNormAct, FusedMBConv, Linear, MBConv, SqueezeExcite
from ._common import (
    Network,
    check_in_chans,
    initialize,
    pooled_features,
    pooling,
    published,
    round_channels,
    uniform_linear,
)
from ._weights import Weights, load_published


class StageSetting(NamedTuple):
    """Some blocks of EfficientNet, one after the other.

    Args:
        block: :class:`fastconv.nn.MBConv` or :class:`fastconv.nn.FusedMBConv`
        expand_ratio: expanded channels per input channel of each block
        kernel_size: of the depthwise or dense convolutions
        stride: of the first block
        out_channels: of every block
        layers: the number of blocks
    """

    block: type[MBConv] | type[FusedMBConv]
    expand_ratio: int
    kernel_size: int
    stride: int
    out_channels: int
    layers: int


class Scaling(NamedTuple):
    """How a network grows out of B0: factors of channels and blocks, the image size, the dropout.

    The paper's rule: depth grows as 1.2**phi, width as 1.1**phi, the image's sides as 1.15**phi, so
    that one more phi costs about 1.2 * 1.1**2 * 1.15**2 = 1.92 times the multiply-adds. Its authors
    rounded the factors, and took less depth than the rule for the large networks.
    """

    width: float
    depth: float
    resolution: int
    dropout: float

    def apply(self, stages: Sequence[StageSetting]) -> list[StageSetting]:
        """Channels are rounded to multiples of 8, blocks up."""
        return [
            stage._replace(
                out_channels=round_channels(stage.out_channels * self.width),
                layers=math.ceil(stage.layers * self.depth),
            )
            for stage in stages
        ]


_STEM_CHANNELS = 32
_B0 = (
    StageSetting(MBConv, 1, 3, 1, 16, 1),
    StageSetting(MBConv, 6, 3, 2, 24, 2),
    StageSetting(MBConv, 6, 5, 2, 40, 2),
    StageSetting(MBConv, 6, 3, 2, 80, 3),
    StageSetting(MBConv, 6, 5, 1, 112, 3),
    StageSetting(MBConv, 6, 5, 2, 192, 4),
    StageSetting(MBConv, 6, 3, 1, 320, 1),
)
_SCALINGS = (  # B0 to B7
    Scaling(1.0, 1.0, 224, 0.2),
    Scaling(1.0, 1.1, 240, 0.2),
    Scaling(1.1, 1.2, 260, 0.3),
    Scaling(1.2, 1.4, 300, 0.3),
    Scaling(1.4, 1.8, 380, 0.4),
    Scaling(1.6, 2.2, 456, 0.4),
    Scaling(1.8, 2.6, 528, 0.5),
    Scaling(2.0, 3.1, 600, 0.5),
)
_PUBLISHED = (  # B0 to B7
    published("efficientnet_b0_rwightman-7f5810bc"),
    published("efficientnet_b1_rwightman-bac287d4", "efficientnet_b1-c27df63c"),
    published("efficientnet_b2_rwightman-c35c1473"),
    published("efficientnet_b3_rwightman-b3899882"),
    published("efficientnet_b4_rwightman-23ab8bcd"),
    published("efficientnet_b5_lukemelas-1a07897c"),
    published("efficientnet_b6_lukemelas-24a108a5"),
    published("efficientnet_b7_lukemelas-c5b4e57e"),
)


class EfficientNet(Network):
    """EfficientNet, also V2, with torchvision's layers, initialization and state_dict keys.

    In eval mode, where no gradient is wanted, every MBConv block is one native op, and so are the
    stem, and the last 1x1 convolution with pooling and classifier behind it. `resolution` is
    the height and width of the images that a published network is made for, else None.

    Args:
        stages: a :class:`StageSetting` each
        stem_channels: of the first convolution
        dropout: probability, before the classifier
        stochastic_depth_prob: of the blocks, growing from 0 at the first towards this
        num_classes: of the classifier
        norm_layer: a module class, torch.nn.BatchNorm2d by default
        last_channel: of the last convolution, None for 4 times its input
        in_chans: input channels

    Raises:
        ValueError: for no stages, or fewer than one input channel.

    Example:
        >>> model = fastconv.models.efficientnet_b0(num_classes=10).eval()
        >>> with torch.inference_mode():
        ...     model(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 10])
    """

    resolution: int | None = None

    def __init__(
        self,
        stages: Sequence[StageSetting],
        stem_channels: int = _STEM_CHANNELS,
        dropout: float = 0.2,
        stochastic_depth_prob: float = 0.2,
        num_classes: int = 1000,
        norm_layer: Callable[..., nn.Module] | None = None,
        last_channel: int | None = None,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_in_chans("EfficientNet", in_chans)
        if len(stages) == 0:
            raise ValueError(f"EfficientNet: stages must have at least one row, got {stages!r}")
        norm_layer = norm_layer or nn.BatchNorm2d
        kinds: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": nn.SiLU}
        channels = stem_channels
        layers: list[nn.Module] = [Conv2dNormAct(in_chans, channels, stride=2, **kinds)]
        total, made = sum(stage.layers for stage in stages), 0
        for stage in stages:
            blocks = []
            for index in range(stage.layers):
                probability = stochastic_depth_prob * made / total
                blocks.append(_block(stage, channels, index == 0, norm_layer, probability))
                channels = stage.out_channels
                made += 1
            layers.append(nn.Sequential(*blocks))
        if last_channel is None:
            last_channel = 4 * channels
        layers.append(Conv2dNormAct(channels, last_channel, kernel_size=1, **kinds))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout, inplace=True), Linear(last_channel, num_classes)
        )
        initialize(self, uniform_linear)

    def _row(self) -> list[Part]:
        return [self.features, *pooling(self.avgpool), self.classifier]

    def _plain_forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.classifier(pooled_features(self.features, self.avgpool, input))
        return output


def efficientnet_b0(weights: Weights = None, progress: bool = True, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B0, for images of 224x224.

    Args:
        weights: None (random), a path, a state_dict, torchvision's EfficientNet_B0_Weights, or
            "IMAGENET1K_V1" or "DEFAULT", the newest that torchvision has (of B1, also
            "IMAGENET1K_V2"); the last two kinds are downloaded and kept as torch.hub does
        progress: whether a download shows its progress
        kwargs: for :class:`EfficientNet`, such as num_classes, dropout or norm_layer

    Raises:
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.efficientnet_b0(stochastic_depth_prob=0.1, in_chans=1)
    """
    return _build(0, weights, progress, **kwargs)


def efficientnet_b1(weights: Weights = None, progress: bool = True, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B1, for images of 240x240; arguments as for :func:`efficientnet_b0`."""
    return _build(1, weights, progress, **kwargs)


def efficientnet_b2(weights: Weights = None, progress: bool = True, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B2, for images of 260x260; arguments as for :func:`efficientnet_b0`."""
    return _build(2, weights, progress, **kwargs)


def efficientnet_b3(weights: Weights = None, progress: bool = True, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B3, for images of 300x300; arguments as for :func:`efficientnet_b0`."""
    return _build(3, weights, progress, **kwargs)


def efficientnet_b4(weights: Weights = None, progress: bool = True, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B4, for images of 380x380; arguments as for :func:`efficientnet_b0`."""
    return _build(4, weights, progress, **kwargs)


def efficientnet_b5(weights: Weights = None, progress: bool = True, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B5, for images of 456x456; arguments as for :func:`efficientnet_b0`."""
    return _build(5, weights, progress, **kwargs)


def efficientnet_b6(weights: Weights = None, progress: bool = True, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B6, for images of 528x528; arguments as for :func:`efficientnet_b0`."""
    return _build(6, weights, progress, **kwargs)


def efficientnet_b7(weights: Weights = None, progress: bool = True, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B7, for images of 600x600; arguments as for :func:`efficientnet_b0`."""
    return _build(7, weights, progress, **kwargs)


def _build(index: int, weights: Weights, progress: bool, **kwargs: Any) -> EfficientNet:
    scaling = _SCALINGS[index]
    arguments: dict[str, Any] = {"dropout": scaling.dropout}
    if index >= 5:  # as torchvision, whose weights of the large ones are TensorFlow's
        arguments["norm_layer"] = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
    stem_channels = round_channels(_STEM_CHANNELS * scaling.width)
    model = EfficientNet(scaling.apply(_B0), stem_channels, **(arguments | kwargs))
    model.resolution = scaling.resolution
    if weights is None:
        return model
    return load_published(model, weights, _PUBLISHED[index], progress)


def _block(
    stage: StageSetting,
    channels: int,
    is_first: bool,
    norm_layer: Callable[..., nn.Module],
    stochastic_depth_prob: float,
) -> nn.Module:
    kinds: dict[str, Any] = {
        "norm_layer": norm_layer,
        "stochastic_depth_prob": stochastic_depth_prob,
    }
    if stage.block is MBConv:
        kinds["squeeze_excite"] = partial(
            SqueezeExcite, squeeze_channels=max(1, channels // 4), activation=nn.SiLU
        )
    mid = round_channels(channels * stage.expand_ratio)
    stride = stage.stride if is_first else 1
    return stage.block(channels, mid, stage.out_channels, stage.kernel_size, stride, **kinds)
