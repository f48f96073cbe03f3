"""Network in Network (https://arxiv.org/abs/1312.4400)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from .._sequence import Part
from ..nn import Conv2dNormAct
from ._common import Network, check_in_chans, initialize, pooled_features, pooling
from ._weights import Weights, load_weights


class NiN(Network):
    """Network in Network for ImageNet, with the layers of the authors' Caffe model.

    Every convolution is followed by two of 1x1, which the paper calls an mlpconv layer; the last of
    all has one channel for each class, and its mean over the map is the output. As in Caffe, a
    pooling window may reach beyond the map's end.

    Args:
        num_classes: channels of the last layer
        norm_layer: a module class behind every convolution; None for none
        dropout: probability, before the last mlpconv layer
        in_chans: input channels

    Raises:
        ValueError: for fewer than one input channel.

    Example:
        >>> model = fastconv.models.NiN(num_classes=10).eval()
        >>> with torch.inference_mode():
        ...     model(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        norm_layer: Callable[..., nn.Module] | None = None,
        dropout: float = 0.5,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_in_chans("NiN", in_chans)

        convolution = partial(Conv2dNormAct, norm_layer=norm_layer)
        pool = partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)
        self.features = nn.Sequential(
            convolution(in_chans, 96, 11, stride=4, padding=0),
            convolution(96, 96, 1),
            convolution(96, 96, 1),
            pool(),
            convolution(96, 256, 5),
            convolution(256, 256, 1),
            convolution(256, 256, 1),
            pool(),
            convolution(256, 384, 3),
            convolution(384, 384, 1),
            convolution(384, 384, 1),
            pool(),
            nn.Dropout(p=dropout),
            convolution(384, 1024, 3),
            convolution(1024, 1024, 1),
            convolution(1024, num_classes, 1),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        initialize(self)

    def _row(self) -> list[Part]:
        return [self.features, *pooling(self.avgpool)]

    def _plain_forward(self, input: Tensor) -> Tensor:
        return pooled_features(self.features, self.avgpool, input)


def nin(weights: Weights = None, **kwargs: Any) -> NiN:
    """Network in Network.

    Args:
        weights: None (random), a state_dict, or the path of one
        kwargs: for :class:`NiN`, such as num_classes

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.nin(num_classes=10)
    """
    model = NiN(**kwargs)
    return model if weights is None else load_weights(model, weights)
