"""The backend of torch.compile: what becomes native, and that it computes the same."""

import importlib.metadata

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastconv import _compile
from fastconv._torchvision import import_torchvision

from .test_nn import Calls, randomized

torchvision = import_torchvision()


def rewritten(module, input):
    """The module's output by its rewritten graph, the native ops, and the convolutions in them."""
    counts, names = [], []

    def compiled(graph, inputs):
        counts.append(_compile.rewrite(graph))

        def run(*arguments):
            with Calls() as calls:
                output = graph(*arguments)
            names.extend(calls.names)
            return output

        return run

    torch._dynamo.reset()
    with torch.no_grad():
        output = torch.compile(module, backend=compiled, fullgraph=True)(input)
    return output, names, counts[0]


class Block(nn.Module):
    def __init__(self, add=True):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(8, 24, 1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU6(inplace=True),
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU6(inplace=True),
            nn.Conv2d(24, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.add = add

    def forward(self, x):
        y = self.body(x)
        return x + y if self.add else F.silu(y)


def _two(activation):
    return nn.Sequential(nn.Conv2d(8, 12, 3), activation, nn.Conv2d(12, 9, 1))


@pytest.mark.parametrize(
    ("make", "names", "count"),
    [
        (Block, ["inverted_residual"], 3),
        (lambda: Block(add=False), ["sequential"], 3),
        (lambda: nn.Conv2d(8, 12, 3, dilation=2), [], 0),
        (lambda: nn.Conv2d(8, 12, 1, groups=2), [], 0),
        (lambda: nn.Conv2d(8, 8, 3, padding="same", groups=8), [], 0),
        (lambda: nn.Sequential(nn.Conv2d(8, 12, 3), nn.ELU()), ["conv2d_bias_act"], 1),
        (lambda: _two(nn.GELU()), ["sequential"], 2),
        (lambda: _two(nn.Tanh()), ["sequential"], 2),
        (lambda: _two(nn.GELU("tanh")), ["conv2d_bias_act", "pointwise_conv2d"], 2),
    ],
)
def test_graphs(native, make, names, count):
    module, input = randomized(make()).eval(), torch.randn(2, 8, 9, 7)
    with torch.no_grad():
        expected = module(input)
    output, calls, converted = rewritten(module, input)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert converted == count
    if names != ["sequential"]:
        assert calls == names
    else:  # an activation behind the block: the ops one after the other are one call
        assert len(calls) == 1


@pytest.mark.skipif(torchvision is None, reason="torchvision is not installed")
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "resnet18"])
def test_networks(native, name):
    torch.manual_seed(0)
    module = randomized(getattr(torchvision.models, name)(num_classes=10)).eval()
    input = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = module(input)
    output, calls, converted = rewritten(module, input)
    scale = expected.abs().max()
    assert (output - expected).abs().max() <= 1e-3 * scale
    assert converted == sum(isinstance(m, nn.Conv2d) for m in module.modules())
    assert 0 < len(calls) <= converted


class InPlace(nn.Module):
    """Changes what a convolution has read, before its norm runs."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        x = x * 2
        y = self.conv(x)
        x += 1
        return self.norm(y) + x


def test_a_value_that_is_changed_in_place(native):
    module, input = randomized(InPlace()).eval(), torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        expected = module(input)
    output, _, converted = rewritten(module, input)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert converted == 0


def test_train_mode_and_gradients_are_inductor_s():
    module, input = randomized(Block()), torch.randn(2, 8, 9, 7)
    output, calls, converted = rewritten(module, input)  # BatchNorm needs the batch
    assert converted == 3
    assert "inverted_residual" not in calls
    torch._dynamo.reset()
    output = torch.compile(module.eval(), backend=_compile.fastconv)(input)
    output.sum().backward()
    assert module.body[0].weight.grad is not None


def test_with_inductor(native):
    module, input = randomized(Block()).eval(), torch.randn(2, 8, 9, 7)
    with torch.no_grad():
        expected = module(input)
        torch._dynamo.reset()
        compiled = torch.compile(module, backend=_compile.fastconv, fullgraph=True)
        torch.testing.assert_close(compiled(input), expected, rtol=1e-4, atol=1e-4)
        module.body[0].weight.mul_(2)  # which the compiled module sees
        torch.testing.assert_close(compiled(input), module(input), rtol=1e-4, atol=1e-4)


def test_the_name_is_registered():
    points = importlib.metadata.entry_points(group="torch_dynamo_backends")
    assert "fastconv" in {point.name for point in points}
