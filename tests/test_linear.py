"""linear: fully connected layer."""

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
from .cases import CASES, TINY, small

OP = "linear"


@pytest.mark.parametrize("case", CASES[OP], ids=str)
def test_forward(any_backend, case):
    assert_forward(case, "contiguous")


@pytest.mark.parametrize("case", small(OP), ids=str)
def test_backward(any_backend, case):
    assert_backward(case)


def test_backward_of_one_argument(any_backend):
    assert_partial_backward(CASES[OP][0])


def test_gradcheck():
    assert_gradcheck(TINY[OP])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layout", ["contiguous"])
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
        ({"input": lambda x: x[0]}, ValueError, r"input must have 2 dimensions, got shape \[24\]"),
        (
            {"weight": torch.zeros(40, 23)},
            ValueError,
            r"weight must have shape \(K, 24\), got \[40, 23\]",
        ),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must have shape \(40,\), got \[3\]"),
    ],
)
def test_rejects(changes, error, message):
    assert_rejects(OP, changes, error, message)
