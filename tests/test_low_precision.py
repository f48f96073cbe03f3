"""bfloat16 and float16: of ops, layers and networks, as such, under autocast and after a swap."""

import copy

import pytest
import torch
from torch import nn

import fastconv
from fastconv import backend, models
from fastconv._torchvision import import_torchvision

from .assertions import assert_as_accurate, assert_backward, assert_forward
from .cases import CASES, small
from .conftest import LEVELS, running_on
from .test_nn import Calls

DTYPES = [torch.bfloat16, torch.float16]
# With the best level bfloat16 has kernels of its own, on most CPUs that have AVX-512; with the
# others it is computed in float32.
NATIVE = [f"native-{level}" for level in LEVELS or ["scalar"]]


@pytest.fixture(params=NATIVE)
def any_level(request):
    with running_on(request.param) as name:
        yield name


def maps_of(dtype):
    """What the kernels in use compute a dtype in."""
    own = dtype is torch.bfloat16 and backend.has_bfloat16
    return torch.bfloat16 if own else torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", [c for op in CASES for c in CASES[op]], ids=lambda c: f"{c.op}-{c}"
)
def test_forward(any_level, case, dtype):
    assert_forward(case, "sliced", dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", CASES)
def test_backward(native, op, dtype):
    assert_backward(small(op)[0], dtype)


def randomized(model):
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval().requires_grad_(False)


def small_net():
    """Everything that a chain can consist of."""
    torch.manual_seed(0)
    nn_ = fastconv.nn
    return randomized(
        nn.Sequential(
            nn_.Conv2dNormAct(3, 17, stride=2, activation_layer=nn.Hardswish),
            nn_.InvertedResidual(17, 24, 1, 3, activation_layer=nn.SiLU),
            nn_.InvertedResidual(
                24, 24, 1, 2, kernel_size=5, squeeze_excite=lambda mid: nn_.SqueezeExcite(mid, 7)
            ),
            nn_.DepthwiseSeparableConv2d(24, 33, 3, 2),
            nn_.SqueezeExcite(33, 9),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn_.Linear(33, 10),
        )
    )


def expected(model, input, dtype):
    """PyTorch's result in a dtype, and the truth."""
    with fastconv.use_backend("reference"), torch.inference_mode():
        theirs = copy.deepcopy(model).to(dtype)(input.to(dtype))
        return theirs, copy.deepcopy(model).double()(input.double())


def check_native(model, input, dtype):
    """The model in this dtype: as accurate as PyTorch's, and computed by the native ops alone."""
    theirs, truth = expected(model, input, dtype)
    model.to(dtype)
    with torch.inference_mode(), Calls() as calls:
        output = model(input.to(dtype))
    assert_as_accurate(output, theirs, truth)
    assert set(calls.dtypes) == {maps_of(dtype)}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layers(any_level, dtype, batch):
    check_native(small_net(), torch.randn(batch, 3, 29, 23), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_networks(any_level, name, dtype):
    torch.manual_seed(0)
    model = randomized(models.create_model(name, num_classes=10))
    check_native(model, torch.randn(2, 3, 64, 64), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast(any_level, dtype):
    model, input = small_net(), torch.randn(2, 3, 29, 23)
    _, truth = expected(model, input, torch.float32)
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        with fastconv.use_backend("reference"):
            theirs = model(input)
        with Calls() as calls:
            output = model(input)
            again = model(input.to(dtype))
    assert_as_accurate(output, theirs, truth)
    assert output.dtype is dtype
    torch.testing.assert_close(again, output, rtol=0.1, atol=0.1)
    assert set(calls.dtypes) == {maps_of(dtype)}
    with torch.inference_mode():  # and the packed weights of the one are not the other's
        assert_as_accurate(model(input), truth.float(), truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_of_an_op(any_level, dtype):
    input, weight = torch.randn(2, 24, 9, 7), torch.randn(40, 24, 1, 1)
    with torch.autocast("cpu", dtype), Calls() as calls:
        output = fastconv.pointwise_conv2d(input, weight, None)
        theirs = nn.functional.conv2d(input, weight)
    truth = nn.functional.conv2d(input.double(), weight.double())
    assert_as_accurate(output, theirs, truth)
    assert calls.dtypes == [maps_of(dtype)]
    weight.requires_grad_()
    with torch.autocast("cpu", dtype):
        fastconv.pointwise_conv2d(input, weight, None).float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype is torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_of_a_compiled_network(native, dtype):
    model, input = small_net(), torch.randn(2, 3, 29, 23)
    theirs, truth = expected(model, input, dtype)
    for compiler in ("fastconv", "aot_eager"):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=compiler)
        with torch.inference_mode(), torch.autocast("cpu", dtype):
            assert_as_accurate(compiled(input), theirs, truth, compiler)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0"])
def test_swap(native, name, dtype):
    torchvision = import_torchvision()
    if torchvision is None:
        pytest.skip("torchvision is not installed")
    torch.manual_seed(0)
    plain = randomized(getattr(torchvision.models, name)(num_classes=10))
    input = torch.randn(1, 3, 64, 64)
    theirs, truth = expected(plain, input, dtype)
    model = fastconv.swap(copy.deepcopy(plain), dtype=dtype)
    with torch.inference_mode(), Calls() as calls:
        output = model(input.to(dtype))
    assert_as_accurate(output, theirs, truth)
    assert set(calls.dtypes) == {maps_of(dtype)}
    fastconv.swap(copy.deepcopy(plain), dtype=dtype, verify=True, example_inputs=input.to(dtype))


def test_another_dtype_than_the_weights_is_refused_as_by_pytorch(native):
    model = small_net()
    for weights, maps in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        with pytest.raises(RuntimeError, match="type"), torch.inference_mode():
            model.to(weights)(torch.randn(1, 3, 9, 9, dtype=maps))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.inf, torch.nan, 3e38])
def test_values_at_the_limits_stay_where_they_are(any_level, dtype, value):
    """Of an odd number of inputs the last is multiplied alone: no neighbour has a weight of 0."""
    if value == 3e38:
        value = torch.finfo(dtype).max
    input = torch.zeros(1, 3, 4, 5, dtype=dtype)
    input[0, 0, 1, 2] = value
    pointwise = fastconv.pointwise_conv2d(input, torch.ones(17, 3, 1, 1, dtype=dtype), None)
    dense = fastconv.conv2d_bias_act(
        input, torch.ones(17, 3, 3, 3, dtype=dtype), None, padding=1, activation="none"
    )
    touched = torch.zeros(4, 5, dtype=torch.bool)
    touched[1, 2] = True
    assert torch.equal((pointwise[0, 5] != 0), touched)
    touched[0:3, 1:4] = True
    assert torch.equal((dense[0, 16] != 0), touched)
