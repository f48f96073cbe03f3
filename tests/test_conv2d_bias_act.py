"""conv2d_bias_act: fused dense convolution."""

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
from .cases import CASES, LAYOUTS, TINY, WINOGRAD, small

OP = "conv2d_bias_act"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES[OP], ids=str)
def test_forward(any_backend, case, layout):
    assert_forward(case, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", WINOGRAD, ids=str)
def test_winograd(native, case, layout):
    assert_forward(case, layout)


def test_winograd_does_not_depend_on_threads_and_batch(native):
    case = next(case for case in WINOGRAD if case.note == "resnet50")
    arguments = case.arguments()
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            expected = fastconv.conv2d_bias_act(**arguments)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                for index in range(2):
                    one = arguments | {"input": arguments["input"][index : index + 1]}
                    output = fastconv.conv2d_bias_act(**one)
                    assert torch.equal(output, expected[index : index + 1])
    finally:
        torch.set_num_threads(threads)


def test_winograd_is_taken_for_its_window_only(native):
    pack = torch.ops.fastconv.pack_conv2d
    filters = torch.randn(16, 16, 3, 3)
    assert len(pack(filters, None, [1, 1])) > 4 * len(pack(filters, None, [2, 1]))
    for other in (filters[:15], filters[:, :15], filters[:, :, :2], torch.randn(512, 512, 3, 3)):
        assert len(pack(other, None, [1, 1])) == len(pack(other, None, [2, 2]))


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
            r"input must have 4 dimensions, got shape \[3, 11, 9\]",
        ),
        (
            {"input": lambda x: x[:, :, :0]},
            ValueError,
            r"input must have shape \(N, C, H, W\) with C, H, W at least 1, got \[2, 3, 0, 9\]",
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
            r"input must be, with its padding, at least as large as the kernel, got 11 x 9",
        ),
        ({"groups": 2}, ValueError, r"groups must divide the 3 input channels, got 2"),
        (
            {"weight": torch.zeros(24, 4, 3, 3)},
            ValueError,
            r"weight must have shape \(K, 3, KH, KW\) with K a multiple of 1, got \[24, 4, 3, 3\]",
        ),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must have shape \(24,\), got \[3\]"),
    ],
)
def test_rejects(changes, error, message):
    assert_rejects(OP, changes, error, message)


@pytest.mark.parametrize("options", [{"groups": 3}, {"dilation": 2}])
def test_groups_and_dilation_are_not_native(native, options):
    weight = torch.randn(6, 3 // options.get("groups", 1), 3, 3)
    with pytest.raises(fastconv.BackendError, match="groups = 1 and dilation = 1 only"):
        fastconv.conv2d_bias_act(torch.randn(1, 3, 9, 9), weight, **options)
