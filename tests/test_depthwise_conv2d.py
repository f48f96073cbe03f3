"""depthwise_conv2d: fused depthwise convolution."""

import pytest
import torch

import fastconv

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

OP = "depthwise_conv2d"


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
        ({"weight": None}, TypeError, r"weight must be a Tensor, got None"),
        (
            {"weight": lambda w: w.double()},
            ValueError,
            r"weight must have input's dtype, torch.float32, got torch.float64",
        ),
        (
            {"weight": lambda w: w.to("meta")},
            ValueError,
            r"weight must be on input's device, cpu, got meta",
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
            {"weight": torch.zeros(16, 1, 3, 3)},
            ValueError,
            r"weight must have shape \(24 \* m, 1, KH, KW\), got \[16, 1, 3, 3\]",
        ),
        (
            {"weight": torch.zeros(24, 2, 3, 3)},
            ValueError,
            r"weight must have shape \(24 \* m, 1, KH, KW\), got \[24, 2, 3, 3\]",
        ),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must have shape \(24,\), got \[3\]"),
    ],
)
def test_rejects(changes, error, message):
    assert_rejects(OP, changes, error, message)


def test_a_multiplier_is_not_native(native):
    with pytest.raises(fastconv.BackendError, match="one filter per channel, not several"):
        fastconv.depthwise_conv2d(torch.randn(1, 4, 5, 5), torch.randn(8, 1, 3, 3))


def test_same_padding_is_tensorflow_s(any_backend, device):
    # The odd row and column go to the bottom and the right: the first output is of pixels 0 and 1.
    input = torch.arange(16.0, device=device).reshape(1, 1, 4, 4)
    weight = torch.ones(1, 1, 3, 3, device=device)
    output = fastconv.depthwise_conv2d(input, weight, None, 2, "same")
    assert output.flatten().tolist() == [45.0, 39.0, 66.0, 50.0]
