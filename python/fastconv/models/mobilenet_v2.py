"""MobileNetV2 (https://arxiv.org/abs/1801.04381)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import Conv2dNormAct, InvertedResidual, Linear
from ..nn._chain import native_chain
from ..nn._fused import FusedModule, Native
from ..nn._parts import are_native
from ._common import check_in_chans, initialize, round_channels
from ._weights import Weights, load_published

# As torchvision publishes them, with ImageNet accuracies of 71.878 % and 72.154 %.
_PUBLISHED = {
    "IMAGENET1K_V1": "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    "IMAGENET1K_V2": "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth",
    "DEFAULT": "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth",
}

# expand ratio, output channels, blocks, stride of the first block
_SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(FusedModule):
    """MobileNetV2 with torchvision's arguments, initialization and state_dict keys.

    In eval mode, where no gradient is wanted, it is one native call of 20 steps: the stem, one for
    each block, the 1x1 convolution with the pooling behind it, and the classifier.

    Args:
        num_classes: of the classifier
        width_mult: factor of all channel counts
        inverted_residual_setting: rows of expand ratio, channels, blocks, stride of the first block
        round_nearest: channel counts are rounded to multiples of this
        block: a module class, called as :class:`fastconv.nn.InvertedResidual`
        norm_layer: a module class, torch.nn.BatchNorm2d by default
        dropout: probability, before the classifier
        in_chans: input channels

    Example:
        >>> model = fastconv.models.MobileNetV2(num_classes=10).eval()
        >>> with torch.inference_mode():
        ...     model(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        inverted_residual_setting: Sequence[Sequence[int]] | None = None,
        round_nearest: int = 8,
        block: Callable[..., nn.Module] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        dropout: float = 0.2,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_in_chans("MobileNetV2", in_chans)
        block = block or InvertedResidual
        norm_layer = norm_layer or nn.BatchNorm2d
        setting = _SETTING if inverted_residual_setting is None else inverted_residual_setting
        if len(setting) == 0 or any(len(row) != 4 for row in setting):
            raise ValueError(
                "MobileNetV2: inverted_residual_setting must be rows of 4 numbers, got "
                f"{inverted_residual_setting!r}"
            )
        kinds: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": nn.ReLU6}
        channels = round_channels(32 * width_mult, round_nearest)
        self.last_channel = round_channels(1280 * max(1.0, width_mult), round_nearest)
        layers: list[nn.Module] = [Conv2dNormAct(in_chans, channels, stride=2, **kinds)]
        for expand_ratio, row_channels, blocks, first_stride in setting:
            oup = round_channels(row_channels * width_mult, round_nearest)
            for index in range(blocks):
                stride = first_stride if index == 0 else 1
                layers.append(
                    block(channels, oup, stride, expand_ratio=expand_ratio, norm_layer=norm_layer)
                )
                channels = oup
        layers.append(Conv2dNormAct(channels, self.last_channel, kernel_size=1, **kinds))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout), Linear(self.last_channel, num_classes)
        )
        initialize(self)

    def forward(self, input: Tensor) -> Tensor:
        # A graph is compiled from the layers: the network's own form exists only packed.
        run = None if torch.compiler.is_compiling() else self._native_run(input, "network")
        return self._plain_forward(input) if run is None else run(input)

    def _layers(self) -> list[nn.Module]:
        parts = (self.features, self.classifier)
        if any(type(part) is not nn.Sequential or len(part) == 0 for part in parts):
            return []
        return [*parts, *self.features, *self.classifier]

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        """All layers as one native call, with one check of the weights for the whole network."""
        modules = self._layers()
        if len(modules) == 0 or any(module.training for module in modules):
            return None
        *front, head = self.features
        rest = [module for module in self.classifier if type(module) is not nn.Dropout]
        if len(rest) != 1 or getattr(type(head), "pooled", None) is not Conv2dNormAct.pooled:
            return None
        forms = [(layer, "forward", 4) for layer in front]
        forms += [(head, "pooled", 4), (rest[0], "forward", 2)]
        inside = [module for layer, *_ in forms for module in layer.modules()]
        weights = [m.weight for m in inside if isinstance(m, (nn.Conv2d, nn.Linear))]
        if len(weights) == 0 or not are_native(*weights):
            return None
        makers = [
            partial(layer.packed_native, form, dims)
            for layer, form, dims in forms
            if isinstance(layer, FusedModule)
        ]
        return native_chain(makers, weights) if len(makers) == len(forms) else None

    def _plain_forward(self, input: Tensor) -> Tensor:
        *body, head = self.features
        hooked = self.features._forward_hooks or self.features._forward_pre_hooks
        if hooked or not isinstance(head, Conv2dNormAct):
            pooled = F.adaptive_avg_pool2d(self.features(input), (1, 1)).flatten(1)
        else:
            for layer in body:
                input = layer(input)
            pooled = head.pooled(input)
        output: Tensor = self.classifier(pooled)
        return output


def mobilenet_v2(weights: Weights = None, progress: bool = True, **kwargs: Any) -> MobileNetV2:
    """MobileNetV2.

    Args:
        weights: None (random), a path, a state_dict, torchvision's MobileNet_V2_Weights, or
            "IMAGENET1K_V1", "IMAGENET1K_V2" or "DEFAULT" (V2, as in torchvision); the last two
            kinds are downloaded and kept as torch.hub does
        progress: whether a download shows its progress
        kwargs: for :class:`MobileNetV2`, such as num_classes

    Raises:
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.mobilenet_v2(weights="mobilenet_v2-b0353104.pth").eval()
    """
    model = MobileNetV2(**kwargs)
    return model if weights is None else load_published(model, weights, _PUBLISHED, progress)
