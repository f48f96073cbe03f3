"""pointwise_conv2d_pool: fused 1x1 convolution and global average pooling."""

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

OP = "pointwise_conv2d_pool"


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
        (
            {"weight": torch.zeros(40, 23, 1, 1)},
            ValueError,
            r"weight must have shape \(K, 24, 1, 1\), got \[40, 23, 1, 1\]",
        ),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must have shape \(40,\), got \[3\]"),
    ],
)
def test_rejects(changes, error, message):
    assert_rejects(OP, changes, error, message)
