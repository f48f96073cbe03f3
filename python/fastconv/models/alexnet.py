"""AlexNet, the one-column network of https://arxiv.org/abs/1404.5997."""

from typing import Any

from torch import Tensor, nn

from .._sequence import Part
from ..nn import Conv2d, Linear
from ._common import Network, check_in_chans, published
from ._weights import Weights, load_published

_PUBLISHED = published("alexnet-owt-7be5be79")


class AlexNet(Network):
    """AlexNet with torchvision's layers, initialization and state_dict keys.

    Args:
        num_classes: of the classifier
        dropout: probability, before the classifier's first two layers
        in_chans: input channels

    Raises:
        ValueError: for fewer than one input channel.

    Example:
        >>> model = fastconv.models.AlexNet(num_classes=10).eval()
        >>> with torch.inference_mode():
        ...     model(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5, in_chans: int = 3) -> None:
        super().__init__()
        check_in_chans("AlexNet", in_chans)
        self.features = nn.Sequential(
            Conv2d(in_chans, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout),
            Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            Linear(4096, 4096),
            nn.ReLU(inplace=True),
            Linear(4096, num_classes),
        )

    def _row(self) -> list[Part]:
        return [self.features, self.avgpool, nn.Flatten(), self.classifier]

    def _plain_forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.avgpool(self.features(input)).flatten(1))
        return output


def alexnet(weights: Weights = None, progress: bool = True, **kwargs: Any) -> AlexNet:
    """AlexNet.

    Args:
        weights: None (random), a path, a state_dict, torchvision's AlexNet_Weights, or
            "IMAGENET1K_V1" or "DEFAULT", the same; the last two kinds are downloaded and kept as
            torch.hub does
        progress: whether a download shows its progress
        kwargs: for :class:`AlexNet`, such as num_classes

    Raises:
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.alexnet(weights="alexnet-owt-7be5be79.pth").eval()
    """
    model = AlexNet(**kwargs)
    return model if weights is None else load_published(model, weights, _PUBLISHED, progress)
