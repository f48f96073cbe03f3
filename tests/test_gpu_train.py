"""Training on the kernels for a GPU: the native ops of training as they run on CUDA tensors, every
configuration of each. Without a GPU in Triton's interpreter, on the CPU; ``pytest --device cuda``
runs them where there is one."""

import itertools
import types

import pytest
import torch
from torch import Tensor

import fastconv
from fastconv import backend
from fastconv.activation import CODES
from fastconv.gpu import choice, maps
from fastconv.gpu.ops import TRAIN
from fastconv.ops import _train_chain, _train_plain

from . import cases
from .assertions import assert_as_accurate
from .conftest import LEVELS
from .test_train_ops import CALLS, calls
from .train_cases import BLOCKS, MODES, assert_trains_as_accurately, prepared

ON_GPU = cases.DEVICE == "cuda"
if not ON_GPU and not backend.interprets():
    pytest.skip(
        backend.triton_missing() or "there is a GPU: pytest --device cuda runs them on it",
        allow_module_level=True,
    )
if not LEVELS:
    pytest.skip("the native library is missing", allow_module_level=True)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((24, 40, 9, 7), (17, 33, 5, 3), (16, 64, 4, 4))
CONVOLUTIONS = [i for i in CALLS if "conv2d" in calls()[i][0]._qualified_op_name]
POINTWISE_BACKWARD, DEPTHWISE_BACKWARD = (4, 5, 6), (7, 8)


@pytest.fixture(autouse=True)
def anew(quick_interpreter):
    choice.forget()
    yield
    choice.forget()


@pytest.fixture
def chosen(monkeypatch):
    """What runs the calls that follow: PyTorch ("aten"), its convolutions between maps of the
    kernels ("written"), the CUDA library, or else the index-th of Triton's configurations."""
    state = {"kind": "triton", "index": 0, "count": 1, "names": set()}

    def one(op, wish, made):
        kind = state["kind"]
        found = [c for c in made if kind in (c.backend, c.detail)]
        found = found or [c for c in made if c.backend == "triton"]
        found = found or [c for c in made if c.detail == "fused"] or list(made)
        if found[0].backend == "triton":
            state["count"] = max(state["count"], len(found))
        picked = found[state["index"] % len(found)]
        state["names"].add(f"{op}: {picked.name}")
        return [picked]

    monkeypatch.setattr(choice, "plausible", one)
    return state


def converted(arguments, dtype, precise=torch.float32, device="cpu"):
    """Maps and weights of a dtype, and all else."""
    return [
        a.to(device, dtype if a.dim() == 4 else precise) if isinstance(a, Tensor) else a
        for a in arguments
    ]


def listed(results):
    return results if isinstance(results, tuple) else (results,)


def check(op, arguments, dtype):
    """Against float64, and as accurate as PyTorch on the same maps."""
    name = op._qualified_op_name.split("::")[1]
    rounded = converted(arguments, dtype)
    ours = TRAIN[name](*converted(rounded, dtype, device=cases.DEVICE))
    theirs = getattr(_train_plain, name)(*rounded)
    truth = getattr(_train_plain, name)(*converted(rounded, torch.float64, torch.float64))
    for index, (a, b, c) in enumerate(zip(*map(listed, (ours, theirs, truth)), strict=True)):
        if dtype is torch.bfloat16 and not ON_GPU:  # the interpreter cuts it off, and sums show it
            a, b = a.to(dtype), b.to(dtype)
        assert_as_accurate(a, b, c, f"{name}: result {index}")
        assert a.dim() < 4 or a.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("index", CALLS)
def test_every_configuration(index, chosen):
    torch.manual_seed(index)
    while chosen["index"] < chosen["count"]:
        turn = chosen["index"]
        choice.forget()
        op, arguments = calls(sizes=SIZES[turn % 3])[index]
        check(op, arguments, DTYPES[turn % 3])
        chosen["index"] += 1


@pytest.mark.parametrize("kind", ["written", "aten"])
@pytest.mark.parametrize("index", CALLS)
def test_pytorch_s_kernels(index, kind, chosen):
    torch.manual_seed(index)
    chosen["kind"] = kind
    op, arguments = calls(sizes=SIZES[index % 2])[index]
    for dtype in DTYPES[:2]:
        choice.forget()
        check(op, arguments, dtype)
    if kind == "aten":
        assert all("aten" in name for name in chosen["names"])
    elif index in CONVOLUTIONS:
        assert any("mixed" in name for name in chosen["names"])


@pytest.mark.parametrize("index", CALLS)
def test_an_empty_batch(index):
    op, arguments = calls(batch=0)[index]
    name = op._qualified_op_name.split("::")[1]
    ours = TRAIN[name](*converted(arguments, torch.float32, device=cases.DEVICE))
    for a, b in zip(listed(ours), listed(op(*arguments)), strict=True):
        assert a.shape == b.shape
        assert a.dtype is b.dtype
        assert a.numel() == 0 or not a.any()


@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
@pytest.mark.parametrize("index", [0, 4, 7, 9, 13])
def test_layouts(index, layout, chosen):
    op, arguments = calls(layout=layout, sizes=SIZES[1])[index]
    check(op, arguments, torch.float32)


@pytest.mark.parametrize("index", [4, 5, 7])
@pytest.mark.parametrize(
    "wanted",
    [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0)],
    ids=str,
)
def test_only_what_is_wanted(index, wanted, chosen):
    op, arguments = calls(sizes=SIZES[2])[index]
    changed = [*arguments[:-1], [bool(w) for w in wanted]]
    check(op, changed, torch.float32)
    name = op._qualified_op_name.split("::")[1]
    found = TRAIN[name](*converted(changed, torch.float32, device=cases.DEVICE))
    assert [bool(result.numel()) for result in found] == [bool(w) for w in wanted]


def test_parts_of_several_blocks(monkeypatch):
    """More pixels than a program takes at a time, in more than one part."""
    from fastconv.kernels import (
        train_pointwise_conv2d,
        train_pointwise_conv2d_input,
        train_pointwise_conv2d_weight,
        train_sums,
    )

    for module in (train_sums, train_pointwise_conv2d, train_pointwise_conv2d_input):
        monkeypatch.setattr(module, "MOST_PARTS", 4)
    for module, config in (
        (train_sums, (16, 16, 4)),
        (train_pointwise_conv2d, (16, 16, 16, 4, 2)),
        (train_pointwise_conv2d_input, (16, 16, 16, 4, 2)),
        (train_pointwise_conv2d_weight, (16, 16, 16, 4, 2, 3)),
    ):
        found = [module.Config(*config)]
        monkeypatch.setattr(module, "configs", lambda *_, found=found: found)
    sizes = (20, 20, 9, 7)
    with fastconv.use_backend("triton"):
        for index in (0, 1, *POINTWISE_BACKWARD, 10, 11, 13):
            op, arguments = calls(sizes=sizes)[index]
            arguments = list(arguments)
            if index == 1:
                arguments[-1] = True  # moments without a gate
            check(op, arguments, torch.float32)


@pytest.mark.parametrize("activation", CODES)
def test_activations_at_their_corners(activation):
    """The native ops agree with PyTorch there, and with these where a value is NaN."""
    code = CODES[activation]
    corners = torch.tensor([-4.0, -3, -1, 0, 1, 3, 6, 7, torch.nan, -0.0, 2.5, 100])
    raw = corners.view(1, 1, 3, 4).expand(1, 16, 3, 4)
    affine = torch.stack((torch.ones(16), torch.zeros(16)))
    grad = torch.randn(1, 16, 3, 4)
    ours = [t.to(cases.DEVICE) for t in (raw, affine, grad)]
    found = TRAIN["train_normalize"](ours[0], ours[1], None, code, None)
    torch.testing.assert_close(
        found.cpu(), _train_plain.train_normalize(raw, affine, None, code, None), equal_nan=True
    )
    found = TRAIN["train_gradient"](ours[2], ours[0], ours[1], None, None, code, None)
    expected = _train_plain.train_gradient(grad, raw, affine, None, None, code, None)
    native = torch.ops.fastconv.train_gradient(grad, raw, affine, None, None, code, None)
    torch.testing.assert_close(found.cpu(), native, equal_nan=True)
    # For NaN PyTorch's kernels differ from each other.
    torch.testing.assert_close(expected[~raw.isnan()], native[~raw.isnan()])


def test_moments_of_a_large_mean():
    torch.manual_seed(0)
    map_ = (torch.randn(3, 16, 11, 13) + 1000).to(memory_format=torch.channels_last)
    truth = _train_plain.train_moments(map_.double())
    found = TRAIN["train_moments"](map_.to(cases.DEVICE)).cpu()
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=0)
    again = TRAIN["train_moments"](map_.to(cases.DEVICE)).cpu()
    assert torch.equal(found, again)


@pytest.fixture
def cuda_library(monkeypatch):
    """Its ops of training, in PyTorch, with what they ask of their arguments."""

    def is_innermost(filters):
        c, _, _, kw = filters.shape
        return filters.dtype is torch.float32 and filters.stride()[2:] == (kw * c, c)

    def is_dense(*maps_):
        return all(m is None or m.is_contiguous(memory_format=torch.channels_last) for m in maps_)

    def forward(input, affine, act, weight, *rest):
        *window, output, partial, moments = rest
        assert is_innermost(weight)
        assert is_dense(input, output)
        assert (partial is None) == (moments is None)
        found = _train_plain.train_depthwise_conv2d(
            input, affine, act, weight, *window, moments is not None
        )
        output.copy_(found[0])
        if moments is not None:
            assert partial.shape[1:] == (3, input.shape[1])
            assert 0 < partial.shape[0] <= 65535
            moments.copy_(found[1])

    def backward(*args):
        *given, residual, partial, grad_input, grad_weight, grad_bias, sums = args
        assert is_innermost(given[11])
        assert is_dense(given[0], given[1], given[7], residual, grad_input)
        results = (grad_input, grad_weight, grad_bias, sums)
        wanted = [t is not None for t in results]
        found = _train_plain.train_depthwise_conv2d_backward(*given, residual, wanted)
        taps = given[11].shape[2:].numel()
        rows = taps * wanted[1] + wanted[2] + 2 * wanted[3]
        assert (partial is None) == (rows == 0)
        assert partial is None or partial.shape[1:] == (rows, given[7].shape[1])
        for to, result in zip(results, found, strict=True):
            if to is not None:
                assert to.shape == result.shape
                to.copy_(result)

    ops = torch.ops.fastconv
    monkeypatch.setattr(maps, "has_cuda", lambda input: True)
    monkeypatch.setattr(ops, "cuda_train_depthwise_conv2d", forward)
    monkeypatch.setattr(ops, "cuda_train_depthwise_conv2d_backward", backward)


@pytest.mark.skipif(ON_GPU, reason="stands in for the library")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", [2, 3, *DEPTHWISE_BACKWARD])
def test_depthwise_in_cuda(index, dtype, chosen, cuda_library):
    chosen["kind"] = "cuda"
    op, arguments = calls(sizes=SIZES[index % 2])[index]
    check(op, arguments, dtype)
    assert any(name.endswith(": cuda") for name in chosen["names"])


def instead_of_native(monkeypatch, functions):
    """Lets rows of layers call these for the native ops of training."""
    dense = torch.ops.fastconv.conv2d_bias_act_infer
    ops = types.SimpleNamespace(**functions, conv2d_bias_act_infer=dense)
    monkeypatch.setattr(_train_chain, "FASTCONV", ops)


@pytest.mark.skipif(ON_GPU, reason="test_on_gpu.py trains layers there")
@pytest.mark.parametrize(("name", "mode"), list(zip(BLOCKS, itertools.cycle(MODES))))
def test_layers_in_plain_pytorch(name, mode, monkeypatch):
    instead_of_native(monkeypatch, {name: getattr(_train_plain, name) for name in TRAIN})
    assert_trains_as_accurately(*prepared(name, mode))


@pytest.mark.skipif(ON_GPU, reason="test_on_gpu.py trains layers there")
@pytest.mark.parametrize(
    ("name", "mode"), [("mbconv", "train"), ("inverted", "mixed"), ("separable", "frozen")]
)
def test_layers(name, mode, monkeypatch):
    called = []

    def noted(name):
        return lambda *args: called.append(name) or TRAIN[name](*args)

    instead_of_native(monkeypatch, {name: noted(name) for name in TRAIN})
    module, input = prepared(name, mode)
    assert_trains_as_accurately(module, input[:2, :, :6, :5], backend="auto")
    assert {"train_pointwise_conv2d_backward", "train_depthwise_conv2d_backward"} <= {*called}


def test_all_ops_are_registered():
    for name in TRAIN:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastconv::{name}", "CUDA")
