"""depthwise_separable_conv2d: fused depthwise and 1x1 convolution."""

import pytest
import torch

from .assertions import (
    assert_backward,
    assert_compiles,
    assert_forward,
    assert_gradcheck,
    assert_opcheck,
    assert_partial_backward,
    assert_rejects,
)
from .cases import CASES, LAYOUTS, TINY, small

OP = "depthwise_separable_conv2d"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES[OP], ids=str)
def test_forward(any_backend, case, layout):
    assert_forward(case, layout)


@pytest.mark.parametrize("case", small(OP), ids=str)
def test_backward(any_backend, case):
    assert_backward(case)


def test_backward_of_one_argument(any_backend):
    assert_partial_backward(CASES[OP][0])


def test_gradcheck():
    assert_gradcheck(TINY[OP])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_opcheck(native, layout, grad):
    assert_opcheck(CASES[OP][0], layout, grad)


def test_compile(any_backend):
    assert_compiles(CASES[OP][0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": None}, TypeError, r"input must be a Tensor, got None"),
        ({"input": [1.0]}, TypeError, r"input must be a Tensor, got list"),
        ({"depthwise_weight": None}, TypeError, r"depthwise_weight must be a Tensor, got None"),
        (
            {"depthwise_weight": lambda w: w.double()},
            ValueError,
            r"depthwise_weight must have input's dtype, torch.float32, got torch.float64",
        ),
        (
            {"depthwise_weight": lambda w: w.to("meta")},
            ValueError,
            r"depthwise_weight must be on input's device, cpu, got meta",
        ),
        (
            {"input": lambda x: x[0]},
            ValueError,
            r"input must have 4 dimensions, got shape \[\d+, 9, 7\]",
        ),
        (
            {"input": lambda x: x[:, :, :0]},
            ValueError,
            r"input must have shape \(N, C, H, W\) with C, H, W at least 1, got \[2, \d+, 0, 7\]",
        ),
        (
            {"input": lambda x: x.long()},
            ValueError,
            r"input must have a floating-point dtype, got torch.int64",
        ),
        (
            {"activation": "mish"},
            ValueError,
            r"activation must be one of none, relu, .*, got 'mish'",
        ),
        (
            {"depthwise_activation": "mish"},
            ValueError,
            r"depthwise_activation must be one of none, relu, .*, got 'mish'",
        ),
        ({"stride": 0}, ValueError, r"stride must be an int >= 1 or a pair of such, got 0"),
        (
            {"stride": (1, 2, 3)},
            ValueError,
            r"stride must be an int >= 1 or a pair of such, got \(1, 2, 3\)",
        ),
        ({"padding": -1}, ValueError, r"padding must be an int >= 0 or a pair of such, got -1"),
        (
            {"padding": "valid"},
            ValueError,
            r"padding must be an int, a pair or \"same\", got 'valid'",
        ),
        ({"dilation": 0}, ValueError, r"dilation must be an int >= 1 or a pair of such, got 0"),
        (
            {"dilation": 9},
            ValueError,
            r"input must be, with its padding, at least as large as the kernel, got 9 x 7",
        ),
        (
            {"depthwise_weight": torch.zeros(16, 1, 3, 3)},
            ValueError,
            r"depthwise_weight must have shape \(24 \* m, 1, KH, KW\), got \[16, 1, 3, 3\]",
        ),
        (
            {"pointwise_weight": torch.zeros(24, 16, 1, 1)},
            ValueError,
            r"pointwise_weight must have shape \(K, 24, 1, 1\), got \[24, 16, 1, 1\]",
        ),
        (
            {"depthwise_bias": torch.zeros(3)},
            ValueError,
            r"depthwise_bias must have shape \(24,\), got \[3\]",
        ),
        (
            {"pointwise_bias": torch.zeros(3)},
            ValueError,
            r"pointwise_bias must have shape \(24,\), got \[3\]",
        ),
        (
            {"residual": torch.zeros(2, 24, 9, 8)},
            ValueError,
            r"residual must have shape \[2, 24, 9, 7\], got \[2, 24, 9, 8\]",
        ),
    ],
)
def test_rejects(changes, error, message):
    assert_rejects(OP, changes, error, message)
