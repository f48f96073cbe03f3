"""The swap, its undoing, folding and reports: what is swapped, and what is said of it."""

import copy
import re

import pytest
import torch
from torch import nn

import fastconv
from fastconv._swapped import Swapped
from fastconv._torchvision import import_torchvision
from fastconv.cli import main

from .swap_helpers import Functional, Shortcut, close, net, output
from .test_nn import Calls, randomized


class Excite(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.down = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.SiLU()
        self.up = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(self.up(self.act(self.down(x.mean((2, 3), keepdim=True)))))


class Residual(nn.Module):
    """ResNet's basic block, with its names."""

    def __init__(self, inp=8, oup=12, stride=2):
        super().__init__()
        self.conv1 = nn.Conv2d(inp, oup, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(oup)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(oup, oup, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(oup)
        self.downsample = None
        if stride != 1 or inp != oup:
            self.downsample = nn.Sequential(nn.Conv2d(inp, oup, 1, stride), nn.BatchNorm2d(oup))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


BLOCKS = {  # id: (make, input's shape, name of the recipe)
    "inverted residual": (Shortcut, (2, 8, 9, 7), "inverted_residual"),
    "not added": (lambda: Shortcut(add=False), (2, 8, 9, 7), "inverted_residual"),
    "stride": (lambda: Shortcut(stride=2, add=False), (2, 8, 9, 7), "inverted_residual"),
    "kernel 5": (lambda: Shortcut(kernel=5, act=nn.SiLU), (1, 8, 8, 11), "inverted_residual"),
    "functional": (Functional, (2, 8, 5, 5), "pointwise_conv2d"),
    "no activation": (lambda: Functional(lambda x: x), (2, 8, 5, 5), "pointwise_conv2d"),
    "squeeze-excite": (lambda: Excite(12, 4), (2, 12, 6, 5), "squeeze_excite"),
    "residual": (Residual, (2, 8, 9, 8), "conv2d_bias_act + conv2d_bias_act + residual"),
    "same size": (
        lambda: Residual(8, 8, 1),
        (2, 8, 9, 8),
        "conv2d_bias_act + conv2d_bias_act + residual",
    ),
    "convolution": (lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8), (2, 8, 6, 9), None),
    "dense": (lambda: nn.Conv2d(8, 12, 3, stride=2), (2, 8, 7, 9), "conv2d_bias_act"),
    "flat": (
        lambda: nn.Sequential(
            nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1)
        ),
        (2, 8, 7, 9),
        "depthwise_separable_conv2d",
    ),
}


def make(name):
    torch.manual_seed(0)
    build, shape, recipe = BLOCKS[name]
    return randomized(build()).eval(), torch.randn(shape), recipe


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(native, name):
    module, input, recipe = make(name)
    expected = output(module, input)
    kind, keys = type(module), list(module.state_dict())
    assert fastconv.swap(module) is module
    assert isinstance(module, kind)
    assert isinstance(module, Swapped)
    assert recipe in (None, module.recipe().name)
    with Calls() as calls:
        actual = output(module, input)
    assert calls.names
    close(actual, expected)
    assert list(module.state_dict()) == keys
    assert fastconv.report(module).coverage == 1
    again = fastconv.swap(module)
    assert type(again).__mro__.count(Swapped) == 1
    assert torch.equal(output(module, input), actual)
    fastconv.restore(module)
    assert type(module) is kind
    assert torch.equal(output(module, input), expected)


def test_a_network_is_few_calls(native):
    model, input = net()
    expected = output(model, input)
    fastconv.swap(model)
    with Calls() as calls:
        close(output(model, input), expected)
    # The stem, two blocks that are added with one between them, and the last convolution.
    assert calls.names == ["conv2d_bias_act", "sequential", "pointwise_conv2d"]
    report = fastconv.report(model)
    assert report.coverage == 1
    assert report.mac_coverage == 1
    assert "100.0 %" in str(report)


def test_restore_is_exact():
    model, input = net()
    plain = copy.deepcopy(model)
    expected = output(model, input)
    fastconv.restore(fastconv.swap(model))
    assert torch.equal(output(model, input), expected)
    for (name, ours), (_, theirs) in zip(model.named_modules(), plain.named_modules(), strict=True):
        assert type(ours) is type(theirs), name
        assert ours.__dict__.keys() == theirs.__dict__.keys(), name
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)
    assert fastconv.report(model).coverage == 0


def test_filter():
    model, _ = net()
    names = []

    def wanted(module, name):
        names.append(name)
        return name != "body"

    fastconv.swap(model, filter_fn=wanted)
    assert "" in names
    assert "body.0" not in names
    assert not any(isinstance(m, Swapped) for m in model.body.modules())
    assert "filter_fn" in fastconv.report(model).skipped[0].reason
    fastconv.swap(model)
    assert fastconv.report(model).coverage == 1


def test_verify():
    model, input = net()
    model.train()
    fastconv.swap(model, verify=True, example_inputs=input)
    assert all(module.training for module in model.modules())
    errors = [row.error for row in fastconv.report(model).rows]
    assert all(error is not None and error < 1e-5 for error in errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_verify_refuses_another_result(monkeypatch, native, dtype):
    made_run = Swapped.made_run

    def wrong(self, kind, input):
        run = made_run(self, kind, input)
        return run and (lambda x: run(x) * 1.3)

    monkeypatch.setattr(Swapped, "made_run", wrong)
    model, input = net()
    with pytest.raises(RuntimeError, match="must compute what its own forward does"):
        fastconv.swap(model, dtype=dtype, verify=True, example_inputs=input.to(dtype))


@pytest.mark.parametrize("outside", [False, True])
def test_a_model_made_in_inference_mode(native, outside):
    model, input = net()
    expected = output(model, input)
    with torch.inference_mode():
        model = fastconv.swap(copy.deepcopy(model))
        if not outside:
            close(model(input), expected)
    with torch.no_grad(), Calls() as calls:
        close(model(input), expected)
    assert calls.names


def test_fold(native):
    model, input = net()
    expected = output(model, input)
    keys = list(model.state_dict())
    folded = fastconv.fold(model)
    close(output(folded, input), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert fastconv.report(folded).coverage == 1
    close(output(fastconv.restore(folded), input), expected)
    assert list(model.state_dict()) == keys
    assert not any(isinstance(m, Swapped) for m in model.modules())


def test_what_is_used_twice_is_not_folded_twice():
    conv, norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
    for layers in ([conv, norm, conv, nn.BatchNorm2d(8)], [conv, norm, nn.Conv2d(8, 8, 1), norm]):
        model = randomized(nn.Sequential(*layers)).eval()
        input = torch.randn(1, 8, 5, 5)
        close(output(fastconv.fold(model), input), output(model, input))


def test_the_same_layer_twice():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    input = torch.randn(1, 8, 9, 9)
    expected = output(model, input)
    close(output(fastconv.swap(model), input), expected)
    close(output(fastconv.fold(model), input), expected)


def test_weights_that_share_memory_still_do():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    model[2].weight.data = model[0].weight.data
    fastconv.swap(model)
    assert model[0].weight.data_ptr() == model[2].weight.data_ptr()


def test_memory_format_none_keeps_the_format():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    fastconv.swap(model, memory_format=None)
    input = torch.randn(2, 3, 8, 8)
    assert output(model, input).is_contiguous()
    last = input.contiguous(memory_format=torch.channels_last)
    assert output(model, last).is_contiguous(memory_format=torch.channels_last)


def test_a_model_without_anything_to_swap_is_unchanged():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.warns(UserWarning, match="swap: Sequential has nothing"):
        assert fastconv.swap(model) is model
    assert type(model) is nn.Sequential
    report = fastconv.report(model)
    assert report.rows == ()
    assert "no convolutions" in str(report)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), "groups of several"),
        (nn.Conv2d(8, 16, 3, groups=8), "several filters"),
        (nn.Conv2d(8, 8, 3, dilation=2), "dilation"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.ConvTranspose2d(8, 8, 3), "ConvTranspose2d"),
        (type("Mine", (nn.Conv2d,), {})(8, 8, 1), "Mine"),
    ],
)
def test_reasons(layer, reason):
    model = nn.Sequential(layer, nn.Conv2d(layer.out_channels, 8, 1)).eval()
    input = torch.randn(1, 8, 9, 9)
    expected = output(model, input)
    fastconv.swap(model)
    close(output(model, input), expected)
    report = fastconv.report(model, (8, 9, 9))
    assert [row.name for row in report.skipped] == ["0"]
    assert reason in report.skipped[0].reason
    assert report.to_dict()["coverage"] == 0.5
    assert 0 < report.mac_coverage < 1


def test_backend_of_a_model():
    model, input = net()
    expected = output(model, input)
    fastconv.swap(model, backend="reference")
    with Calls() as calls:
        close(output(model, input), expected)
    assert not calls.names
    assert "reference" in fastconv.report(model).skipped[0].reason
    fastconv.swap(model, backend="native")
    with pytest.raises(fastconv.BackendError, match="float64"):
        output(model.double(), input.double())


def test_the_command(capsys):
    if import_torchvision() is None:
        pytest.skip("torchvision is not installed")
    assert main(["report", "torchvision:squeezenet1_1"]) == 0
    text = capsys.readouterr().out
    assert "26 of 26 convolutions run natively" in text
    assert "features.0" in text


def test_rejects():
    for function in (fastconv.swap, fastconv.restore, fastconv.report):
        with pytest.raises(TypeError, match=re.escape("must be a torch.nn.Module, got int")):
            function(3)
    with pytest.raises(ValueError, match="swap: backend must be one of"):
        fastconv.swap(net()[0], backend="tpu")
