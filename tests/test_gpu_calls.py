"""What the candidates for a GPU call: PyTorch's own kernels, and the CUDA library's ops, in whose
place stands here what they promise. No GPU is needed."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv
from fastconv import backend, reference
from fastconv.activation import CODES
from fastconv.gpu import choice, maps, ops

from .assertions import assert_as_accurate
from .cases import CASES, Case

if not backend.interprets():
    pytest.skip("the calls run on the CPU, in Triton's interpreter", allow_module_level=True)

OPS = tuple(name for name in ops.ALL if name != "linear")
_CONVOLUTIONS = ("depthwise_conv2d", "depthwise_separable_conv2d", "inverted_residual")


@pytest.fixture(autouse=True)
def triton_s(quick_interpreter):
    with fastconv.use_backend("triton"):
        yield
    choice.forget()


@pytest.fixture
def wanted(monkeypatch):
    """Calls run on the candidates whose name begins with wanted[0], where there are any; these are
    noted in wanted[1:]."""
    wanted = [""]

    def pick(op, wish, made):
        found = [candidate for candidate in made if candidate.name.startswith(wanted[0])]
        wanted.extend(f"{op}: {candidate.name}" for candidate in found[:1])
        return (found or [c for c in made if c.backend == "aten"])[:1]

    monkeypatch.setattr(choice, "plausible", pick)
    return wanted


def first(op: str, *needed: str, **options) -> Case:
    return next(
        case
        for case in CASES[op]
        if case.native
        and case.shapes["input"][0] > 0
        and all(name in case.shapes for name in needed)
        and all(case.options.get(name) == value for name, value in options.items())
    )


def check(case: Case, dtype: torch.dtype) -> None:
    arguments = case.arguments(dtype, "channels_last")
    exact = case.arguments(torch.float64, "channels_last")
    with torch.no_grad():
        output = getattr(fastconv, case.op)(**arguments)
        function = getattr(reference, case.op)
        assert_as_accurate(output, function(**arguments), function(**exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_pytorch_s_kernels(wanted, op, dtype):
    wanted[0] = "aten"
    check(first(op), dtype)
    assert f"{op}: aten" in wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        first("pointwise_conv2d_pool"),
        first("depthwise_separable_conv2d", "residual"),
        first("inverted_residual", "expand_weight"),
        first("inverted_residual", "excite_reduce_weight"),
    ],
    ids=lambda case: f"{case.op}-{case}",
)
def test_ops_made_of_others(wanted, case, dtype):
    wanted[0] = "mixed"
    check(case, dtype)
    assert any(note.startswith(f"{case.op}: mixed") for note in wanted[1:])


def is_innermost(filters: Tensor) -> bool:
    c, _, _, kw = filters.shape
    steps = (1, None, kw * c, c)
    return all(
        size == 1 or step is None or stride == step
        for size, stride, step in zip(filters.shape, filters.stride(), steps, strict=True)
    )


def vectors(*biases: Tensor | None) -> bool:
    return all(b is None or (b.dtype is torch.float32 and b.is_contiguous()) for b in biases)


def depthwise(x: Tensor, filters: Tensor, bias: Tensor | None, window, activation: int) -> Tensor:
    """float32, as the kernels compute it, before it is rounded."""
    return reference.depthwise_conv2d(x.float(), filters, bias, *window, activation=activation)


def part_sums(output: Tensor, height: int, width: int) -> Tensor:
    """(N, P, C) of tiles of this size, in their order."""
    h, w = output.shape[2:]
    tall, wide = -(-h // height) * height, -(-w // width) * width
    padded = F.pad(output, (0, wide - w, 0, tall - h))
    tiles = padded.unflatten(2, (-1, height)).unflatten(4, (-1, width)).sum((3, 5))
    return tiles.flatten(2).transpose(1, 2)


@pytest.fixture
def cuda_library(monkeypatch):
    """Its two ops, in PyTorch, with what they ask of their arguments."""
    calls = []

    def cuda_depthwise_conv2d(x, filters, bias, stride, padding, dilation, act, output, sums):
        nhwc = x.is_contiguous(memory_format=torch.channels_last)
        assert filters.dtype is torch.float32
        assert is_innermost(filters) if nhwc else filters.is_contiguous()
        assert vectors(bias)
        assert output.dtype is x.dtype
        full = depthwise(x, filters, bias, (stride, padding, dilation), act)
        output.copy_(full)
        if sums is not None:
            assert nhwc
            rows = -(-full.shape[2] // sums.shape[1])
            found = part_sums(full, rows, full.shape[3])
            sums.zero_()[:, : found.shape[1]] = found
        calls.append("nhwc" if nhwc else "nchw")

    def cuda_inverted_residual(
        x, w1, b1, filters, b2, w3, b3, stride, padding, acts, residual, tile, output, sums, shared
    ):
        assert x.dtype in (torch.float16, torch.bfloat16)
        assert is_innermost(filters)
        assert filters.dtype is torch.float32
        assert vectors(b1, b2, b3)
        assert all(w is None or (w.dtype is x.dtype and w.is_contiguous()) for w in (w1, w3))
        assert shared > 0
        mid = x
        if w1 is not None:
            mid = reference.pointwise_conv2d(x.float(), w1.float(), b1, activation=acts[0])
            mid = mid.to(x.dtype)
        full = depthwise(mid, filters, b2, (stride, padding, (1, 1)), acts[1])
        if w3 is None:
            assert residual is None
            output.copy_(full)
            sums.copy_(part_sums(full, *tile))
        else:
            shortcut = None if residual is None else residual.float()
            mid = full.to(x.dtype).float()
            weights = (w3.float(), b3)
            output.copy_(
                reference.pointwise_conv2d(mid, *weights, activation=acts[2], residual=shortcut)
            )
        calls.append("half" if w3 is None else "whole")

    monkeypatch.setattr(maps, "has_cuda", lambda input: True)
    monkeypatch.setattr(torch.ops.fastconv, "cuda_depthwise_conv2d", cuda_depthwise_conv2d)
    monkeypatch.setattr(torch.ops.fastconv, "cuda_inverted_residual", cuda_inverted_residual)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_depthwise_in_cuda(cuda_library, wanted, dtype):
    wanted[0] = "cuda"
    for case in CASES["depthwise_conv2d"]:
        if case.native and case.shapes["input"][0] > 0 and case.shapes["input"][2] <= 20:
            choice.forget()
            check(case, dtype)
    assert set(cuda_library) == {"nhwc"}
    wanted[0] = "cuda contiguous"
    choice.forget()
    case = first("depthwise_conv2d")
    arguments = case.arguments(dtype)
    output = fastconv.depthwise_conv2d(**arguments)
    assert cuda_library[-1] == "nchw"
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        output, reference.depthwise_conv2d(**arguments), rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("op", ["inverted_residual", "depthwise_separable_conv2d"])
def test_blocks_in_cuda(cuda_library, wanted, op, stride, dtype):
    wanted[0] = "cuda"
    shapes = {"input": (2, 16, 14, 13), "depthwise_weight": (32, 1, 3, 3), "depthwise_bias": (32,)}
    if op == "inverted_residual":
        shapes |= {"expand_weight": (32, 16, 1, 1), "expand_bias": (32,)}
        shapes |= {"project_weight": (16, 32, 1, 1), "project_bias": (16,)}
    else:
        shapes |= {"depthwise_weight": (16, 1, 3, 3), "depthwise_bias": (16,)}
        shapes |= {"pointwise_weight": (16, 16, 1, 1), "pointwise_bias": (16,)}
    if stride == 1:
        shapes["residual"] = (2, 16, 14, 13)
    check(Case(op, shapes, {"stride": stride, "padding": 1}), dtype)
    assert cuda_library == ["whole"]


def test_half_blocks_in_cuda(cuda_library, wanted):
    wanted[0] = "cuda half"
    case = first("inverted_residual", "excite_reduce_weight", "expand_weight")
    shapes = dict(case.shapes)
    case = Case(case.op, shapes, {**case.options, "padding": 1, "stride": 1})
    n, c, _, _ = shapes["input"]
    mid = shapes["depthwise_weight"][0]
    shapes |= {"input": (n, c, 15, 13), "depthwise_weight": (mid, 1, 3, 3)}
    shapes.pop("residual", None)
    check(case, torch.bfloat16)
    assert cuda_library == ["half"]


def test_sums_of_bands(cuda_library, wanted):
    from fastconv.gpu.depthwise_conv2d import depthwise_conv2d_pool

    x, filters = torch.randn(2, 6, 9, 5), torch.randn(6, 1, 3, 3)
    expected = F.conv2d(x, filters, padding=1, groups=6).relu()
    for bands in (1, 4, 9):
        wanted[0] = f"cuda {bands} bands"
        choice.forget()
        output, sums = depthwise_conv2d_pool(
            x, filters, None, (1, 1), (1, 1, 1, 1), (1, 1), CODES["relu"]
        )
        assert sums.shape == (2, bands, 6)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(sums.sum(1), expected.sum((2, 3)), rtol=1e-5, atol=1e-5)


def test_empty_batches():
    for op in OPS:
        case = first(op)
        shapes = {
            name: (0, *shape[1:]) if name in ("input", "residual", "input_scale") else shape
            for name, shape in case.shapes.items()
        }
        arguments = Case(op, shapes, case.options).arguments()
        output = getattr(fastconv, op)(**arguments)
        assert output.shape == getattr(reference, op)(**arguments).shape


def test_all_ops_are_registered():
    for name in ops.ALL:
        for end in ("", "_infer"):
            qualified = f"fastconv::{name}{end}"
            assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CUDA")
