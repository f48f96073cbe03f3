"""Shapes, strides, paddings, layouts and dtypes that nobody thought of."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastconv
from fastconv import reference

from .assertions import assert_as_accurate
from .cases import LAYOUTS, with_layout

ACTIVATIONS = st.sampled_from(("none", "relu6", "hardswish", "silu"))
DTYPES = st.sampled_from((torch.float32, torch.float32, torch.float32, torch.float64))
CHANNELS = st.integers(1, 36)
PAIRS = st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3))

check = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def windows(draw, channels=CHANNELS, dilated=True):
    """An input, the kernel's size, and stride, padding and dilation with which it fits."""
    n, c = draw(st.integers(0, 3)), draw(channels)
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    dilation = draw(PAIRS) if dilated else 1
    padding = draw(
        st.integers(0, 3) | st.tuples(st.integers(0, 3), st.integers(0, 3)) | st.just("same")
    )
    size = []
    for reach, pad, gap in zip(kernel, *map(_two, (padding, dilation)), strict=True):
        least = 1 if pad == "same" else max(1, gap * (reach - 1) + 1 - 2 * pad)
        size.append(draw(st.integers(least, least + 9)))
    options = {"stride": draw(PAIRS), "padding": padding}
    if dilated:
        options["dilation"] = dilation
    return (n, c, *size), kernel, options


def _two(value):
    return value if isinstance(value, tuple) else (value, value)


def compare(op, data, shapes, **options):
    """Native where it can be, against the reference in float64."""
    dtype, layout, seed = data.draw(DTYPES), data.draw(st.sampled_from(LAYOUTS)), len(str(shapes))
    generator = torch.Generator().manual_seed(seed)
    tensors = {k: s and torch.randn(s, generator=generator) for k, s in shapes.items()}
    if len(shapes["input"]) == 4:
        tensors["input"] = with_layout(tensors["input"], layout)
    tensors = {k: t if t is None else t.to(dtype) for k, t in tensors.items()}
    double = {k: t if t is None else t.double() for k, t in tensors.items()}
    with torch.no_grad():
        ours = getattr(fastconv, op)(**tensors, **options)
        theirs = getattr(reference, op)(**tensors, **options)
        truth = getattr(reference, op)(**double, **options)
    assert_as_accurate(ours, theirs, truth)


@check
@given(data=st.data(), window=windows(), activation=ACTIVATIONS, bias=st.booleans())
def test_depthwise_conv2d(data, window, activation, bias):
    input, kernel, options = window
    multiplier = data.draw(st.sampled_from((1, 1, 1, 2)))
    k = input[1] * multiplier
    shapes = {"input": input, "weight": (k, 1, *kernel), "bias": (k,) if bias else None}
    compare("depthwise_conv2d", data, shapes, activation=activation, **options)


@check
@given(
    data=st.data(), window=windows(st.integers(1, 5), dilated=False), k=CHANNELS,
    activation=ACTIVATIONS, bias=st.booleans(),
)  # fmt: skip
def test_conv2d_bias_act(data, window, k, activation, bias):
    input, kernel, options = window
    shapes = {"input": input, "weight": (k, input[1], *kernel), "bias": (k,) if bias else None}
    compare("conv2d_bias_act", data, shapes, activation=activation, **options)


@check
@given(
    data=st.data(), window=windows(), k=CHANNELS, activation=ACTIVATIONS,
    depthwise_activation=ACTIVATIONS, residual=st.booleans(),
)  # fmt: skip
def test_depthwise_separable_conv2d(data, window, k, activation, depthwise_activation, residual):
    input, kernel, options = window
    c = input[1]
    shapes = {
        "input": input,
        "depthwise_weight": (c, 1, *kernel),
        "depthwise_bias": (c,),
        "pointwise_weight": (k, c, 1, 1),
        "pointwise_bias": (k,),
    }
    if residual:
        shapes["residual"] = (input[0], k, *_output_size(input, kernel, **options))
    options |= {"activation": activation, "depthwise_activation": depthwise_activation}
    compare("depthwise_separable_conv2d", data, shapes, **options)


@check
@given(
    data=st.data(), window=windows(), mid=st.none() | st.integers(1, 70), k=CHANNELS,
    activation=ACTIVATIONS, residual=st.booleans(),
)  # fmt: skip
def test_inverted_residual(data, window, mid, k, activation, residual):
    input, kernel, options = window
    inner = mid or input[1]
    shapes = {
        "input": input,
        "expand_weight": (mid, input[1], 1, 1) if mid else None,
        "expand_bias": (mid,) if mid else None,
        "depthwise_weight": (inner, 1, *kernel),
        "depthwise_bias": (inner,),
        "project_weight": (k, inner, 1, 1),
        "project_bias": (k,),
    }
    if residual:
        shapes["residual"] = (input[0], k, *_output_size(input, kernel, **options))
    compare("inverted_residual", data, shapes, activation=activation, **options)


@check
@given(
    data=st.data(), n=st.integers(0, 3), c=CHANNELS, k=st.integers(1, 70), h=st.integers(1, 12),
    w=st.integers(1, 12), stride=PAIRS, residual=st.booleans(), scale=st.booleans(),
    activation=ACTIVATIONS,
)  # fmt: skip
def test_pointwise_conv2d(data, n, c, k, h, w, stride, residual, scale, activation):
    shapes = {"input": (n, c, h, w), "weight": (k, c, 1, 1), "bias": (k,)}
    if residual:
        sh, sw = _two(stride)
        shapes["residual"] = (n, k, -(-h // sh), -(-w // sw))
    if scale:
        shapes["input_scale"] = (n, c)
    compare("pointwise_conv2d", data, shapes, stride=stride, activation=activation)


@check
@given(
    data=st.data(), n=st.integers(0, 3), c=CHANNELS, k=st.integers(1, 70), h=st.integers(1, 9),
    w=st.integers(1, 9), activation=ACTIVATIONS,
)  # fmt: skip
def test_ops_that_pool(data, n, c, k, h, w, activation):
    shapes = {"input": (n, c, h, w), "weight": (k, c, 1, 1), "bias": (k,)}
    compare("pointwise_conv2d_pool", data, shapes, activation=activation)
    shapes = {
        "input": (n, c, h, w),
        "reduce_weight": (k, c, 1, 1),
        "reduce_bias": (k,),
        "expand_weight": (c, k, 1, 1),
        "expand_bias": None,
    }
    compare("squeeze_excite", data, shapes, activation=activation)
    compare("linear", data, {"input": (n, c), "weight": (k, c), "bias": (k,)})


def _output_size(input, kernel, stride, padding, dilation):
    size, two = input[2:], [_two(stride), _two(dilation)]
    top, bottom, left, right = reference.resolve_padding(padding, size, kernel, *two)
    (sh, sw), (dh, dw) = two
    return (
        (size[0] + top + bottom - dh * (kernel[0] - 1) - 1) // sh + 1,
        (size[1] + left + right - dw * (kernel[1] - 1) - 1) // sw + 1,
    )
