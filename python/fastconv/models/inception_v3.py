"""Inception v3 (https://arxiv.org/abs/1512.00567)."""

from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .._sequence import Part
from ..nn import Linear
from ._basic_conv2d import (
    BasicConv2d,
    InceptionNetwork,
    Layer,
    check_transform_input,
    initialize_truncated,
    transformed,
    transforming,
)
from ._branches import Branch, Branches
from ._common import check_in_chans, pooling, published
from ._weights import Weights, load_published

_PUBLISHED = published("inception_v3_google-0cc3c7bd")
# In branches; no children of them, as in torchvision, where they are functions.
_AVERAGE = nn.AvgPool2d(3, stride=1, padding=1)
_LARGEST = nn.MaxPool2d(3, stride=2)


class InceptionOutputs(NamedTuple):
    """What Inception v3 with its auxiliary head returns in train mode, (N, num_classes) each."""

    logits: Tensor
    aux_logits: Tensor | None


class _InceptionA(Branches):
    """Figure 5 of the paper: 1x1, 5x5, two 3x3, and pooling."""

    def __init__(self, in_channels: int, pool_features: int, conv: Layer) -> None:
        super().__init__()
        self.branch1x1 = conv(in_channels, 64, 1)
        self.branch5x5_1 = conv(in_channels, 48, 1)
        self.branch5x5_2 = conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = conv(in_channels, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = conv(96, 96, 3, padding=1)
        self.branch_pool = conv(in_channels, pool_features, 1)

    def _branches(self) -> list[Branch]:
        return [
            [self.branch1x1],
            [self.branch5x5_1, self.branch5x5_2],
            [self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3],
            [_AVERAGE, self.branch_pool],
        ]


class _InceptionB(Branches):
    """From 35x35 to 17x17: 3x3, two 3x3, and pooling, with a stride of 2."""

    def __init__(self, in_channels: int, conv: Layer) -> None:
        super().__init__()
        self.branch3x3 = conv(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = conv(in_channels, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = conv(96, 96, 3, stride=2)

    def _branches(self) -> list[Branch]:
        return [
            [self.branch3x3],
            [self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3],
            [_LARGEST],
        ]


class _InceptionC(Branches):
    """Figure 6 of the paper: windows of 7x7 as 1x7 and 7x1."""

    def __init__(self, in_channels: int, channels_7x7: int, conv: Layer) -> None:
        super().__init__()
        mid = channels_7x7
        self.branch1x1 = conv(in_channels, 192, 1)
        self.branch7x7_1 = conv(in_channels, mid, 1)
        self.branch7x7_2 = conv(mid, mid, (1, 7), padding=(0, 3))
        self.branch7x7_3 = conv(mid, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = conv(in_channels, mid, 1)
        self.branch7x7dbl_2 = conv(mid, mid, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = conv(mid, mid, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = conv(mid, mid, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = conv(mid, 192, (1, 7), padding=(0, 3))
        self.branch_pool = conv(in_channels, 192, 1)

    def _branches(self) -> list[Branch]:
        return [
            [self.branch1x1],
            [self.branch7x7_1, self.branch7x7_2, self.branch7x7_3],
            [
                self.branch7x7dbl_1, self.branch7x7dbl_2, self.branch7x7dbl_3,
                self.branch7x7dbl_4, self.branch7x7dbl_5,
            ],
            [_AVERAGE, self.branch_pool],
        ]  # fmt: skip


class _InceptionD(Branches):
    """From 17x17 to 8x8: 3x3, 7x7 and 3x3, and pooling, with a stride of 2."""

    def __init__(self, in_channels: int, conv: Layer) -> None:
        super().__init__()
        self.branch3x3_1 = conv(in_channels, 192, 1)
        self.branch3x3_2 = conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = conv(in_channels, 192, 1)
        self.branch7x7x3_2 = conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = conv(192, 192, 3, stride=2)

    def _branches(self) -> list[Branch]:
        return [
            [self.branch3x3_1, self.branch3x3_2],
            [self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3, self.branch7x7x3_4],
            [_LARGEST],
        ]


class _InceptionE(Branches):
    """Figure 7 of the paper: branches that end in 1x3 beside 3x1."""

    def __init__(self, in_channels: int, conv: Layer) -> None:
        super().__init__()
        self.branch1x1 = conv(in_channels, 320, 1)
        self.branch3x3_1 = conv(in_channels, 384, 1)
        self.branch3x3_2a = conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = conv(in_channels, 448, 1)
        self.branch3x3dbl_2 = conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = conv(in_channels, 192, 1)

    def _branches(self) -> list[Branch]:
        return [
            [self.branch1x1],
            [self.branch3x3_1, (self.branch3x3_2a, self.branch3x3_2b)],
            [
                self.branch3x3dbl_1, self.branch3x3dbl_2,
                (self.branch3x3dbl_3a, self.branch3x3dbl_3b),
            ],
            [_AVERAGE, self.branch_pool],
        ]  # fmt: skip


class _AuxiliaryHead(nn.Module):
    """A classifier of the 17x17 maps."""

    def __init__(self, in_channels: int, num_classes: int, conv: Layer) -> None:
        super().__init__()
        self.conv0 = conv(in_channels, 128, 1)
        self.conv1 = conv(128, 768, 5)
        self.fc = Linear(768, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        output = self.conv1(self.conv0(F.avg_pool2d(input, 5, stride=3)))
        output = self.fc(F.adaptive_avg_pool2d(output, (1, 1)).flatten(1))
        return output


class InceptionV3(InceptionNetwork):
    """Inception v3 with torchvision's layers, initialization and state_dict keys.

    In train mode, with the auxiliary head, it returns :class:`InceptionOutputs`; images must then
    be large enough for the head, about 299x299.

    Args:
        num_classes: of the classifier, and of the head
        aux_logits: whether there is the auxiliary head, AuxLogits
        transform_input: whether images are normalized anew, from ImageNet's mean and deviation to
            -1 ... 1, for which the published weights were made
        norm_layer: a module class, torch.nn.BatchNorm2d with eps 0.001 by default
        dropout: probability, before the classifier
        in_chans: input channels

    Raises:
        ValueError: for fewer than one input channel, and for transform_input with other than three.

    Example:
        >>> model = fastconv.models.InceptionV3(num_classes=10).eval()
        >>> with torch.inference_mode():
        ...     model(torch.randn(1, 3, 299, 299)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        transform_input: bool = False,
        norm_layer: Layer | None = None,
        dropout: float = 0.5,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_in_chans("InceptionV3", in_chans)
        check_transform_input("InceptionV3", transform_input, in_chans)
        conv = partial(BasicConv2d, norm_layer=norm_layer)
        self.aux_logits = aux_logits
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = conv(in_chans, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, 3)
        self.Conv2d_2b_3x3 = conv(32, 64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = conv(64, 80, 1)
        self.Conv2d_4a_3x3 = conv(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = _InceptionA(192, 32, conv)
        self.Mixed_5c = _InceptionA(256, 64, conv)
        self.Mixed_5d = _InceptionA(288, 64, conv)
        self.Mixed_6a = _InceptionB(288, conv)
        self.Mixed_6b = _InceptionC(768, 128, conv)
        self.Mixed_6c = _InceptionC(768, 160, conv)
        self.Mixed_6d = _InceptionC(768, 160, conv)
        self.Mixed_6e = _InceptionC(768, 192, conv)
        self.AuxLogits: nn.Module | None = None
        if aux_logits:
            self.AuxLogits = _AuxiliaryHead(768, num_classes, conv)
        self.Mixed_7a = _InceptionD(768, conv)
        self.Mixed_7b = _InceptionE(1280, conv)
        self.Mixed_7c = _InceptionE(2048, conv)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(p=dropout)
        self.fc = Linear(2048, num_classes)
        initialize_truncated(self, lambda name: 0.001 if name == "AuxLogits.fc" else 0.1)

    def _row(self) -> list[Part]:
        return [
            *self._transform(),
            self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3, self.maxpool1,
            self.Conv2d_3b_1x1, self.Conv2d_4a_3x3, self.maxpool2,
            self.Mixed_5b, self.Mixed_5c, self.Mixed_5d,
            self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e,
            self.Mixed_7a, self.Mixed_7b, self.Mixed_7c,
            *pooling(self.avgpool), self.dropout, self.fc,
        ]  # fmt: skip

    def _plain_forward(self, input: Tensor) -> Any:
        output = transformed(input) if self.transform_input else input
        output = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(output)))
        output = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(output)))
        output = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(output))))
        output = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(output)))
        output = self.Mixed_6e(self.Mixed_6d(output))
        head = self.AuxLogits if self.training else None
        aux_logits = None if head is None else head(output)
        output = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(output)))
        logits: Tensor = self.fc(self.dropout(self.avgpool(output)).flatten(1))
        if self.training and self.aux_logits:
            return InceptionOutputs(logits, aux_logits)
        return logits

    def _absent_heads(self) -> dict[str, nn.Module]:
        """The head that it was built without: weights may still have it."""
        if self.AuxLogits is not None:
            return {}
        return {"AuxLogits": _AuxiliaryHead(768, self.fc.out_features, BasicConv2d)}


def inception_v3(weights: Weights = None, progress: bool = True, **kwargs: Any) -> InceptionV3:
    """Inception v3, for images of 299x299.

    Args:
        weights: None (random), a path, a state_dict, torchvision's Inception_V3_Weights, or
            "IMAGENET1K_V1" or "DEFAULT", the same; the last two kinds are downloaded and kept as
            torch.hub does
        progress: whether a download shows its progress
        kwargs: for :class:`InceptionV3`, such as num_classes. As in torchvision, transform_input is
            True for what it publishes: by name, as an enum, or as a file of the published name; for
            a state_dict, say so yourself.

    Raises:
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.inception_v3(aux_logits=False)
    """
    model = InceptionV3(**transforming(kwargs, weights, _PUBLISHED))
    return model if weights is None else load_published(model, weights, _PUBLISHED, progress)
