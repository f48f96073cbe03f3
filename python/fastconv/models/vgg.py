"""VGG (https://arxiv.org/abs/1409.1556)."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .._sequence import Part
from ..nn import Conv2d, Linear
from ._common import Network, check_in_chans, initialize, published
from ._weights import Weights, load_published

# Table 1 of the paper: 3x3 convolutions of each stage, which ends with a pooling.
_CHANNELS = (64, 128, 256, 512, 512)
_LAYERS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_PUBLISHED = {
    "vgg11": published("vgg11-8a719046"),
    "vgg11_bn": published("vgg11_bn-6002323d"),
    "vgg13": published("vgg13-19584684"),
    "vgg13_bn": published("vgg13_bn-abd245e5"),
    "vgg16": published("vgg16-397923af")
    | {"IMAGENET1K_FEATURES": published("vgg16_features-amdegroot-88682ab5")["DEFAULT"]},
    "vgg16_bn": published("vgg16_bn-6c64b313"),
    "vgg19": published("vgg19-dcbb9e9d"),
    "vgg19_bn": published("vgg19_bn-c79401a0"),
}


class VGG(Network):
    """VGG with torchvision's layers, initialization and state_dict keys.

    Args:
        layers: convolutions in each of the five stages
        num_classes: of the classifier
        norm_layer: a module class behind every convolution; None for none
        dropout: probability, behind the classifier's first two layers
        in_chans: input channels

    Raises:
        ValueError: if there are not five stages, or for fewer than one input channel.

    Example:
        >>> model = fastconv.models.VGG((1, 1, 1, 1, 1), num_classes=10).eval()
        >>> with torch.inference_mode():
        ...     model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_classes: int = 1000,
        norm_layer: Callable[..., nn.Module] | None = None,
        dropout: float = 0.5,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_in_chans("VGG", in_chans)
        if len(layers) != len(_CHANNELS) or min(layers) < 1:
            raise ValueError(
                f"VGG: layers must be {len(_CHANNELS)} numbers of at least 1, got {layers!r}"
            )
        parts: list[nn.Module] = []
        channels = in_chans
        for out_channels, count in zip(_CHANNELS, layers, strict=True):
            for _ in range(count):
                parts.append(Conv2d(channels, out_channels, 3, padding=1))
                if norm_layer is not None:
                    parts.append(norm_layer(out_channels))
                parts.append(nn.ReLU(inplace=True))
                channels = out_channels
            parts.append(nn.MaxPool2d(2, stride=2))
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            Linear(channels * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            Linear(4096, num_classes),
        )
        initialize(self)

    def _row(self) -> list[Part]:
        return [self.features, self.avgpool, nn.Flatten(), self.classifier]

    def _plain_forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.avgpool(self.features(input)).flatten(1))
        return output


def vgg11(weights: Weights = None, progress: bool = True, **kwargs: Any) -> VGG:
    """VGG with 11 layers, configuration A of the paper.

    Args:
        weights: None (random), a path, a state_dict, torchvision's VGG11_Weights, or
            "IMAGENET1K_V1" or "DEFAULT", the same; the last two kinds are downloaded and kept as
            torch.hub does
        progress: whether a download shows its progress
        kwargs: for :class:`VGG`, such as num_classes

    Raises:
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.vgg11(num_classes=10)
    """
    return _build("vgg11", 11, weights, progress, **kwargs)


def vgg13(weights: Weights = None, progress: bool = True, **kwargs: Any) -> VGG:
    """VGG with 13 layers, configuration B; arguments as for :func:`vgg11`."""
    return _build("vgg13", 13, weights, progress, **kwargs)


def vgg16(weights: Weights = None, progress: bool = True, **kwargs: Any) -> VGG:
    """VGG with 16 layers, configuration D; arguments as for :func:`vgg11`.

    "IMAGENET1K_FEATURES" are published weights, too: those of the convolutions are for SSD, and the
    classifier's are no numbers.
    """
    return _build("vgg16", 16, weights, progress, **kwargs)


def vgg19(weights: Weights = None, progress: bool = True, **kwargs: Any) -> VGG:
    """VGG with 19 layers, configuration E; arguments as for :func:`vgg11`."""
    return _build("vgg19", 19, weights, progress, **kwargs)


def vgg11_bn(weights: Weights = None, progress: bool = True, **kwargs: Any) -> VGG:
    """VGG with 11 layers and BatchNorm; arguments as for :func:`vgg11`."""
    return _build("vgg11_bn", 11, weights, progress, **_with_norm(kwargs))


def vgg13_bn(weights: Weights = None, progress: bool = True, **kwargs: Any) -> VGG:
    """VGG with 13 layers and BatchNorm; arguments as for :func:`vgg11`."""
    return _build("vgg13_bn", 13, weights, progress, **_with_norm(kwargs))


def vgg16_bn(weights: Weights = None, progress: bool = True, **kwargs: Any) -> VGG:
    """VGG with 16 layers and BatchNorm; arguments as for :func:`vgg11`."""
    return _build("vgg16_bn", 16, weights, progress, **_with_norm(kwargs))


def vgg19_bn(weights: Weights = None, progress: bool = True, **kwargs: Any) -> VGG:
    """VGG with 19 layers and BatchNorm; arguments as for :func:`vgg11`."""
    return _build("vgg19_bn", 19, weights, progress, **_with_norm(kwargs))


def _with_norm(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"norm_layer": nn.BatchNorm2d} | kwargs


def _build(name: str, depth: int, weights: Weights, progress: bool, **kwargs: Any) -> VGG:
    model = VGG(_LAYERS[depth], **kwargs)
    return model if weights is None else load_published(model, weights, _PUBLISHED[name], progress)
