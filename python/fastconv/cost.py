"""What convolutions cost, as it is taught: parameters, multiplications and bytes, from sizes alone.

Every function counts one image, and of a block its convolutions and linear layers one by one:
norms, activations, poolings, additions and biases multiply nothing here. A size is one int for all
dimensions, (H, W) for an image, or as many ints as there are dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

Size = int | Sequence[int]


@dataclass(frozen=True)
class Cost:
    """What a layer, or a sum of layers, costs for one image. Costs can be added.

    Args:
        parameters: weights and biases
        multiplications: each belongs to one addition, so a FLOP counter says twice as many
        bytes: moved where each layer reads its input and parameters and writes its output once

    Example:
        >>> sum([cost.linear(8, 4), cost.linear(4, 2)], cost.Cost())
        Cost(parameters=46, multiplications=40, bytes=256)
    """

    parameters: int = 0
    multiplications: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(
            self.parameters + other.parameters,
            self.multiplications + other.multiplications,
            self.bytes + other.bytes,
        )


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: Size,
    input_size: Size,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    groups: int = 1,
    output_size: Size | None = None,
    bias: bool = False,
    element_size: int = 4,
) -> Cost:
    """Counts a convolution: every filter is multiplied with the input at every output position.

    Args:
        in_channels: of the input
        out_channels: the number of filters
        kernel: of one filter
        input_size: an int is (H, W) of a square image
        stride: between positions
        padding: at both ends, or "same" for ceil(input / stride) positions
        groups: filters see in_channels / groups channels; in_channels of them are depthwise
        output_size: in the place of stride and padding, where something else decides it
        bias: whether there is one for each filter; not by default, as where BatchNorm follows
        element_size: bytes of a number

    Returns:
        a Cost

    Raises:
        ValueError: for a size or number that no such layer has.

    Example:
        >>> cost.convolution(3, 5, 3, 6)  # 5 filters of 3x3x3 at 4x4 positions
        Cost(parameters=135, multiplications=2160, bytes=1292)
    """
    op = "cost.convolution"
    if output_size is not None and (stride != 1 or padding != 0):
        raise ValueError(
            f"{op}: output_size must stand in the place of stride and padding, "
            f"got {output_size} with {stride} and {padding}"
        )
    image = _size(op, "input_size", input_size, _dims(input_size))
    if output_size is None:
        positions = _output_size(op, image, kernel, stride, padding)
    else:
        positions = _size(op, "output_size", output_size, len(image))
    return _convolution(
        op, (in_channels, out_channels), kernel, image, positions, groups, bias, element_size
    )


def depthwise_separable(
    in_channels: int,
    out_channels: int,
    kernel: Size,
    input_size: Size,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    bias: bool = False,
    element_size: int = 4,
) -> Cost:
    """Counts a depthwise convolution, one filter for each channel, and the 1x1 one after it.

    Args:
        in_channels: of the input, and between the two
        out_channels: of the output
        kernel: of the depthwise convolution
        input_size: an int is (H, W) of a square image
        stride: of the depthwise convolution
        padding: of the depthwise convolution, at both ends, or "same"
        bias: whether each of the two has one
        element_size: bytes of a number

    Returns:
        a Cost

    Raises:
        ValueError: for a size or number that no such layer has.

    Example:
        >>> cost.depthwise_separable(3, 5, 3, 6).multiplications  # 432 + 240
        672

    See "MobileNets" (https://arxiv.org/abs/1704.04861).
    """
    op = "cost.depthwise_separable"
    image = _size(op, "input_size", input_size, _dims(input_size))
    positions = _output_size(op, image, kernel, stride, padding)
    between, out = (in_channels, in_channels), (in_channels, out_channels)
    depthwise = _convolution(op, between, kernel, image, positions, in_channels, bias, element_size)
    pointwise = _convolution(op, out, 1, positions, positions, 1, bias, element_size)
    return depthwise + pointwise


def bottleneck(
    in_channels: int,
    out_channels: int,
    kernel: Size,
    input_size: Size,
    *,
    mid_channels: int,
    bias: bool = False,
    element_size: int = 4,
) -> Cost:
    """Counts a branch of Inception: a 1x1 convolution to few channels, then the larger one, "same".

    Args:
        in_channels: of the input
        out_channels: of the output
        kernel: of the second convolution
        input_size: that of the output too; an int is (H, W) of a square image
        mid_channels: between the two
        bias: whether each of the two has one
        element_size: bytes of a number

    Returns:
        a Cost

    Raises:
        ValueError: for a size or number that no such layer has.

    Example:
        >>> cost.convolution(192, 32, 5, 28, padding="same").multiplications
        120422400
        >>> cost.bottleneck(192, 32, 5, 28, mid_channels=16).multiplications
        12443648

    See "Going Deeper with Convolutions" (https://arxiv.org/abs/1409.4842).
    """
    op = "cost.bottleneck"
    image = _size(op, "input_size", input_size, _dims(input_size))
    mid = _positive(op, "mid_channels", mid_channels)
    reduction, rest = (in_channels, mid), (mid, out_channels)
    return _convolution(op, reduction, 1, image, image, 1, bias, element_size) + _convolution(
        op, rest, kernel, image, image, 1, bias, element_size
    )


def inverted_residual(
    in_channels: int,
    out_channels: int,
    kernel: Size,
    input_size: Size,
    *,
    expand_ratio: float,
    stride: Size = 1,
    squeeze_excite: int | None = None,
    element_size: int = 4,
) -> Cost:
    """Counts an inverted residual block: expand (1x1), depthwise ("same"), project (1x1).

    Args:
        in_channels: of the input
        out_channels: of the output
        kernel: of the depthwise convolution
        input_size: an int is (H, W) of a square image
        expand_ratio: expanded channels per input channel, whose product is rounded; 1 leaves the
            expansion out
        stride: of the depthwise convolution
        squeeze_excite: the channels between the two layers, with biases, of a squeeze-excite before
            the projection; none by default
        element_size: bytes of a number

    Returns:
        a Cost: of the layers one by one, where a fused block moves less

    Raises:
        ValueError: for a size or number that no such block has.

    Example:
        >>> cost.inverted_residual(24, 24, 3, 56, expand_ratio=6).multiplications
        25740288

    See "MobileNetV2" (https://arxiv.org/abs/1801.04381).
    """
    op = "cost.inverted_residual"
    image = _size(op, "input_size", input_size, _dims(input_size))
    positions = _output_size(op, image, kernel, stride, "same")
    ins = _positive(op, "in_channels", in_channels)
    is_number = isinstance(expand_ratio, (int, float)) and math.isfinite(expand_ratio)
    mid = round(ins * expand_ratio) if is_number else 0
    if mid < 1:
        raise ValueError(f"{op}: expand_ratio must give a channel at least, got {expand_ratio!r}")
    project = (mid, out_channels)
    total = _convolution(op, (mid, mid), kernel, image, positions, mid, False, element_size)
    total += _convolution(op, project, 1, positions, positions, 1, False, element_size)
    if expand_ratio != 1:
        expand = (in_channels, mid)
        total += _convolution(op, expand, 1, image, image, 1, False, element_size)
    if squeeze_excite is not None:
        squeezed = _positive(op, "squeeze_excite", squeeze_excite)
        total += linear(mid, squeezed, element_size=element_size)
        total += linear(squeezed, mid, element_size=element_size)
    return total


def linear(
    in_features: int, out_features: int, *, bias: bool = True, element_size: int = 4
) -> Cost:
    """Counts a linear layer, which is a 1x1 convolution at one position.

    Args:
        in_features: of the input
        out_features: of the output
        bias: whether there is one for each output, as in PyTorch by default
        element_size: bytes of a number

    Returns:
        a Cost, of one row of features

    Raises:
        ValueError: for a number that is not positive.

    Example:
        >>> cost.linear(1280, 1000)
        Cost(parameters=1281000, multiplications=1280000, bytes=5133120)
    """
    ins = _positive("cost.linear", "in_features", in_features)
    outs = _positive("cost.linear", "out_features", out_features)
    size = _positive("cost.linear", "element_size", element_size)
    parameters = ins * outs + outs * bias
    return Cost(parameters, ins * outs, size * (ins + parameters + outs))


def separable_ratio(out_channels: int, kernel: Size) -> Fraction:
    """Gives the share of a convolution that is left of it as a depthwise-separable one.

    The same for weights and multiplications, whatever the input: 1 / out_channels, for the
    depthwise part, plus 1 / kernel^2, for the 1x1 one.

    Args:
        out_channels: of both
        kernel: an int is (KH, KW) of a square one

    Returns:
        a Fraction

    Raises:
        ValueError: for a number that is not positive.

    Example:
        >>> ratio = cost.separable_ratio(5, 3)
        >>> ratio, round(float(ratio), 2)
        (Fraction(14, 45), 0.31)

    See "MobileNets" (https://arxiv.org/abs/1704.04861).
    """
    op = "cost.separable_ratio"
    area = math.prod(_size(op, "kernel", kernel, _dims(kernel)))
    return Fraction(1, _positive(op, "out_channels", out_channels)) + Fraction(1, area)


def _convolution(
    op: str,
    channels: tuple[int, int],
    kernel: Size,
    image: tuple[int, ...],
    positions: tuple[int, ...],
    groups: int,
    bias: bool,
    element_size: int,
) -> Cost:
    ins = _positive(op, "in_channels", channels[0])
    outs = _positive(op, "out_channels", channels[1])
    if ins % _positive(op, "groups", groups) or outs % groups:
        raise ValueError(
            f"{op}: groups must divide in_channels and out_channels, {ins} and {outs}, got {groups}"
        )
    area, count = math.prod(_size(op, "kernel", kernel, len(image))), math.prod(positions)
    weights = outs * (ins // groups) * area
    parameters = weights + outs * bias
    moved = ins * math.prod(image) + parameters + outs * count
    return Cost(parameters, weights * count, moved * _positive(op, "element_size", element_size))


def _output_size(
    op: str, image: tuple[int, ...], kernel: Size, stride: Size, padding: Size | str
) -> tuple[int, ...]:
    window = _size(op, "kernel", kernel, len(image))
    steps = _size(op, "stride", stride, len(image))
    if isinstance(padding, str):
        if padding != "same":
            raise ValueError(f'{op}: padding must be an int, a pair or "same", got {padding!r}')
        return tuple(-(-size // step) for size, step in zip(image, steps, strict=True))
    pads = _size(op, "padding", padding, len(image), least=0)
    padded = tuple(size + 2 * pad for size, pad in zip(image, pads, strict=True))
    if any(size < reach for size, reach in zip(padded, window, strict=True)):
        raise ValueError(f"{op}: kernel must fit into the padded input, {padded}, got {window}")
    return tuple(
        (size - reach) // step + 1 for size, reach, step in zip(padded, window, steps, strict=True)
    )


def _dims(size: Size) -> int:
    return len(size) if isinstance(size, Sequence) else 2


def _size(op: str, name: str, size: Size, dims: int, least: int = 1) -> tuple[int, ...]:
    numbers = tuple(size) if isinstance(size, Sequence) else (size,) * dims
    if not numbers or len(numbers) != dims or not all(_is_at_least(n, least) for n in numbers):
        kind = "a positive int" if least else "an int from 0 up"
        raise ValueError(f"{op}: {name} must be {kind} or {dims} of them, got {size!r}")
    return numbers


def _positive(op: str, name: str, number: int) -> int:
    if not _is_at_least(number, 1):
        raise ValueError(f"{op}: {name} must be a positive int, got {number!r}")
    return number


def _is_at_least(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least
