"""The textbook's numbers, and those of PyTorch's counter for layers that nobody thought of."""

import doctest
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastconv import cost, models, summary
from fastconv.cost import Cost
from fastconv.nn import InvertedResidual, SqueezeExcite

from .test_properties import check

SMALL = st.integers(1, 6)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def counted(module, channels, size):
    """Parameters and multiplications as PyTorch sees them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.to("meta")(torch.empty(1, channels, *size, device="meta"))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return sum(parameter.numel() for parameter in module.parameters()), flops // 2


def both(result):
    return result.parameters, result.multiplications


def test_the_textbook_convolution():
    full = cost.convolution(3, 5, 3, 6)
    assert full == Cost(135, 2160, 4 * (3 * 36 + 135 + 5 * 16))
    assert cost.convolution(3, 5, (3, 3), (6, 6), output_size=4) == full
    assert cost.convolution(3, 5, 3, 6, bias=True).parameters == 140
    assert cost.convolution(3, 5, 3, 6, element_size=2).bytes * 2 == full.bytes


def test_the_textbook_depthwise_separable():
    depthwise, pointwise = cost.convolution(3, 3, 3, 6, groups=3), cost.convolution(3, 5, 1, 4)
    assert (depthwise.multiplications, pointwise.multiplications) == (432, 240)
    both_together = cost.depthwise_separable(3, 5, 3, 6)
    assert both_together == depthwise + pointwise
    assert both_together.multiplications == 672
    assert round(672 / 2160, 2) == 0.31
    assert cost.separable_ratio(5, 3) == Fraction(672, 2160) == Fraction(1, 5) + Fraction(1, 9)
    assert round(float(cost.separable_ratio(512, 3)), 2) == 0.11  # a ninth, nearly


def test_the_textbook_bottleneck():
    direct = cost.convolution(192, 32, 5, 28, padding="same")
    assert direct.multiplications == 28 * 28 * 32 * 5 * 5 * 192 == 120_422_400
    reduction = cost.convolution(192, 16, 1, 28)
    rest = cost.convolution(16, 32, 5, 28, padding=2)
    assert (reduction.multiplications, rest.multiplications) == (2_408_448, 10_035_200)
    branch = cost.bottleneck(192, 32, 5, 28, mid_channels=16)
    assert branch == reduction + rest
    assert branch.multiplications == 12_443_648
    biased = cost.bottleneck(192, 32, 5, 28, mid_channels=16, bias=True)
    assert biased.parameters == branch.parameters + 16 + 32


def test_costs_add_up():
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)
    assert sum([Cost(1, 2, 3), Cost(4, 5, 6)], Cost()) == Cost(5, 7, 9)
    with pytest.raises(TypeError, match="unsupported operand"):
        Cost() + 1
    with pytest.raises(AttributeError):
        Cost().parameters = 1


def test_linear():
    assert cost.linear(4, 3) == Cost(15, 12, 4 * (4 + 15 + 3))
    assert cost.linear(4, 3, bias=False, element_size=1) == Cost(12, 12, 19)


@check
@given(data=st.data(), dims=st.integers(1, 3), bias=st.booleans(), same=st.booleans())
def test_convolution_is_what_pytorch_counts(data, dims, bias, same):
    def draw(least, most, count=dims):
        return data.draw(st.tuples(*[st.integers(least, most)] * count))

    (groups,) = draw(1, 4, 1)
    ins, outs = (groups * part for part in draw(1, 6, 2))
    kernel, size = draw(1, 5), draw(1, 9)
    stride, padding = (1, "same") if same else (draw(1, 3), draw(0, 2))
    options = {"stride": stride, "padding": padding, "groups": groups, "bias": bias}
    layer = CONVOLUTIONS[dims - 1](ins, outs, kernel, **options).to("meta")
    image = torch.empty(1, ins, *size, device="meta")
    if not same and any(k > n + 2 * p for k, n, p in zip(kernel, size, padding, strict=True)):
        with pytest.raises(RuntimeError, match="can't be greater than actual input size"):
            layer(image)
        with pytest.raises(ValueError, match="kernel must fit into the padded input"):
            cost.convolution(ins, outs, kernel, size, **options)
        return
    ours = cost.convolution(ins, outs, kernel, size, **options)
    assert both(ours) == counted(layer, ins, size)
    assert ours.bytes == 4 * (image.numel() + ours.parameters + layer(image).numel())


@check
@given(
    ins=SMALL, outs=SMALL, kernel=st.integers(1, 4), size=st.tuples(SMALL, SMALL),
    stride=st.integers(1, 3), padding=st.integers(0, 2), bias=st.booleans(),
)  # fmt: skip
def test_depthwise_separable_is_what_pytorch_counts(ins, outs, kernel, size, stride, padding, bias):
    assume(kernel <= min(size) + 2 * padding)
    module = nn.Sequential(
        nn.Conv2d(ins, ins, kernel, stride, padding, groups=ins, bias=bias),
        nn.Conv2d(ins, outs, 1, bias=bias),
    )
    options = {"stride": stride, "padding": padding, "bias": bias}
    ours = cost.depthwise_separable(ins, outs, kernel, size, **options)
    assert both(ours) == counted(module, ins, size)
    if bias:
        return
    full = cost.convolution(ins, outs, kernel, size, stride=stride, padding=padding)
    ratio = cost.separable_ratio(outs, kernel)
    assert ours.parameters == ratio * full.parameters
    assert ours.multiplications == ratio * full.multiplications


@check
@given(
    ins=SMALL, mid=SMALL, outs=SMALL, kernel=st.integers(1, 5), size=st.tuples(SMALL, SMALL),
    bias=st.booleans(),
)  # fmt: skip
def test_bottleneck_is_what_pytorch_counts(ins, mid, outs, kernel, size, bias):
    module = nn.Sequential(
        nn.Conv2d(ins, mid, 1, bias=bias),
        nn.Conv2d(mid, outs, kernel, padding="same", bias=bias),
    )
    ours = cost.bottleneck(ins, outs, kernel, size, mid_channels=mid, bias=bias)
    assert both(ours) == counted(module, ins, size)


@check
@given(
    ins=SMALL, outs=SMALL, kernel=st.sampled_from((1, 3, 5)), size=st.tuples(SMALL, SMALL),
    ratio=st.sampled_from((1, 2, 2.5, 6)), stride=st.integers(1, 2), squeezed=st.none() | SMALL,
)  # fmt: skip
def test_inverted_residual_is_what_pytorch_counts(ins, outs, kernel, size, ratio, stride, squeezed):
    excite = squeezed and (lambda mid: SqueezeExcite(mid, squeezed))
    none = {"norm_layer": nn.Identity}
    block = InvertedResidual(
        ins, outs, stride, ratio, kernel_size=kernel, squeeze_excite=excite, **none
    )
    ours = cost.inverted_residual(
        ins, outs, kernel, size, expand_ratio=ratio, stride=stride, squeeze_excite=squeezed
    )
    assert both(ours) == counted(block.eval(), ins, size)
    rows = summary(block, (ins, *size)).rows
    assert ours.bytes == sum(row.bytes for row in rows if not row.is_block)


@check
@given(ins=SMALL, outs=SMALL, bias=st.booleans())
def test_linear_is_what_pytorch_counts(ins, outs, bias):
    assert both(cost.linear(ins, outs, bias=bias)) == counted(nn.Linear(ins, outs, bias), ins, ())


def test_a_network_is_the_sum_of_its_blocks():
    total = cost.convolution(3, 32, 3, 224, stride=2, padding=1)
    total += cost.inverted_residual(32, 16, 3, 112, expand_ratio=1)
    ins, size = 16, 112
    for outs, count, stride in [
        (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)
    ]:  # fmt: skip
        for step in [stride] + [1] * (count - 1):
            total += cost.inverted_residual(ins, outs, 3, size, expand_ratio=6, stride=step)
            ins, size = outs, size // step
    total += cost.convolution(320, 1280, 1, 7) + cost.linear(1280, 1000)
    result = summary(models.mobilenet_v2(), (3, 224, 224))
    assert total.multiplications == result.total_macs == 300_774_272
    assert total.bytes == sum(row.bytes for row in result.rows if not row.is_block)
    norms = sum(
        parameter.numel()
        for module in models.mobilenet_v2().modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters()
    )
    assert total.parameters == result.total_parameters - norms


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost.convolution(0, 5, 3, 6), "in_channels must be a positive int, got 0"),
        (lambda: cost.convolution(3, 5.0, 3, 6), "out_channels must be a positive int, got 5.0"),
        (lambda: cost.convolution(3, 5, 0, 6), "kernel must be a positive int or 2 of them, got 0"),
        (lambda: cost.convolution(3, 5, (3,), 6), r"kernel must be .* or 2 of them, got \(3,\)"),
        (lambda: cost.convolution(3, 5, 3, (6, 6, 0)), "input_size must be a .* or 3 of them, got"),
        (lambda: cost.convolution(3, 5, 3, ()), r"input_size must be a positive int .*, got \(\)"),
        (lambda: cost.convolution(3, 5, 3, "6"), "input_size must be a positive int .*, got '6'"),
        (lambda: cost.convolution(3, 5, 3, 6, stride=0), "stride must be a positive int .*, got 0"),
        (lambda: cost.convolution(3, 5, 3, 6, padding=-1), "padding must be an int from 0 up or 2"),
        (lambda: cost.convolution(3, 5, 3, 6, padding="full"), "padding must be .*, got 'full'"),
        (
            lambda: cost.convolution(3, 5, 7, (6, 8)),
            r"kernel must fit into the padded input, \(6, 8\), got \(7, 7\)",
        ),
        (
            lambda: cost.convolution(4, 6, 3, 6, groups=4),
            "groups must divide in_channels and out_channels, 4 and 6, got 4",
        ),
        (lambda: cost.convolution(4, 6, 3, 6, groups=0), "groups must be a positive int, got 0"),
        (lambda: cost.convolution(4, 6, 3, 6, output_size=0), "output_size must be a positive int"),
        (
            lambda: cost.convolution(4, 6, 3, 6, padding=1, output_size=6),
            "output_size must stand in the place of stride and padding, got 6 with 1 and 1",
        ),
        (lambda: cost.convolution(4, 6, 3, 6, element_size=0), "element_size must be a positive"),
        (lambda: cost.depthwise_separable(True, 5, 3, 6), "in_channels must be .*, got True"),
        (lambda: cost.depthwise_separable(3, 5, 7, 6), "kernel must fit"),
        (lambda: cost.bottleneck(3, 5, 3, 6, mid_channels=0), "mid_channels must be a positive"),
        (lambda: cost.inverted_residual(3, 5, 3, 6, expand_ratio=0), "expand_ratio must give a"),
        (
            lambda: cost.inverted_residual(3, 5, 3, 6, expand_ratio=math.nan),
            "expand_ratio must give a channel at least, got nan",
        ),
        (
            lambda: cost.inverted_residual(3, 5, 3, 6, expand_ratio="6"),
            "expand_ratio must give a channel at least, got '6'",
        ),
        (
            lambda: cost.inverted_residual(3, 5, 3, 6, expand_ratio=6, squeeze_excite=0),
            "squeeze_excite must be a positive int, got 0",
        ),
        (lambda: cost.linear(3, -1), "out_features must be a positive int, got -1"),
        (lambda: cost.separable_ratio(0, 3), "out_channels must be a positive int, got 0"),
    ],
)
def test_rejects(call, message):
    op = call.__code__.co_names[1]
    with pytest.raises(ValueError, match=rf"^cost\.{op}: {message}"):
        call()


def test_examples():
    result = doctest.testmod(cost, extraglobs={"cost": cost})
    assert result.attempted > 6
    assert result.failed == 0
