"""The native ops of training by themselves: schemas, fakes, refusals, empty batches."""

import pytest
import torch
from torch.library import opcheck

from fastconv.ops import _train_plain

from .assertions import assert_as_accurate
from .conftest import LEVELS

pytestmark = pytest.mark.skipif(not LEVELS, reason="the native library is missing")

OPS = torch.ops.fastconv
WINDOW = ([2, 1], [1, 1, 1, 1], [1, 1])
RELU6 = 2


def image(*shape, layout="channels_last"):
    if layout == "sliced":
        return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    map_ = torch.randn(shape)
    return map_.to(memory_format=torch.channels_last) if layout == "channels_last" else map_


def calls(batch=2, layout="channels_last", sizes=(24, 40, 9, 7)):
    """(op, arguments) with all that is optional, and without; sizes: C, K, H, W."""
    n, (c, k, h, w) = batch, sizes
    input, grad, raw = (image(n, x, h, w, layout=layout) for x in (c, k, k))
    affine, gate, mean = torch.randn(2, c), torch.rand(n, c), torch.randn(c)
    of_raw = (torch.randn(2, k), torch.rand(n, k), torch.randn(n, k), RELU6, torch.randn(4, k))
    pointwise, depthwise = torch.randn(k, c, 1, 1), torch.randn(c, 1, 3, 3)
    narrow, narrow_raw = (image(n, c, (h + 1) // 2, w) for _ in range(2))
    of_narrow = (torch.randn(2, c), torch.rand(n, c), torch.randn(n, c), RELU6, torch.randn(4, c))
    bare = (None, None, None, None, 0, None)
    last = (*WINDOW, None)
    every, some = [True] * 4, [False, True, False, False]
    return [
        (OPS.train_pointwise_conv2d, (input, affine, gate, RELU6, pointwise, True)),
        (OPS.train_pointwise_conv2d, (input, None, None, 0, pointwise, False)),
        (OPS.train_depthwise_conv2d, (input, affine, RELU6, depthwise, *WINDOW, True)),
        (OPS.train_depthwise_conv2d, (input, None, 0, depthwise, *WINDOW, False)),
        (
            OPS.train_pointwise_conv2d_backward,
            (grad, raw, *of_raw, input, affine, gate, RELU6, mean, pointwise, None, every),
        ),
        (
            OPS.train_pointwise_conv2d_backward,
            (grad, *bare, input, affine, None, RELU6, mean, pointwise, None, every),
        ),
        (
            OPS.train_pointwise_conv2d_backward,
            (grad, *bare, input, None, None, 0, None, pointwise, None, some),
        ),
        (
            OPS.train_depthwise_conv2d_backward,
            (narrow, narrow_raw, *of_narrow, input, affine, RELU6, mean, depthwise, *last, every),
        ),
        (
            OPS.train_depthwise_conv2d_backward,
            (narrow, *bare, input, None, 0, None, depthwise, *WINDOW, input, [True] * 3 + [False]),
        ),
        (OPS.train_normalize, (input, affine, gate, RELU6, input)),
        (OPS.train_normalized_mean, (input, affine, RELU6)),
        (OPS.train_moments, (input,)),
        (OPS.train_gradient, (grad, raw, *of_raw)),
        (OPS.train_gradient_sums, (grad, raw, *of_raw[:4], torch.randn(k))),
    ]


CALLS = range(len(calls()))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("index", CALLS)
def test_opcheck(index, layout):
    op, arguments = calls(layout=layout)[index]
    opcheck(op, arguments)


@pytest.mark.parametrize("index", CALLS)
def test_results_in_plain_pytorch(index):
    torch.manual_seed(index)
    op, arguments = calls()[index]
    plain = getattr(_train_plain, op._qualified_op_name.split("::")[1])
    exact = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    found = [call(*args) for call, args in ((op, arguments), (plain, arguments), (plain, exact))]
    results = [one if isinstance(one, tuple) else (one,) for one in found]
    for ours, theirs, truth in zip(*results, strict=True):
        assert_as_accurate(ours, theirs, truth)


@pytest.mark.parametrize("index", CALLS)
def test_an_empty_batch(index):
    op, arguments = calls(batch=0)[index]
    found = op(*arguments)
    for result in found if isinstance(found, tuple) else (found,):
        assert result.numel() == 0 or not result.any()


@pytest.mark.parametrize("index", CALLS)
def test_layouts_do_not_matter(index):
    op, arguments = calls()[index]
    other = [
        torch.randn(*a.shape[:-1], 2 * a.shape[-1])[..., ::2].copy_(a)
        if isinstance(a, torch.Tensor) and a.dim() == 4
        else a
        for a in arguments
    ]
    ours, sliced = op(*arguments), op(*other)
    for a, b in zip(ours, sliced, strict=True) if isinstance(ours, tuple) else ((ours, sliced),):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (0, {0: torch.randn(2, 24, 9, 7).double()}, "input must be float32"),
        (0, {1: torch.randn(2, 23)}, r"affine must have shape \(2, 24\), got \[2, 23\]"),
        (0, {2: torch.rand(3, 24)}, r"gate must have shape \(2, 24\), got \[3, 24\]"),
        (0, {3: 9}, "activation must be a code from 0 to 8, got 9"),
        (0, {4: torch.randn(40, 23, 1, 1)}, r"weight must have shape \(K, 24, 1, 1\)"),
        (1, {3: RELU6}, "activation must be 0 without affine, got 2"),
        (2, {3: torch.randn(25, 1, 3, 3)}, r"weight must have shape \(24, 1, KH, KW\)"),
        (2, {4: [0, 1]}, "stride must be 2 ints from 1"),
        (4, {0: torch.randn(2, 39, 9, 7)}, "raw must have shape"),
        (4, {6: torch.randn(3, 40)}, r"coefficients must have shape \(4, 40\)"),
        (5, {0: torch.randn(2, 40, 8, 7)}, r"grad must have shape \[2, 40, 9, 7\]"),
        (5, {14: [True] * 3}, "wanted must be 4 bools, got 3"),
        (5, {11: None}, "mean must be given"),
        (5, {14: [False, True, True, True]}, "wanted must ask for sums with grad_input"),
        (7, {0: torch.randn(2, 24, 9, 7)}, "raw must have shape"),
        (9, {4: torch.randn(2, 24, 9, 8)}, r"residual must have shape \[2, 24, 9, 7\]"),
        (13, {6: torch.randn(39)}, r"mean must be float32 of shape \(40,\)"),
    ],
)
def test_rejects(index, changes, message):
    op, arguments = calls()[index]
    changed = [changes.get(i, value) for i, value in enumerate(arguments)]
    with pytest.raises(RuntimeError, match=f"{op._qualified_op_name.split('::')[1]}: {message}"):
        op(*changed)
