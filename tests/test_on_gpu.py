"""Dtypes, whole networks and modes that only a GPU can run."""

import copy

import pytest
import torch

import fastconv
from fastconv import reference
from fastconv.gpu import choice, ops

from .assertions import assert_forward, run
from .cases import CASES

OPS = [name for name in ops.ALL if name != "linear"]  # which is PyTorch's
HALVES = (torch.float16, torch.bfloat16)
# Of a float32 result whose products had 10 bits, by norm; layer after layer.
TF32_ERROR = 3e-3
NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")
LIMIT = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}  # of the largest logit


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
@pytest.mark.parametrize("case", [c for op in OPS for c in CASES[op]], ids=lambda c: f"{c.op}-{c}")
def test_forward(any_backend, case, layout, dtype):
    assert_forward(case, layout, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_there_is_a_kernel(op, dtype):
    """Skipped tests are no cover for a backend that has nothing: one of them runs each op."""
    refused = []
    for backend in ("triton", "cuda"):
        try:
            with torch.no_grad(), fastconv.use_backend(backend):
                run(CASES[op][0], CASES[op][0].arguments(dtype))
        except fastconv.BackendError as error:
            refused.append(str(error))
    assert len(refused) < 2, refused


@pytest.mark.parametrize("op", OPS)
def test_tf32(any_backend, op, monkeypatch):
    """Where PyTorch may use it, so may the kernels; nothing else gets less exact."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for case in CASES[op]:
        exact = case.arguments(torch.float64, device="cpu")
        truth = getattr(reference, op)(**exact)
        with torch.no_grad():
            error = (run(case, case.arguments()).cpu() - truth).norm()
        assert error <= TF32_ERROR * truth.norm(), case


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    """Candidates are timed, which they are not for deterministic algorithms."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.use_deterministic_algorithms(False)
    choice.forget()
    yield tmp_path
    choice.forget()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_measured_choices(measuring, op, dtype):
    case = CASES[op][0]
    assert_forward(case, "channels_last", dtype)
    assert list(measuring.rglob("*.json"))  # what was the fastest is remembered


def network(name):
    torch.manual_seed(0)
    model = fastconv.models.create_model(name, num_classes=10).requires_grad_(False)
    model.train()(torch.randn(4, 3, 96, 96))
    return model.eval()


def close(output, expected, dtype):
    scale = expected.abs().max()
    assert output.dtype is dtype
    assert ((output.double() - expected).abs().max() <= LIMIT[dtype] * scale).item()


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, dtype):
    model, input = network(name), torch.randn(3, 3, 96, 96)
    truth = copy.deepcopy(model).double()._plain_forward(input.double()).cuda()
    model, input = model.to("cuda", dtype), input.to("cuda", dtype)
    with torch.inference_mode():
        close(model(input), truth, dtype)
        close(model(input.contiguous(memory_format=torch.channels_last)), truth, dtype)
        assert model(input[:0]).shape == (0, 10)
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        if dtype is torch.float32:
            close(model(input), truth, torch.bfloat16)


def test_the_report_says_what_was_chosen():
    model = network("mobilenet_v2").cuda()
    with torch.inference_mode():
        model(torch.randn(1, 3, 96, 96, device="cuda"))
    rows = fastconv.report(model).rows
    assert any("measured" in text or "expected" in text for row in rows for text in row.chosen)


def test_swapped_models():
    from torch import nn

    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6()),
        *(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6()),
        *(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24)),
    )
    model = model.eval().cuda()
    input = torch.randn(2, 3, 33, 31, device="cuda")
    with torch.inference_mode():
        expected = model(input)
        fastconv.swap(model, verify=True)
        torch.testing.assert_close(model(input), expected, rtol=1e-3, atol=1e-4)
    model.train()
    model(input).sum().backward()


def test_compiled_with_cuda_graphs():
    model = network("mobilenet_v2").cuda()
    input = torch.randn(1, 3, 96, 96, device="cuda")
    compiled = torch.compile(model, mode="reduce-overhead")
    with torch.inference_mode():
        expected = model(input)
        for _ in range(3):
            torch.testing.assert_close(compiled(input).clone(), expected, rtol=1e-3, atol=1e-3)


def test_streams_and_devices():
    weight = torch.randn(32, 16, 1, 1, device="cuda")
    input = torch.randn(2, 16, 14, 14, device="cuda")
    expected = fastconv.pointwise_conv2d(input, weight)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = fastconv.pointwise_conv2d(input, weight)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(output, expected)
    if torch.cuda.device_count() > 1:
        other = fastconv.pointwise_conv2d(input.to("cuda:1"), weight.to("cuda:1"))
        assert other.device.index == 1
        torch.testing.assert_close(other.to("cuda:0"), expected)
