"""ResNet (https://arxiv.org/abs/1512.03385)."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .._sequence import Part
from ..nn import Conv2d, Conv2dNormAct, Linear
from ..nn._fused import FusedModule, Native
from ..nn._graph import INPUT, Graph
from ..nn._parts import native_convolution, read_sequence, read_stage
from ._common import Network, check_in_chans, initialize, pooling, published
from ._weights import Weights, load_published

Layer = Callable[..., nn.Module]
Pair = tuple[nn.Module, nn.Module]  # a convolution and its norm

_CHANNELS = (64, 128, 256, 512)
_PUBLISHED = {
    "resnet18": published("resnet18-f37072fd"),
    "resnet34": published("resnet34-b627a593"),
    "resnet50": published("resnet50-0676ba61", "resnet50-11ad3fa6"),
    "resnet101": published("resnet101-63fe2227", "resnet101-cd907fc2"),
    "resnet152": published("resnet152-394f9c45", "resnet152-f82ba261"),
}


class _Block(FusedModule):
    """Convolutions, and the input, or what `downsample` makes of it, added before the last ReLU."""

    expansion = 1
    relu: nn.Module
    downsample: nn.Module | None

    def _pairs(self) -> list[Pair]:
        """The convolutions with their norms."""
        raise NotImplementedError

    def zero_initialize(self) -> None:
        """Makes the block begin as the identity, or as `downsample`."""
        _, norm = self._pairs()[-1]
        for parameter in (norm.weight, norm.bias):
            if isinstance(parameter, Tensor):
                nn.init.zeros_(parameter)

    def _plain_forward(self, input: Tensor) -> Tensor:
        *front, (convolution, norm) = self._pairs()
        output = input
        for first, first_norm in front:
            output = self.relu(first_norm(first(output)))
        output = norm(convolution(output))
        output += input if self.downsample is None else self.downsample(input)
        return self.relu(output)

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        *front, last = self._pairs()
        graph = Graph(pack)
        residual = last_map = INPUT
        if self.downsample is not None:
            shortcut = native_convolution(read_sequence(self.downsample), pack)
            residual = graph.add(shortcut, INPUT)
        for convolution, norm in front:
            stage = read_stage(convolution, norm, self.relu)
            last_map = graph.add(native_convolution(stage, pack), last_map)
        graph.add_residual(*last, self.relu, last_map, residual)
        return graph.native()


class BasicBlock(_Block):
    """Two 3x3 convolutions and a residual: the block of ResNet-18 and ResNet-34.

    Args:
        inplanes, planes: C, K
        stride: of the first convolution
        downsample: makes of the input what is added, where it does not fit; None for the input
        groups, base_width, dilation: 1, 64 and 1; others are for :class:`Bottleneck`
        norm_layer: a module class, torch.nn.BatchNorm2d by default

    Raises:
        ValueError: for other groups, base_width or dilation.

    Example:
        >>> block = fastconv.models.BasicBlock(64, 64)
        >>> block(torch.randn(1, 64, 56, 56)).shape
        torch.Size([1, 64, 56, 56])
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Layer | None = None,
    ) -> None:
        super().__init__()
        wanted = {"groups": (groups, 1), "base_width": (base_width, 64), "dilation": (dilation, 1)}
        for name, (value, only) in wanted.items():
            if value != only:
                raise ValueError(f"BasicBlock: {name} must be {only}, got {value}")
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.stride = stride

    def _pairs(self) -> list[Pair]:
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolution and a residual: the block of ResNet-50 and deeper ones.

    Args:
        inplanes, planes: C, K / 4
        stride: of the 3x3 convolution
        downsample: makes of the input what is added, where it does not fit; None for the input
        groups, dilation: of the 3x3 convolution
        base_width: channels of the 3x3 convolution for each group and 64 planes
        norm_layer: a module class, torch.nn.BatchNorm2d by default

    The stride is that of the 3x3 convolution, as in torchvision; the paper has it in the first 1x1.
    In eval mode, where no gradient is wanted, every convolution is one native op, and the residual
    and the ReLU behind it are a part of the last one.

    Example:
        >>> block = fastconv.models.Bottleneck(256, 64)
        >>> block(torch.randn(1, 256, 56, 56)).shape
        torch.Size([1, 256, 56, 56])

    See :func:`fastconv.pointwise_conv2d`.
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Layer | None = None,
    ) -> None:
        super().__init__()
        norm_layer = norm_layer or nn.BatchNorm2d
        width = planes * base_width // 64 * groups
        self.conv1 = nn.Conv2d(inplanes, width, 1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, groups, bias=False)
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, planes * self.expansion, 1, bias=False)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def _pairs(self) -> list[Pair]:
        return [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]


class ResNet(Network):
    """ResNet with torchvision's arguments, initialization and state_dict keys.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`
        layers: blocks in each of the four stages
        num_classes: of the classifier
        zero_init_residual: whether the last norm of every block begins with zeros, and the block
            as the identity
        groups, width_per_group: of the blocks' 3x3 convolutions; ResNeXt and Wide ResNet have other
            ones
        replace_stride_with_dilation: for each of the last three stages, whether its stride is 1 and
            what comes behind is dilated instead
        norm_layer: a module class, torch.nn.BatchNorm2d by default
        in_chans: input channels

    Raises:
        ValueError: if there are not four stages, or for fewer than one input channel.

    Example:
        >>> model = fastconv.models.ResNet(fastconv.models.BasicBlock, (1, 1, 1, 1)).eval()
        >>> with torch.inference_mode():
        ...     model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: Layer | None = None,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_in_chans("ResNet", in_chans)
        dilated = [False, *(replace_stride_with_dilation or (False, False, False))]
        if len(layers) != len(_CHANNELS) or min(layers) < 1:
            raise ValueError(f"ResNet: layers must be 4 numbers of at least 1, got {layers!r}")
        if len(dilated) != len(_CHANNELS):
            raise ValueError(
                "ResNet: replace_stride_with_dilation must have 3 values, got "
                f"{replace_stride_with_dilation!r}"
            )
        norm_layer = norm_layer or nn.BatchNorm2d
        kinds: dict[str, Any] = {"base_width": width_per_group, "norm_layer": norm_layer}
        channels = _CHANNELS[0]
        self.conv1 = Conv2d(in_chans, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        dilation = 1
        stages: list[nn.Module] = []
        for index, (planes, count) in enumerate(zip(_CHANNELS, layers, strict=True)):
            out_channels = planes * block.expansion
            blocks: list[nn.Module] = []
            for first in [True] + [False] * (count - 1):
                stride = 2 if first and index > 0 and not dilated[index] else 1
                downsample = None
                if stride > 1 or channels != out_channels:
                    downsample = Conv2dNormAct(
                        channels, out_channels, 1, stride, norm_layer=norm_layer,
                        activation_layer=None,
                    )  # fmt: skip
                blocks.append(
                    block(channels, planes, stride, downsample, groups, dilation=dilation, **kinds)
                )
                if first and dilated[index]:
                    dilation *= 2  # from the block on that follows the missing stride
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = Linear(channels, num_classes)
        initialize(self, linear=None)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, _Block):
                    module.zero_initialize()

    def _stages(self) -> list[nn.Module]:
        stem = [self.conv1, self.bn1, self.relu, self.maxpool]
        return [*stem, self.layer1, self.layer2, self.layer3, self.layer4]

    def _row(self) -> list[Part]:
        return [*self._stages(), *pooling(self.avgpool), self.fc]

    def _plain_forward(self, input: Tensor) -> Tensor:
        for stage in self._stages():
            input = stage(input)
        output: Tensor = self.fc(self.avgpool(input).flatten(1))
        return output


def resnet18(weights: Weights = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-18; arguments as for :func:`resnet50`."""
    return _build("resnet18", BasicBlock, (2, 2, 2, 2), weights, progress, **kwargs)


def resnet34(weights: Weights = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-34; arguments as for :func:`resnet50`."""
    return _build("resnet34", BasicBlock, (3, 4, 6, 3), weights, progress, **kwargs)


def resnet50(weights: Weights = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-50.

    Args:
        weights: None (random), a path, a state_dict, torchvision's ResNet50_Weights, or one of
            "IMAGENET1K_V1", "IMAGENET1K_V2" (of the deeper three) and "DEFAULT" (the latest); the
            last two kinds are downloaded and kept as torch.hub does
        progress: whether a download shows its progress
        kwargs: for :class:`ResNet`, such as num_classes

    Raises:
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.resnet50(weights="resnet50-11ad3fa6.pth").eval()
    """
    return _build("resnet50", Bottleneck, (3, 4, 6, 3), weights, progress, **kwargs)


def resnet101(weights: Weights = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-101; arguments as for :func:`resnet50`."""
    return _build("resnet101", Bottleneck, (3, 4, 23, 3), weights, progress, **kwargs)


def resnet152(weights: Weights = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-152; arguments as for :func:`resnet50`."""
    return _build("resnet152", Bottleneck, (3, 8, 36, 3), weights, progress, **kwargs)


def _build(
    name: str,
    block: type[BasicBlock] | type[Bottleneck],
    layers: Sequence[int],
    weights: Weights,
    progress: bool,
    **kwargs: Any,
) -> ResNet:
    model = ResNet(block, layers, **kwargs)
    return model if weights is None else load_published(model, weights, _PUBLISHED[name], progress)
