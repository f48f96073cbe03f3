"""The kernels for a GPU, every configuration of each. Without a GPU those of Triton, on the CPU in
its interpreter; ``pytest --device cuda`` runs all of them where there is one."""

import pytest
import torch
from torch import Tensor

import fastconv
from fastconv import backend, reference
from fastconv.activation import CODES
from fastconv.gpu import choice

from . import cases
from .assertions import assert_as_accurate
from .cases import CASES, Case, tensors_of

ON_GPU = cases.DEVICE == "cuda"
if not ON_GPU and not backend.interprets():
    pytest.skip(
        backend.triton_missing() or "there is a GPU: pytest --device cuda runs them on it",
        allow_module_level=True,
    )
in_interpreter = pytest.mark.skipif(ON_GPU, reason="of the interpreter")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPS = ("pointwise_conv2d", "depthwise_conv2d", "depthwise_separable_conv2d", "squeeze_excite")
OPS += ("conv2d_bias_act", "pointwise_conv2d_pool", "inverted_residual")
# Elements of the largest tensor times taps; the interpreter needs a second for some times that.
MOST_WORK = 10**9 if ON_GPU else 50_000


def work(case: Case) -> int:
    tensors = tensors_of(case.arguments())
    filters = tensors.get("depthwise_weight", tensors.get("weight"))
    taps = 1 if filters is None else filters.shape[2:].numel()
    return taps * max(tensor.numel() for tensor in tensors.values())


SMALL = [case for op in OPS for case in CASES[op] if case.native and work(case) <= MOST_WORK]


@pytest.fixture(autouse=True)
def gpu_s(quick_interpreter):
    with fastconv.use_backend("auto" if ON_GPU else "triton"):
        yield
    choice.forget()


@pytest.fixture
def candidates(monkeypatch):
    """The names of the candidates for the calls that follow, of which the index-th runs."""
    names: list[str] = []
    state = {"index": 0, "names": names}
    plausible = choice.plausible

    def one(op, wish, made):
        found = plausible(op, wish, made)
        if ON_GPU or found[0].backend == "triton":
            names[:] = [candidate.name for candidate in found]
            found = [found[state["index"] % len(found)]]
        return found

    monkeypatch.setattr(choice, "plausible", one)
    return state


def converted(value, dtype):
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, dict):
        return {key: converted(inner, dtype) for key, inner in value.items()}
    return tuple(converted(v, dtype) for v in value) if isinstance(value, tuple) else value


def check(case: Case, dtype: torch.dtype, layout: str = "contiguous") -> None:
    arguments = case.arguments(dtype, layout)
    function = getattr(reference, case.op)
    with torch.no_grad():
        output = getattr(fastconv, case.op)(**arguments)
        theirs, truth = function(**arguments), function(**converted(arguments, torch.float64))
    assert_as_accurate(output, theirs, truth)
    if output.dim() == 4:
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.op}-{case}")
def test_forward(case, candidates):
    """Every configuration once, the dtypes in turn."""
    index, count = 0, 1
    while index < count:
        candidates["index"] = index
        choice.forget()
        check(case, DTYPES[index % 3], "sliced" if index == 1 else "channels_last")
        index, count = index + 1, max(count, len(candidates["names"]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_dtypes(op, dtype):
    check(next(case for case in SMALL if case.op == op and case.shapes["input"][0] > 0), dtype)


@pytest.mark.parametrize("activation", CODES)
def test_activations(activation):
    shapes = {"input": (2, 5, 3, 7), "weight": (9, 5, 1, 1), "bias": (9,), "residual": (2, 9, 3, 7)}
    check(Case("pointwise_conv2d", shapes, {"activation": activation}), torch.float32)


def test_rows_beyond_a_block():
    """More pixels than a program owns, and a residual, a scale and an activation at once."""
    shapes = {"input": (3, 24, 13, 11), "weight": (40, 24, 1, 1), "bias": (40,)}
    shapes |= {"residual": (3, 40, 13, 11), "input_scale": (3, 24)}
    for dtype in DTYPES:
        check(Case("pointwise_conv2d", shapes, {"activation": "hardswish"}), dtype)


def test_sums_of_a_depthwise_convolution(candidates):
    from fastconv.gpu.depthwise_conv2d import depthwise_conv2d_pool

    torch.manual_seed(0)
    input, weight, bias = torch.randn(2, 12, 9, 7), torch.randn(12, 1, 3, 3), torch.randn(12)
    input, weight, bias = (tensor.to(cases.DEVICE) for tensor in (input, weight, bias))
    args = (input, weight, bias, (2, 1), (1, 1, 0, 2), (1, 1))
    expected = reference.depthwise_conv2d(*args, activation="relu6")
    index, count = 0, 1
    while index < count:
        candidates["index"] = index
        choice.forget()
        output, sums = depthwise_conv2d_pool(*args, CODES["relu6"])
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(sums.sum(1), expected.sum((2, 3)), rtol=1e-5, atol=1e-5)
        index, count = index + 1, len(candidates["names"])


@in_interpreter
def test_no_derivatives_in_the_interpreter():
    weight = torch.randn(4, 3, 1, 1, requires_grad=True)
    with pytest.raises(fastconv.BackendError, match="there are neither derivatives nor graphs"):
        fastconv.pointwise_conv2d(torch.randn(1, 3, 2, 2), weight)


@in_interpreter
def test_modules_are_not_interpreted():
    layer = fastconv.nn.Conv2d(3, 4, 1).eval()
    with torch.no_grad(), pytest.raises(fastconv.BackendError, match="functions, not modules"):
        layer(torch.randn(1, 3, 2, 2))
