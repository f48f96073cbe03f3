"""GoogLeNet, Inception v1 (https://arxiv.org/abs/1409.4842)."""

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

_PUBLISHED = published("googlenet-1378be20")


class GoogLeNetOutputs(NamedTuple):
    """What GoogLeNet with its auxiliary heads returns in train mode, (N, num_classes) each."""

    logits: Tensor
    aux_logits2: Tensor | None
    aux_logits1: Tensor | None


class Inception(Branches):
    """Four branches side by side: 1x1, 1x1 and 3x3 twice, and pooling and 1x1.

    Args:
        in_channels: C
        ch1x1, ch3x3, ch5x5, pool_proj: channels of the output of each branch
        ch3x3red, ch5x5red: channels between the convolutions of the second and the third
        conv_block: as :class:`BasicConv2d`, which it is by default

    The third branch has a window of 3x3, as in torchvision; the paper has 5x5.

    Example:
        >>> block = fastconv.models.Inception(192, 64, 96, 128, 16, 32, 32)
        >>> block(torch.randn(1, 192, 28, 28)).shape
        torch.Size([1, 256, 28, 28])
    """

    def __init__(
        self,
        in_channels: int,
        ch1x1: int,
        ch3x3red: int,
        ch3x3: int,
        ch5x5red: int,
        ch5x5: int,
        pool_proj: int,
        conv_block: Layer = BasicConv2d,
    ) -> None:
        super().__init__()
        self.branch1 = conv_block(in_channels, ch1x1, 1)
        self.branch2 = nn.Sequential(
            conv_block(in_channels, ch3x3red, 1), conv_block(ch3x3red, ch3x3, 3, padding=1)
        )
        self.branch3 = nn.Sequential(
            conv_block(in_channels, ch5x5red, 1), conv_block(ch5x5red, ch5x5, 3, padding=1)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True),
            conv_block(in_channels, pool_proj, 1),
        )

    def _branches(self) -> list[Branch]:
        return [[self.branch1], [self.branch2], [self.branch3], [self.branch4]]


class _AuxiliaryHead(nn.Module):
    """A classifier of maps from the middle of the network."""

    def __init__(
        self, in_channels: int, num_classes: int, conv_block: Layer, dropout: float
    ) -> None:
        super().__init__()
        self.conv = conv_block(in_channels, 128, 1)
        self.fc1 = Linear(128 * 4 * 4, 1024)
        self.fc2 = Linear(1024, num_classes)
        self.dropout = nn.Dropout(p=dropout)

    def forward(self, input: Tensor) -> Tensor:
        output = self.conv(F.adaptive_avg_pool2d(input, (4, 4))).flatten(1)
        output = self.fc2(self.dropout(F.relu(self.fc1(output))))
        return output


class GoogLeNet(InceptionNetwork):
    """GoogLeNet with torchvision's layers, initialization and state_dict keys.

    As in torchvision, a BatchNorm follows every convolution, which the paper does not have. In
    train mode, with the auxiliary heads, it returns :class:`GoogLeNetOutputs`.

    Args:
        num_classes: of the classifier, and of the heads
        aux_logits: whether there are the two auxiliary heads, aux1 and aux2
        transform_input: whether images are normalized anew, from ImageNet's mean and deviation to
            -1 ... 1, for which the published weights were made
        norm_layer: a module class, torch.nn.BatchNorm2d with eps 0.001 by default
        dropout: probability, before the classifier
        dropout_aux: probability, before the heads' last layers
        in_chans: input channels

    Raises:
        ValueError: for fewer than one input channel, and for transform_input with other than three.

    Example:
        >>> model = fastconv.models.GoogLeNet(num_classes=10)
        >>> [tuple(logits.shape) for logits in model(torch.randn(2, 3, 64, 64))]
        [(2, 10), (2, 10), (2, 10)]
        >>> model.eval()(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        transform_input: bool = False,
        norm_layer: Layer | None = None,
        dropout: float = 0.2,
        dropout_aux: float = 0.7,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_in_chans("GoogLeNet", in_chans)
        check_transform_input("GoogLeNet", transform_input, in_chans)
        conv = partial(BasicConv2d, norm_layer=norm_layer)
        self.aux_logits = aux_logits
        self.transform_input = transform_input
        self.conv1 = conv(in_chans, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32, conv)
        self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64, conv)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64, conv)
        self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64, conv)
        self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64, conv)
        self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64, conv)
        self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128, conv)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128, conv)
        self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128, conv)
        self.aux1: nn.Module | None = None
        self.aux2: nn.Module | None = None
        if aux_logits:
            self.aux1, self.aux2 = _heads(num_classes, conv, dropout_aux)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(p=dropout)
        self.fc = Linear(1024, num_classes)
        initialize_truncated(self, lambda _: 0.01)

    def _row(self) -> list[Part]:
        return [
            *self._transform(),
            self.conv1, self.maxpool1, self.conv2, self.conv3, self.maxpool2,
            self.inception3a, self.inception3b, self.maxpool3,
            self.inception4a, self.inception4b, self.inception4c, self.inception4d,
            self.inception4e, self.maxpool4,
            self.inception5a, self.inception5b,
            *pooling(self.avgpool), self.dropout, self.fc,
        ]  # fmt: skip

    def _plain_forward(self, input: Tensor) -> Any:
        output = transformed(input) if self.transform_input else input
        output = self.conv3(self.conv2(self.maxpool1(self.conv1(output))))
        output = self.inception3b(self.inception3a(self.maxpool2(output)))
        output = self.inception4a(self.maxpool3(output))
        aux_logits1 = self._aux(self.aux1, output)
        output = self.inception4d(self.inception4c(self.inception4b(output)))
        aux_logits2 = self._aux(self.aux2, output)
        output = self.maxpool4(self.inception4e(output))
        output = self.inception5b(self.inception5a(output))
        logits: Tensor = self.fc(self.dropout(self.avgpool(output).flatten(1)))
        if self.training and self.aux_logits:
            return GoogLeNetOutputs(logits, aux_logits2, aux_logits1)
        return logits

    def _aux(self, head: nn.Module | None, input: Tensor) -> Tensor | None:
        return None if head is None or not self.training else head(input)

    def _absent_heads(self) -> dict[str, nn.Module]:
        """The heads that it was built without: weights may still have them."""
        if self.aux1 is not None:
            return {}
        aux1, aux2 = _heads(self.fc.out_features, BasicConv2d, 0.0)
        return {"aux1": aux1, "aux2": aux2}


def _heads(num_classes: int, conv_block: Layer, dropout: float) -> list[nn.Module]:
    channels = (512, 528)  # of inception4a and inception4d
    return [_AuxiliaryHead(count, num_classes, conv_block, dropout) for count in channels]


def googlenet(weights: Weights = None, progress: bool = True, **kwargs: Any) -> GoogLeNet:
    """GoogLeNet.

    Args:
        weights: None (random), a path, a state_dict, torchvision's GoogLeNet_Weights, or
            "IMAGENET1K_V1" or "DEFAULT", the same; the last two kinds are downloaded and kept as
            torch.hub does
        progress: whether a download shows its progress
        kwargs: for :class:`GoogLeNet`, such as num_classes. As in torchvision, with weights
            aux_logits is False if it is not given, and the published ones have heads that nobody
            trained. transform_input is True for what torchvision publishes: by name, as an enum,
            or as a file of the published name; for a state_dict, say so yourself.

    Raises:
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.googlenet(weights="googlenet-1378be20.pth").eval()
    """
    kwargs = {"aux_logits": weights is None} | transforming(kwargs, weights, _PUBLISHED)
    model = GoogLeNet(**kwargs)
    return model if weights is None else load_published(model, weights, _PUBLISHED, progress)
