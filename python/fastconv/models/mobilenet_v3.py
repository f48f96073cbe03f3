"""MobileNetV3 (https://arxiv.org/abs/1905.02244)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from .._sequence import Part
from ..nn import Conv2dNormAct, Linear, MBConv, SqueezeExcite
from ._common import (
    Network,
    check_in_chans,
    initialize,
    pooled_features,
    pooling,
    published,
    round_channels,
)
from ._weights import Weights, load_published

_LARGE = published("mobilenet_v3_large-8738ca79", "mobilenet_v3_large-5c1a4163")
_SMALL = published("mobilenet_v3_small-047dcff4")

# Table 1 and 2 of the paper: kernel size, expanded channels, output channels, squeeze-and-excite,
# activation, stride.
_LARGE_BLOCKS = (
    (3, 16, 16, False, nn.ReLU, 1),
    (3, 64, 24, False, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2),
    (5, 120, 40, True, nn.ReLU, 1),
    (5, 120, 40, True, nn.ReLU, 1),
    (3, 240, 80, False, nn.Hardswish, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2),
    (5, 960, 160, True, nn.Hardswish, 1),
    (5, 960, 160, True, nn.Hardswish, 1),
)
_SMALL_BLOCKS = (
    (3, 16, 16, True, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 2),
    (3, 88, 24, False, nn.ReLU, 1),
    (5, 96, 40, True, nn.Hardswish, 2),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 120, 48, True, nn.Hardswish, 1),
    (5, 144, 48, True, nn.Hardswish, 1),
    (5, 288, 96, True, nn.Hardswish, 2),
    (5, 576, 96, True, nn.Hardswish, 1),
    (5, 576, 96, True, nn.Hardswish, 1),
)
_STEM_CHANNELS = 16


class BlockSetting(NamedTuple):
    """One block of MobileNetV3.

    Args:
        kernel_size, stride, dilation: of the depthwise convolution
        mid_channels, out_channels: after expansion, of the output
        squeeze_excite: whether there is one
        activation_layer: a module class
    """

    kernel_size: int
    mid_channels: int
    out_channels: int
    squeeze_excite: bool
    activation_layer: Callable[..., nn.Module]
    stride: int
    dilation: int = 1


class MobileNetV3(Network):
    """MobileNetV3 with torchvision's layers, initialization and state_dict keys.

    In eval mode, where no gradient is wanted, every block is one native op, and so are the stem,
    the last 1x1 convolution with the pooling behind it, and the two layers of the classifier.

    Args:
        blocks: a :class:`BlockSetting` each
        stem_channels: of the first convolution
        last_channel: between the classifier's two layers
        num_classes: of the classifier
        norm_layer: a module class, torch.nn.BatchNorm2d with eps 0.001, momentum 0.01 by default
        dropout: probability, before the classifier's last layer
        in_chans: input channels

    Raises:
        ValueError: for no blocks, or fewer than one input channel.

    Example:
        >>> model = fastconv.models.mobilenet_v3_large(num_classes=10).eval()
        >>> with torch.inference_mode():
        ...     model(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        blocks: Sequence[BlockSetting],
        stem_channels: int,
        last_channel: int,
        num_classes: int = 1000,
        norm_layer: Callable[..., nn.Module] | None = None,
        dropout: float = 0.2,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_in_chans("MobileNetV3", in_chans)
        if len(blocks) == 0:
            raise ValueError(f"MobileNetV3: blocks must have at least one row, got {blocks!r}")
        norm_layer = norm_layer or partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
        kinds: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": nn.Hardswish}
        channels = stem_channels
        layers: list[nn.Module] = [Conv2dNormAct(in_chans, channels, stride=2, **kinds)]
        for row in blocks:
            layers.append(
                MBConv(
                    channels,
                    row.mid_channels,
                    row.out_channels,
                    row.kernel_size,
                    row.stride,
                    row.dilation,
                    norm_layer=norm_layer,
                    activation_layer=row.activation_layer,
                    squeeze_excite=_squeeze_excite if row.squeeze_excite else None,
                )
            )
            channels = row.out_channels
        layers.append(Conv2dNormAct(channels, 6 * channels, kernel_size=1, **kinds))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            Linear(6 * channels, last_channel),
            nn.Hardswish(inplace=True),
            nn.Dropout(p=dropout, inplace=True),
            Linear(last_channel, num_classes),
        )
        initialize(self)

    def _row(self) -> list[Part]:
        return [self.features, *pooling(self.avgpool), self.classifier]

    def _plain_forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.classifier(pooled_features(self.features, self.avgpool, input))
        return output


def mobilenet_v3_large(
    weights: Weights = None, progress: bool = True, **kwargs: Any
) -> MobileNetV3:
    """MobileNetV3-Large.

    Args:
        weights: None (random), a path, a state_dict, torchvision's MobileNet_V3_Large_Weights, or
            "IMAGENET1K_V1", "IMAGENET1K_V2" or "DEFAULT" (V2, as in torchvision); the last two
            kinds are downloaded and kept as torch.hub does
        progress: whether a download shows its progress
        kwargs: width_mult (1.0), the factor of all channel counts; reduced_tail (False), half the
            channels in the last stage; dilated (False), dilation instead of the last stride; and
            those of :class:`MobileNetV3`, such as num_classes

    Raises:
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.mobilenet_v3_large(width_mult=0.75, reduced_tail=True)
    """
    model = _build(_LARGE_BLOCKS, 1280, **kwargs)
    return model if weights is None else load_published(model, weights, _LARGE, progress)


def mobilenet_v3_small(
    weights: Weights = None, progress: bool = True, **kwargs: Any
) -> MobileNetV3:
    """MobileNetV3-Small.

    Args:
        weights: None (random), a path, a state_dict, torchvision's MobileNet_V3_Small_Weights, or
            "IMAGENET1K_V1" or "DEFAULT", the same
        progress, kwargs: as for :func:`mobilenet_v3_large`

    Raises:
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.mobilenet_v3_small(weights="mobilenet_v3_small-047dcff4.pth")
    """
    model = _build(_SMALL_BLOCKS, 1024, **kwargs)
    return model if weights is None else load_published(model, weights, _SMALL, progress)


def _build(
    rows: Sequence[tuple[int, int, int, bool, type[nn.Module], int]],
    last_channel: int,
    *,
    width_mult: float = 1.0,
    reduced_tail: bool = False,
    dilated: bool = False,
    **kwargs: Any,
) -> MobileNetV3:
    # The tail is the last stage, which begins with the last stride; that block's expanded channels
    # still belong to the stage before.
    begin = max(index for index, row in enumerate(rows) if row[-1] == 2)
    blocks = []
    for index, row in enumerate(rows):
        block = BlockSetting(*row, dilation=2 if dilated and index >= begin else 1)
        mid = block.mid_channels // (2 if reduced_tail and index > begin else 1)
        out = block.out_channels // (2 if reduced_tail and index >= begin else 1)
        blocks.append(
            block._replace(
                mid_channels=round_channels(mid * width_mult),
                out_channels=round_channels(out * width_mult),
            )
        )
    last_channel = round_channels(last_channel // (2 if reduced_tail else 1) * width_mult)
    return MobileNetV3(blocks, round_channels(_STEM_CHANNELS * width_mult), last_channel, **kwargs)


def _squeeze_excite(channels: int) -> SqueezeExcite:
    return SqueezeExcite(channels, round_channels(channels // 4), scale_activation=nn.Hardsigmoid)
