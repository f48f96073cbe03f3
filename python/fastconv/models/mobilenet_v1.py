"""MobileNetV1 (https://arxiv.org/abs/1704.04861)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import Conv2d, Linear
from ..nn._chain import composed, native_chain
from ..nn._fused import FusedModule, Native
from ..nn._parts import are_native, native_convolution, native_pooled, read_stage
from ..nn._unit import TrainRow, train_row
from ..nn.depthwise_separable_conv2d import native_separable
from ._common import check_in_chans, initialize, round_channels, uniform_linear
from ._weights import Weights, load_weights

_STEM_CHANNELS = 32
# channels and blocks of each stage; every stage but the first begins with stride 2
_STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))


class MobileNetV1Block(FusedModule):
    """Depthwise (conv_dw, bn1) and 1x1 convolution (conv_pw, bn2), with ReLU6 after each.

    Args:
        in_channels, out_channels: C, K
        stride: of the depthwise convolution
        norm_layer: a module class

    As :class:`fastconv.nn.DepthwiseSeparableConv2d`, but with timm's keys in the state_dict.

    Example:
        >>> block = fastconv.models.MobileNetV1Block(32, 64, stride=2)
        >>> block(torch.randn(1, 32, 112, 112)).shape
        torch.Size([1, 64, 56, 56])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(
            in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = norm_layer(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = norm_layer(out_channels)
        self.act = nn.ReLU6(inplace=True)
        self.out_channels = out_channels

    def _plain_forward(self, input: Tensor) -> Tensor:
        mid = self.act(self.bn1(self.conv_dw(input)))
        output: Tensor = self.act(self.bn2(self.conv_pw(mid)))
        return output

    def pooled(self, input: Tensor) -> Tensor:
        """The mean of the output over H and W, (N, K), without storing the output."""
        hooked = self._forward_hooks or self._forward_pre_hooks
        run = None if hooked else self._native_run(input, "pooled")
        if run is not None:
            return run(input)
        return F.adaptive_avg_pool2d(self(input), (1, 1)).flatten(1)

    def _train_row(self) -> TrainRow | None:
        return train_row([self.conv_dw, self.bn1, self.act, self.conv_pw, self.bn2, self.act])

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        depthwise = read_stage(self.conv_dw, self.bn1, self.act)
        pointwise = read_stage(self.conv_pw, self.bn2, self.act)
        if kind != "pooled":
            return native_separable(depthwise, pointwise, False, pack)
        if pack:
            makers = (
                partial(native_convolution, depthwise, True),
                partial(native_pooled, pointwise, True),
            )
            return native_chain(makers, [self.conv_dw.weight, self.conv_pw.weight])
        first, second = native_convolution(depthwise, False), native_pooled(pointwise, False)
        if first is None or second is None:
            return None
        run = composed([first.run(), second.run()])
        return Native(lambda _, x: run(x), None, None)


class MobileNetV1(FusedModule):
    """MobileNetV1 with the layers, initialization and state_dict keys of timm's mobilenetv1_100.

    In eval mode, where no gradient is wanted, it is one native call of 16 steps: the stem, 13
    blocks, of which the last is two steps and ends with the pooling, and the classifier.

    Args:
        num_classes: of the classifier
        width_mult: factor of all channel counts
        norm_layer: a module class, torch.nn.BatchNorm2d by default
        dropout: probability, before the classifier
        in_chans: input channels

    Raises:
        ValueError: for fewer than one input channel.

    Example:
        >>> model = fastconv.models.MobileNetV1(num_classes=10).eval()
        >>> with torch.inference_mode():
        ...     model(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        norm_layer: Callable[..., nn.Module] | None = None,
        dropout: float = 0.0,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_in_chans("MobileNetV1", in_chans)
        norm_layer = norm_layer or nn.BatchNorm2d
        channels = round_channels(_STEM_CHANNELS * width_mult)
        self.conv_stem = Conv2d(in_chans, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm_layer(channels)
        self.act = nn.ReLU6(inplace=True)
        stages: list[nn.Module] = []
        for index, (stage_channels, layers) in enumerate(_STAGES):
            out_channels = round_channels(stage_channels * width_mult)
            blocks = []
            for first in [True] + [False] * (layers - 1):
                stride = 2 if first and index > 0 else 1
                blocks.append(MobileNetV1Block(channels, out_channels, stride, norm_layer))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.classifier = Linear(channels, num_classes)
        initialize(self, uniform_linear, _initialize_convolution)

    def forward(self, input: Tensor) -> Tensor:
        # A graph is compiled from the layers: the network's own form exists only packed.
        run = None if torch.compiler.is_compiling() else self._native_run(input, "network")
        return self._plain_forward(input) if run is None else run(input)

    def _plain_forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.act(self.bn1(self.conv_stem(input)))
        *body, last = self._blocks() or [self.blocks]
        if isinstance(last, MobileNetV1Block) and not self._is_watched():
            for block in body:
                output = block(output)
            output = last.pooled(output)
        else:
            output = F.adaptive_avg_pool2d(self.blocks(output), (1, 1)).flatten(1)
        output = self.classifier(self.dropout(output))
        return output

    def _stages(self) -> list[nn.Module]:
        return list(self.blocks) if type(self.blocks) is nn.Sequential else []

    def _blocks(self) -> list[nn.Module]:
        """All blocks, none where the stages were replaced."""
        stages = self._stages()
        if any(type(stage) is not nn.Sequential for stage in stages):
            return []
        return [block for stage in stages for block in stage.children()]

    def _is_watched(self) -> bool:
        """Whether somebody looks at what a whole stage gives, or all of them."""
        parts = [self.blocks, *self._stages()]
        return any(part._forward_hooks or part._forward_pre_hooks for part in parts)

    def _layers(self) -> list[nn.Module]:
        layers = [self.blocks, *self._stages(), *self._blocks()]
        return [self.conv_stem, self.bn1, self.act, *layers, self.dropout, self.classifier]

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        """All layers as one native call, with one check of the weights for the whole network."""
        if (
            any(module.training for module in self._layers())
            or type(self.dropout) is not nn.Dropout
        ):
            return None
        forms: list[tuple[nn.Module, str, int]]
        forms = [(block, "forward", 4) for block in self._blocks()]
        if len(forms) == 0 or not isinstance(forms[-1][0], MobileNetV1Block):
            return None
        forms[-1] = (forms[-1][0], "pooled", 4)
        forms.append((self.classifier, "forward", 2))
        weights = [m.weight for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        if not are_native(*weights):
            return None
        makers: list[Callable[[], Native | None]]
        makers = [partial(_native_stem, self.conv_stem, self.bn1, self.act)]
        for layer, form, dims in forms:
            if not isinstance(layer, FusedModule):
                return None
            makers.append(partial(layer.packed_native, form, dims))
        return native_chain(makers, weights)


def mobilenet_v1(weights: Weights = None, **kwargs: Any) -> MobileNetV1:
    """MobileNetV1.

    Args:
        weights: None (random), a state_dict, or the path of one, such as of timm's mobilenetv1_100
        kwargs: for :class:`MobileNetV1`, such as num_classes

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.mobilenet_v1(width_mult=0.5)
    """
    model = MobileNetV1(**kwargs)
    return model if weights is None else load_weights(model, weights)


def _native_stem(convolution: nn.Module, norm: nn.Module, activation: nn.Module) -> Native | None:
    return native_convolution(read_stage(convolution, norm, activation), True)


def _initialize_convolution(module: nn.Conv2d) -> None:
    """As TensorFlow's MobileNets: a depthwise filter feeds one channel, not all of them."""
    fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
    nn.init.normal_(module.weight, 0, (2 / fan_out) ** 0.5)
