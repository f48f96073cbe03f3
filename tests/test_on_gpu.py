"""Whole networks, modes and sizes that only a GPU can run."""

import copy

import pytest
import torch

import fastconv

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")
LIMIT = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}  # of the largest logit


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


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_more_than_2_to_the_31_elements(backend):
    free, _ = torch.cuda.mem_get_info()
    n, c, size = 170, 64, 448  # 2.18e9 elements
    if free < 5 * n * c * size * size:
        pytest.skip("needs 11 GB of free GPU memory")
    input = torch.zeros(n, c, size, size, device="cuda", dtype=torch.half)
    input = input.to(memory_format=torch.channels_last)
    input[-1] = torch.randn(c, size, size, device="cuda", dtype=torch.half)
    filters = torch.randn(c, 1, 3, 3, device="cuda", dtype=torch.half)
    with torch.inference_mode(), fastconv.use_backend(backend):
        output = fastconv.depthwise_conv2d(input, filters, padding=1)
        last = fastconv.depthwise_conv2d(input[-1:], filters, padding=1)
        torch.testing.assert_close(output[-1:], last)
        del output
        if backend == "triton":
            weight = torch.randn(c, c, 1, 1, device="cuda", dtype=torch.half)
            output = fastconv.pointwise_conv2d(input, weight)
            last = fastconv.pointwise_conv2d(input[-1:], weight)
            torch.testing.assert_close(output[-1:], last)
