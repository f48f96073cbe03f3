"""inverted_residual: fused expand, depthwise and project convolutions."""

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

OP = "inverted_residual"


def W(*channels):  # noqa: N802
    return torch.zeros(*channels, 1, 1)


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
        ({"project_weight": None}, TypeError, r"project_weight must be a Tensor, got None"),
        (
            {"project_weight": lambda w: w.double()},
            ValueError,
            r"project_weight must have input's dtype, torch.float32, got torch.float64",
        ),
        (
            {"project_weight": lambda w: w.to("meta")},
            ValueError,
            r"project_weight must be on input's device, cpu, got meta",
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
            {"expand_weight": torch.zeros(40, 15, 1, 1)},
            ValueError,
            r"expand_weight must have shape \(K, 16, 1, 1\), got \[40, 15, 1, 1\]",
        ),
        (
            {"depthwise_weight": torch.zeros(80, 1, 3, 3)},
            ValueError,
            r"depthwise_weight must have shape \(40, 1, KH, KW\), got \[80, 1, 3, 3\]",
        ),
        (
            {"project_weight": torch.zeros(16, 39, 1, 1)},
            ValueError,
            r"project_weight must have shape \(K, 40, 1, 1\), got \[16, 39, 1, 1\]",
        ),
        (
            {"expand_bias": torch.zeros(3)},
            ValueError,
            r"expand_bias must have shape \(40,\), got \[3\]",
        ),
        (
            {"depthwise_bias": torch.zeros(3)},
            ValueError,
            r"depthwise_bias must have shape \(40,\), got \[3\]",
        ),
        (
            {"project_bias": torch.zeros(3)},
            ValueError,
            r"project_bias must have shape \(16,\), got \[3\]",
        ),
        (
            {"expand_weight": None, "depthwise_weight": torch.zeros(16, 1, 3, 3)},
            ValueError,
            r"expand_bias must be None without expand_weight",
        ),
        (
            {"residual": torch.zeros(2, 16, 9, 8)},
            ValueError,
            r"residual must have shape \[2, 16, 9, 7\], got \[2, 16, 9, 8\]",
        ),
        (
            {"squeeze_excite": torch.zeros(3)},
            ValueError,
            r"squeeze_excite must be \(reduce_weight, .*\), got a Tensor",
        ),
        (
            {"squeeze_excite": (W(4, 40), None, W(40, 5), None, "relu", "sigmoid")},
            ValueError,
            r"squeeze_excite expand_weight must have shape \(40, 4, 1, 1\), got \[40, 5, 1, 1\]",
        ),
        (
            {"squeeze_excite": (W(4, 40), None, W(40, 4), None, "relu", "relu")},
            ValueError,
            r"squeeze_excite gate must be one of sigmoid, hardsigmoid, got 'relu'",
        ),
    ],
)
def test_rejects(changes, error, message):
    assert_rejects(OP, changes, error, message)


def _first_and_second_derivatives(case):
    """Of a block whose residual is its input, as in every network."""
    arguments = case.arguments(grad=True)
    arguments["residual"] = arguments["input"]
    sources = [arguments["input"], arguments["depthwise_weight"]]
    output = fastconv.inverted_residual(**arguments).square().sum()
    first = torch.autograd.grad(output, sources, create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in first), sources)
    return [*first, *second]


def test_derivatives_where_the_residual_is_the_input(any_backend):
    ours = _first_and_second_derivatives(CASES[OP][0])
    with fastconv.use_backend("reference"):
        theirs = _first_and_second_derivatives(CASES[OP][0])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())
