"""A chain of ops in one native call: bit for bit what its ops give one by one."""

import itertools
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastconv
from fastconv import backend, folding
from fastconv.activation import CODES
from fastconv.nn import Conv2d, Conv2dNormAct, DepthwiseSeparableConv2d, InvertedResidual, Linear
from fastconv.ops._sequential import (
    Step,
    StepKind,
    sequential,
    sequential_times,
    steps_text,
    works,
)

SEQUENTIAL = torch.ops.fastconv.sequential
SEQUENTIAL_TIMES = torch.ops.fastconv.sequential_times


def _chains():
    norm = {"norm_layer": nn.BatchNorm2d, "activation_layer": nn.ReLU6}
    yield (
        "a network",
        [
            Conv2dNormAct(3, 9, 3, 2, **norm),
            DepthwiseSeparableConv2d(9, 17, activation_layer=None),
            InvertedResidual(17, 24, 2, 3),
            InvertedResidual(24, 24, 1, 3, kernel_size=5, activation_layer=nn.Hardswish),
            InvertedResidual(24, 24, 1, 1),
            Conv2dNormAct(24, 33, 1, **norm),
            Linear(33, 12),
            Linear(12, 5),
        ],
    )
    yield (
        "maps only",
        [
            InvertedResidual(3, 16, 1, 2),
            Conv2d(16, 16, 3, padding=1, groups=16),
            Conv2d(16, 7, 1, stride=2),
            Conv2dNormAct(7, 7, (3, 2), 1, (1, 0), 7, **norm, dilation=(2, 1)),
        ],
    )
    yield "one step", [Conv2dNormAct(3, 16, 3, 2, activation_layer=nn.SiLU)]


CHAINS = dict(_chains())

# The first two steps run band by band where the map between them is large.
BANDED = {
    "stride 1": [Conv2dNormAct(3, 40, 3, 2), DepthwiseSeparableConv2d(40, 17)],
    "stride 2": [Conv2dNormAct(3, 40, 3, 2), DepthwiseSeparableConv2d(40, 24, 5, 2)],
    "residual": [
        Conv2dNormAct(3, 48, (5, 3), (2, 1), (0, 2)),
        InvertedResidual(48, 48, 1, 1),
        Conv2d(48, 5, 1),
    ],
    "no overlap": [Conv2dNormAct(3, 40, 3, 2), DepthwiseSeparableConv2d(40, 9, 1, 3, 2)],
}


def _natives(layers):
    """The native forms of layers; a 1x1 convolution before a Linear is pooled."""
    for index, layer in enumerate(layers):
        followed = index + 1 < len(layers) and isinstance(layers[index + 1], Linear)
        pooled = followed and isinstance(layer, Conv2dNormAct)
        dims = 2 if isinstance(layer, Linear) else 4
        yield layer.packed_native("pooled" if pooled else "forward", dims)


@pytest.fixture(params=CHAINS)
def chain(request, native):
    """(steps, packed, what the ops give one by one, what plain PyTorch gives)."""
    return _chain(CHAINS[request.param])


def _chain(layers):
    torch.manual_seed(0)
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        layer.eval().requires_grad_(False)
    natives = list(_natives(layers))
    steps = steps_text(step for one in natives for step in one.steps)
    packed = torch.cat([one.packed for one in natives])

    def one_by_one(input):
        for one in natives:
            input = one.run()(input)
        return input

    def plain(input):
        for layer in layers:
            if isinstance(layer, Linear) and input.dim() == 4:
                input = input.mean((2, 3))
            input = layer(input)
        return input

    return steps, packed, one_by_one, plain


def _inputs(batch):
    torch.manual_seed(batch)
    yield torch.randn(batch, 3, 23, 21)
    yield torch.randn(batch, 3, 23, 21).contiguous(memory_format=torch.channels_last)
    yield torch.randn(batch + 1, 4, 30, 21)[1:, 1:, 7:].expand(batch, 3, 23, 21)
    yield torch.randn(1, 3, 64, 50).expand(batch, 3, 64, 50)


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 7, 9])
def test_forward(chain, batch):
    steps, packed, one_by_one, plain = chain
    threads = torch.get_num_threads()
    try:
        for input in _inputs(batch):
            expected = one_by_one(input)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                output = sequential(input, steps, packed)
                assert output.stride() == expected.stride()
                assert torch.equal(output, expected), f"{count} threads"
            with fastconv.use_backend("reference"):
                torch.testing.assert_close(output, plain(input), rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", BANDED)
def test_bands(native, name):
    steps, packed, one_by_one, _ = _chain(BANDED[name])
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    try:
        for input in (torch.randn(1, 3, 167, 155), torch.randn(3, 3, 151, 300)[..., ::2]):
            expected = one_by_one(input)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert torch.equal(sequential(input, steps, packed), expected), f"{count} threads"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("count", [1, 2])
def test_times(chain, count):
    steps, packed, _, _ = chain
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        for input in _inputs(3):
            begin = time.perf_counter_ns()
            output, nanoseconds = sequential_times(input, steps, packed)
            most = count * (time.perf_counter_ns() - begin)
            assert torch.equal(output, sequential(input, steps, packed))
            assert nanoseconds.shape == (len(works(input.shape[1:], steps)),)
            assert nanoseconds.dtype is torch.int64
            assert (nanoseconds > 0).all()  # none of these maps is so large that two run as one
            assert int(nanoseconds.sum()) <= most
    finally:
        torch.set_num_threads(threads)


def test_steps_that_run_as_one_have_one_time(native):
    steps, packed, _, _ = _chain(BANDED["stride 1"])
    _, nanoseconds = sequential_times(torch.randn(1, 3, 300, 300), steps, packed)
    assert nanoseconds[0] > 0
    assert nanoseconds[1] == 0


def test_opcheck(chain):
    steps, packed, _, _ = chain
    for input in _inputs(2):
        torch.library.opcheck(SEQUENTIAL.default, (input, steps, packed))
    # No two calls take the same time, so results are not compared.
    tests = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(SEQUENTIAL_TIMES.default, (input, steps, packed), test_utils=tests)


def test_flops(chain):
    steps, packed, one_by_one, _ = chain
    input = next(_inputs(2))
    with FlopCounterMode(display=False) as whole:
        sequential_output = SEQUENTIAL(input, steps, packed)
    with FlopCounterMode(display=False) as parts:
        output = one_by_one(input)
    assert sequential_output.shape == output.shape
    assert whole.get_total_flops() == parts.get_total_flops() > 0


def _weights(out, depth=4):
    return folding.pack_pointwise(torch.randn(out, depth, 1, 1), None)


POINTWISE = Step(StepKind.POINTWISE, 8)
MAX_POOL = Step(StepKind.MAX_POOL, 0)
IDENTITY = Step(StepKind.INVERTED_RESIDUAL, 8, kernel=(1, 1), residual=1)


def _changed(step, field, value):
    numbers = step.numbers()
    numbers[field] = value
    return numbers


@pytest.mark.parametrize(
    ("steps", "packed", "message"),
    [
        ([], lambda: _weights(8), "steps must have a multiple of 21 numbers, got 0"),
        ([1, 2, 3], lambda: _weights(8), "steps must have a multiple of 21 numbers, got 3"),
        (["x", *POINTWISE.numbers()[1:]], lambda: _weights(8), "steps must have a multiple of 21"),
        ([*POINTWISE.numbers(), "x"], lambda: _weights(8), "steps must have a multiple of 21"),
        ([*POINTWISE.numbers()[:-1], 2**70], lambda: _weights(8), "steps must have a multiple"),
        (
            _changed(POINTWISE, 0, 10),
            lambda: _weights(8),
            "steps' kind must be from 0 to 9",
        ),
        (_changed(POINTWISE, 0, -1), lambda: _weights(8), "steps' kind must"),
        (_changed(POINTWISE, 1, 0), lambda: _weights(8), "steps' sizes must be from 1 to"),
        (_changed(POINTWISE, 1, 2**40), lambda: _weights(8), "steps' sizes must be from 1 to"),
        (_changed(POINTWISE, 5, 0), lambda: _weights(8), "steps' stride must"),
        (_changed(POINTWISE, 14, 9), lambda: _weights(8), "steps' out_activation must"),
        (_changed(POINTWISE, 15, 1), lambda: _weights(8), "a step with a residual must"),
        (POINTWISE.numbers(), lambda: _weights(9), "packed must hold 8 x 4 weights"),
        (POINTWISE.numbers(), lambda: _weights(8, 5), "packed must hold 8 x 4 weights"),
        (POINTWISE.numbers(), lambda: _weights(8)[:-1], "packed must hold 8 x 4 weights"),
        (POINTWISE.numbers(), lambda: torch.cat([_weights(8)] * 2), "packed must end with"),
        (POINTWISE.numbers(), lambda: _weights(8).double(), "packed must be float32"),
        (IDENTITY.numbers(), lambda: _weights(8), "packed must hold 4 x 1 weights"),
        (Step(StepKind.LINEAR, 8).numbers(), lambda: _weights(8), "a linear step must follow"),
        (Step(StepKind.DEPTHWISE, 8).numbers(), lambda: _weights(8), "a depthwise step must have"),
        (
            Step(StepKind.DEPTHWISE, 4, kernel=(9, 1)).numbers(),
            lambda: _weights(8),
            "input must be, with its padding, at least as large as the kernel, got 5 x 6",
        ),
        (
            _changed(POINTWISE, 19, 1),
            lambda: _weights(8),
            "a step's source must be a map",
        ),
        (
            _changed(POINTWISE, 15, 3),
            lambda: _weights(8),
            "a step's source must be a map",
        ),
        (_changed(POINTWISE, 20, 1), lambda: _weights(8), "a step that joins another must"),
        (
            [*POINTWISE.numbers(), *_changed(MAX_POOL, 15, 1)],
            lambda: _weights(8),
            "a step with a residual must",
        ),
        (  # of another size
            [*POINTWISE.numbers(), *MAX_POOL._replace(source=1, joins=1, stride=(2, 2)).numbers()],
            lambda: _weights(8),
            "a step that joins another must",
        ),
        (  # after it was read
            [*POINTWISE.numbers(), *MAX_POOL.numbers(), *MAX_POOL._replace(joins=2).numbers()],
            lambda: _weights(8),
            "a step that joins another must",
        ),
        (  # six maps wait for the end
            [
                *itertools.chain(*(MAX_POOL._replace(source=i).numbers() for i in range(6))),
                *POINTWISE._replace(out_channels=4, source=5).numbers() * 5,
            ],
            lambda: torch.cat([_weights(4)] * 5),
            "steps must need at most 5 maps at the same time",
        ),
    ],
)
def test_rejects(native, steps, packed, message):
    with pytest.raises(RuntimeError, match=f"sequential: {message}"):
        SEQUENTIAL(torch.randn(1, 4, 5, 6), " ".join(map(str, steps)), packed())


@pytest.mark.parametrize("batch", [0, 1, 2, 5])
def test_fully_connected_layers(native, batch):
    torch.manual_seed(batch)
    layers = [nn.Linear(33, 70), nn.Linear(70, 9, bias=False)]
    steps = [
        Step(StepKind.LINEAR, 70, out_activation=CODES["hardswish"]),
        Step(StepKind.LINEAR, 9, out_activation=CODES["sigmoid"]),
    ]
    with torch.no_grad():
        packed = torch.cat([folding.pack_pointwise(m.weight, m.bias) for m in layers])
        for input in (torch.randn(batch, 33), torch.randn(batch + 1, 66)[1:, ::2]):
            expected = layers[1](nn.functional.hardswish(layers[0](input))).sigmoid()
            output = sequential(input, steps_text(steps), packed)
            torch.testing.assert_close(output, expected)
            torch.library.opcheck(SEQUENTIAL.default, (input, steps_text(steps), packed))
            with FlopCounterMode(display=False) as flops:
                sequential(input, steps_text(steps), packed)
            assert flops.get_total_flops() == 2 * batch * (33 * 70 + 70 * 9)


def test_rejects_inputs(native):
    steps, packed = steps_text([POINTWISE]), _weights(8)
    for input, message in (
        (torch.randn(4, 4), "input must have 4 dimensions"),
        (torch.randn(4, 0), r"input must have shape \(N, C\) with C at least 1"),
        (torch.randn(4, 5, 6), "input must have 4 dimensions"),
        (torch.randn(1, 4, 5, 6).double(), "input must be float32"),
        (torch.randn(1, 4, 0, 6), "input must have shape"),
        (torch.randn(1, 3, 5, 6), "packed must hold 8 x 3 weights"),
    ):
        with pytest.raises(RuntimeError, match=f"sequential: {message}"):
            SEQUENTIAL(input, steps, packed)


def test_plans_are_not_mixed_up(native):
    """What was read for one chain, size or set of weights is not used for another."""
    torch.manual_seed(0)
    for _ in range(2):
        for channels in range(1, 12):  # more than are kept
            steps = steps_text([POINTWISE._replace(out_channels=channels)])
            for depth in (3, 4):
                weight = torch.randn(channels, depth, 1, 1)
                packed = folding.pack_pointwise(weight, None)
                for height in (5, 7):
                    input = torch.randn(2, depth, height, 6)
                    expected = torch.nn.functional.conv2d(input, weight)
                    torch.testing.assert_close(SEQUENTIAL(input, steps, packed), expected)
    best = torch.ops.fastconv.isa(-1)
    with backend.use_isa(0):
        if best != 0:
            with pytest.raises(RuntimeError, match=r"packed must hold .* on scalar"):
                SEQUENTIAL(input, steps, packed)
