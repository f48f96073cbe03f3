"""EfficientNetV2 (https://arxiv.org/abs/2104.00298)."""

from functools import partial
from typing import Any

from torch import nn

from ..nn import FusedMBConv, MBConv
from ._common import published
from ._weights import Weights, load_published
from .efficientnet import EfficientNet, StageSetting

_S = (
    StageSetting(FusedMBConv, 1, 3, 1, 24, 2),
    StageSetting(FusedMBConv, 4, 3, 2, 48, 4),
    StageSetting(FusedMBConv, 4, 3, 2, 64, 4),
    StageSetting(MBConv, 4, 3, 2, 128, 6),
    StageSetting(MBConv, 6, 3, 1, 160, 9),
    StageSetting(MBConv, 6, 3, 2, 256, 15),
)
_M = (
    StageSetting(FusedMBConv, 1, 3, 1, 24, 3),
    StageSetting(FusedMBConv, 4, 3, 2, 48, 5),
    StageSetting(FusedMBConv, 4, 3, 2, 80, 5),
    StageSetting(MBConv, 4, 3, 2, 160, 7),
    StageSetting(MBConv, 6, 3, 1, 176, 14),
    StageSetting(MBConv, 6, 3, 2, 304, 18),
    StageSetting(MBConv, 6, 3, 1, 512, 5),
)
_L = (
    StageSetting(FusedMBConv, 1, 3, 1, 32, 4),
    StageSetting(FusedMBConv, 4, 3, 2, 64, 7),
    StageSetting(FusedMBConv, 4, 3, 2, 96, 7),
    StageSetting(MBConv, 4, 3, 2, 192, 10),
    StageSetting(MBConv, 6, 3, 1, 224, 19),
    StageSetting(MBConv, 6, 3, 2, 384, 25),
    StageSetting(MBConv, 6, 3, 1, 640, 7),
)
_PUBLISHED_S = published("efficientnet_v2_s-dd5fe13b")
_PUBLISHED_M = published("efficientnet_v2_m-dc08266a")
_PUBLISHED_L = published("efficientnet_v2_l-59c71312")


def efficientnet_v2_s(
    weights: Weights = None, progress: bool = True, **kwargs: Any
) -> EfficientNet:
    """EfficientNetV2-S, for images of 384x384.

    Args:
        weights: None (random), a path, a state_dict, torchvision's EfficientNet_V2_S_Weights, or
            "IMAGENET1K_V1" or "DEFAULT", the same; the last two kinds are downloaded and kept as
            torch.hub does
        progress: whether a download shows its progress
        kwargs: for :class:`EfficientNet`, such as num_classes, dropout or norm_layer

    Raises:
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.efficientnet_v2_s(weights="efficientnet_v2_s-dd5fe13b.pth")
    """
    model = _build(_S, 384, **{"dropout": 0.2, **kwargs})
    return model if weights is None else load_published(model, weights, _PUBLISHED_S, progress)


def efficientnet_v2_m(
    weights: Weights = None, progress: bool = True, **kwargs: Any
) -> EfficientNet:
    """EfficientNetV2-M, for images of 480x480; arguments as for :func:`efficientnet_v2_s`."""
    model = _build(_M, 480, **{"dropout": 0.3, **kwargs})
    return model if weights is None else load_published(model, weights, _PUBLISHED_M, progress)


def efficientnet_v2_l(
    weights: Weights = None, progress: bool = True, **kwargs: Any
) -> EfficientNet:
    """EfficientNetV2-L, for images of 480x480; arguments as for :func:`efficientnet_v2_s`."""
    model = _build(_L, 480, **{"dropout": 0.4, **kwargs})
    return model if weights is None else load_published(model, weights, _PUBLISHED_L, progress)


def _build(stages: tuple[StageSetting, ...], resolution: int, **kwargs: Any) -> EfficientNet:
    arguments: dict[str, Any] = {
        # The stem has the first stage's channels.
        "stem_channels": stages[0].out_channels,
        "norm_layer": partial(nn.BatchNorm2d, eps=0.001),
        "last_channel": 1280,
    }
    model = EfficientNet(stages, **(arguments | kwargs))
    model.resolution = resolution
    return model
