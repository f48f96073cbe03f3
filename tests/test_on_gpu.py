"""Dtypes, whole networks and modes that only a GPU can run."""

import copy

import pytest
import torch

import fastconv
from fastconv import reference
from fastconv.gpu import choice, ops

from .assertions import assert_forward, run
from .cases import CASES
from .test_nn import Calls
from .test_train import assert_close_to_truth, without_corners
from .train_cases import BLOCKS, MODES, assert_trains_as_accurately, prepared, trained

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


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BLOCKS)
def test_training(name, mode, backend):
    module, input = prepared(name, mode)
    with Calls() as calls:
        assert_trains_as_accurately(module.cuda(), input.cuda(), backend=backend)
    assert any(called.startswith("train_") for called in calls.names)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BLOCKS)
def test_training_in_autocast(name, mode, dtype):
    module, input = prepared(name, mode)
    without_corners(module)
    module, input = module.cuda(), input.to("cuda", dtype)  # as inside a network
    ours, theirs = (trained(module, input, b, dtype) for b in ("auto", "reference"))
    truth = trained(copy.deepcopy(module).double(), input.double(), "reference")
    assert_close_to_truth(ours, theirs, truth)


def step(model, input, target):
    return torch.nn.functional.cross_entropy(model(input).float(), target)


def losses(backend, count, dtype=None):
    torch.manual_seed(0)
    model = fastconv.models.create_model("mobilenet_v2", num_classes=10).train().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    input, target = torch.randn(32, 3, 64, 64, device="cuda"), torch.arange(32).cuda() % 10
    found = []
    for _ in range(count):
        torch.manual_seed(1)  # for what is dropped
        with (
            fastconv.use_backend(backend),
            torch.autocast("cuda", dtype, enabled=dtype is not None),
        ):
            loss = step(model, input, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.mark.parametrize("dtype", [None, *HALVES], ids=str)
def test_a_network_learns(measuring, dtype):
    """With the candidates that are measured: the first losses are PyTorch's, the last ones low."""
    ours, theirs = losses("auto", 30, dtype), losses("reference", 3, dtype)
    limit = 1e-3 if dtype is None else 2e-2
    torch.testing.assert_close(ours[0], theirs[0], rtol=limit, atol=0)
    # Then every value on the other side of a bend counts.
    torch.testing.assert_close(ours[:3], theirs, rtol=5e-2, atol=0)
    assert ours[-1] < 0.3 * ours[0]
    assert any("train_pointwise_conv2d" in file.read_text() for file in measuring.rglob("*.json"))


def test_a_step_is_the_same_in_every_run():
    ours, again = losses("auto", 3), losses("auto", 3)
    assert torch.equal(ours, again)


def test_compiled_training():
    model, target = network("mobilenet_v2").train().requires_grad_().cuda(), torch.arange(4).cuda()
    eager, input = copy.deepcopy(model), torch.randn(4, 3, 64, 64, device="cuda")
    for part in (*model.modules(), *eager.modules()):
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(model, input, target), step(eager, input, target)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
