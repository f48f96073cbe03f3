"""Chains whose steps read earlier maps, add one or write a part of one, against their parts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastconv
from fastconv import models
from fastconv.activation import CODES
from fastconv.nn import Conv2dNormAct
from fastconv.nn._graph import INPUT, Graph, native_average_pool, native_max_pool, native_module
from fastconv.ops._sequential import StepKind

from .test_nn import Calls

NORM = {"norm_layer": nn.BatchNorm2d, "activation_layer": nn.ReLU}


def _layer(*args, **kwargs):
    layer = Conv2dNormAct(*args, **(NORM | kwargs)).eval()
    nn.init.normal_(layer[1].running_mean)
    nn.init.normal_(layer[1].bias)
    return layer


def _bottleneck(pack):
    """A residual block with a shortcut of its own, and one without."""
    graph = Graph(pack)
    shortcut = graph.add(native_module(_layer(24, 40, 1, 2, activation_layer=None), pack), INPUT)
    map = graph.add(native_module(_layer(24, 16, 1), pack), INPUT)
    map = graph.add(native_module(_layer(16, 16, 3, 2, 1), pack), map)
    map = graph.add_residual(nn.Conv2d(16, 40, 1), _norm(40), nn.ReLU(), map, shortcut)
    inner = graph.add(native_module(_layer(40, 40, 3, 1, 1), pack), map)
    graph.add_residual(nn.Conv2d(40, 40, 3, padding=1), _norm(40), nn.Hardswish(), inner, map)
    return graph


def _norm(channels):
    norm = nn.BatchNorm2d(channels).eval()
    nn.init.normal_(norm.running_mean)
    return norm


def _inception(pack):
    """Branches side by side, read by a layer behind them; channels that are no whole vectors."""
    graph = Graph(pack)
    joint = graph.add(native_module(_layer(24, 9, 1), pack), INPUT)
    map = graph.add(native_module(_layer(24, 16, 1), pack), INPUT)
    graph.add(native_module(_layer(16, 21, 3, 1, 1), pack), map, joint)
    map = graph.add(native_module(_layer(24, 5, 1), pack), INPUT)
    graph.add(native_module(_layer(5, 7, 5, 1, 2), pack), map, joint)
    map = graph.add(native_max_pool(nn.MaxPool2d(3, 1, 1, ceil_mode=True), pack), INPUT)
    graph.add(native_module(_layer(24, 8, 1), pack), map, joint)
    last = graph.add(native_average_pool(nn.AvgPool2d(3, 1, 1), pack), INPUT, joint)
    graph.add(native_module(_layer(69, 12, 1), pack), last)
    return graph


def _joined_last(pack):
    """What is joined is the output, and a pooling the first of its parts."""
    graph = Graph(pack)
    joint = graph.add(native_max_pool(nn.MaxPool2d(3, 2), pack), INPUT)
    graph.add(native_module(_layer(24, 17, 3, 2, 0), pack), INPUT, joint)
    return graph


GRAPHS = (_bottleneck, _inception, _joined_last)


@pytest.mark.parametrize("make", GRAPHS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_forward(native, make, batch):
    torch.manual_seed(0)
    with torch.no_grad():
        packed = make(True).native()
        torch.manual_seed(0)
        parts = make(False)
        plain = parts.native()
        assert plain.packed is None
        assert packed.packed is not None  # one native call
        assert packed.steps == plain.steps
        for size in ((13, 9), (7, 16)):
            input = torch.randn(batch, 24, *size)
            expected = parts._run(input)
            for given in (input, input.to(memory_format=torch.channels_last)):
                outputs = []
                threads = torch.get_num_threads()
                try:
                    for count in (1, 2, 3):
                        torch.set_num_threads(count)
                        outputs.append(packed.run()(given))
                finally:
                    torch.set_num_threads(threads)
                assert outputs[0].is_contiguous(memory_format=torch.channels_last)
                assert all(torch.equal(output, outputs[0]) for output in outputs)
                torch.testing.assert_close(outputs[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", GRAPHS)
def test_fake_and_flops(native, make):
    torch.manual_seed(0)
    packed, input = make(True).native(), torch.randn(2, 24, 11, 8)
    arguments = (input, packed.call.__closure__[0].cell_contents, packed.packed)
    with FlopCounterMode(display=False) as whole:
        output = torch.ops.fastconv.sequential(*arguments)
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as parts, torch.no_grad():
        make(False)._run(input)
    assert whole.get_total_flops() == parts.get_total_flops() > 0
    meta = torch.ops.fastconv.sequential(
        *(x.to("meta") if isinstance(x, torch.Tensor) else x for x in arguments)
    )
    assert meta.shape == output.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d((2, 3), (1, 2), (1, 0)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.AvgPool2d(3, 1, 1),
        nn.AvgPool2d((1, 4), 3),
    ],
)
def test_pooling_is_pytorch_s(native, pool, dtype):
    if dtype is torch.bfloat16 and not torch.ops.fastconv.has_kernels(1):
        pytest.skip("this CPU has no bfloat16 kernels")
    torch.manual_seed(0)
    graph = Graph(True)
    graph.add(native_module(pool, True), INPUT)
    run = graph.native().run()
    for size in ((9, 12), (5, 7)):
        input = torch.randn(2, 19, *size, dtype=dtype)
        input[1, 0] = -torch.inf
        torch.testing.assert_close(run(input), pool(input))


def test_max_pooling_keeps_nan(native):
    """Where a window has one, wherever it lies in it."""
    graph = Graph(True)
    graph.add(native_max_pool(nn.MaxPool2d(3, 2, 1), True), INPUT)
    run = graph.native().run()
    for place in range(16):
        input = torch.randn(1, 9, 4, 4)
        input.view(1, 9, 16)[0, 5, place] = torch.nan
        expected = F.max_pool2d(input, 3, 2, 1)
        torch.testing.assert_close(run(input), expected, equal_nan=True)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, dilation=2),
        nn.MaxPool2d(2, return_indices=True),
        nn.MaxPool2d(2, 2, 1, ceil_mode=True),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3),
    ],
)
def test_other_pooling_is_left_alone(pool):
    assert native_module(pool, False) is None


def test_a_residual_s_activation_is_that_of_the_step():
    graph = Graph(False)
    graph.add_residual(nn.Conv2d(4, 4, 3, padding=1), _norm(4), nn.ReLU(), INPUT, INPUT)
    (step,) = graph.native().steps
    assert (step.kind, step.residual) == (StepKind.CONV2D_BIAS_ACT, 1)
    assert step.out_activation == CODES["relu"]


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "resnet50", "googlenet", "inception_v3"])
def test_classic_networks_are_one_call(native, name):
    model = models.create_model(name, num_classes=5).eval()
    input = torch.randn(2, 1, 32, 32) if name == "lenet5" else torch.randn(2, 3, 96, 96)
    with torch.no_grad(), Calls() as calls:
        output = model(input)
    assert calls.names == ["sequential"]
    with torch.no_grad(), fastconv.use_backend("reference"):
        torch.testing.assert_close(output, model(input), rtol=0, atol=1e-4 * output.abs().max())


def test_branches_read_their_input_together():
    """The 1x1 convolutions of an Inception block are steps side by side on one map."""
    block = models.Inception(24, 8, 16, 24, 8, 16, 8).eval()
    with torch.no_grad():
        steps = block.form(False).steps
    assert [step.kind for step in steps[:3]] == [StepKind.POINTWISE] * 3
    assert [step.source for step in steps[:3]] == [0, 1, 2]


@pytest.mark.parametrize("size", [33, 96])
def test_images_in_groups_are_what_each_is_alone(native, size):
    """Of a network whose packed weights, over 100 MB, few L3s keep: some images share them."""
    torch.manual_seed(0)
    model, images = models.resnet50().eval(), torch.randn(11, 3, size, size)
    model.fc = nn.Identity()  # sums of one image go another way there
    threads = torch.get_num_threads()
    try:
        with torch.inference_mode():
            expected = torch.cat([model(image) for image in images.split(1)])
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert torch.equal(model(images), expected), f"{count} threads"
    finally:
        torch.set_num_threads(threads)
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max()
