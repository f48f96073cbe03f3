"""Layers in training, and with frozen norms, against PyTorch."""

import copy
import io
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import fastconv
from fastconv import backend
from fastconv.nn import Conv2dNormAct, InvertedResidual, MBConv, SqueezeExcite, StochasticDepth

from .conftest import ISA_LEVELS, LEVELS
from .test_nn import Calls
from .train_cases import (
    BLOCKS,
    MODES,
    assert_trains_as_accurately,
    prepared,
    randomized,
    trained,
)

pytestmark = pytest.mark.skipif(not LEVELS, reason="the native library is missing")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("level", LEVELS)
def test_gradients_and_statistics(level, name, mode):
    with backend.use_isa(ISA_LEVELS[level]):
        assert_trains_as_accurately(*prepared(name, mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BLOCKS)
def test_autocast(name, mode):
    module, input = prepared(name, mode)
    input = input.bfloat16()  # as inside a network
    without_corners(module)
    ours = trained(module, input, "native", torch.bfloat16)
    theirs = trained(module, input, "reference", torch.bfloat16)
    truth = trained(copy.deepcopy(module).double(), input.double(), "reference")
    assert_close_to_truth(ours, theirs, truth)


def without_corners(module):
    """Where a relu bends, one rounding more or less is a gradient or none."""
    for part in module.modules():
        for name, child in part.named_children():
            if isinstance(child, (nn.ReLU, nn.ReLU6, nn.Hardswish)):
                setattr(part, name, nn.SiLU())


def assert_close_to_truth(ours, theirs, truth):
    """Errors of low precision, as a whole: of a single value they are a matter of luck."""
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        if value.is_floating_point():
            error, allowed = ((v.double() - truth[name]).norm() for v in (value, theirs[name]))
            assert error <= 2 * allowed + 1e-3 * truth[name].norm() + 1e-6, name


@pytest.mark.parametrize("name", ["inverted", "mbconv"])
def test_bfloat16_weights(name):
    module, input = prepared(name, "train")
    without_corners(module.bfloat16())
    ours, theirs = (trained(module, input.bfloat16(), b) for b in ("native", "reference"))
    truth = trained(copy.deepcopy(module).double(), input.bfloat16().double(), "reference")
    assert_close_to_truth(ours, theirs, truth)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_layouts(layout):
    module, input = prepared("inverted", "train")
    forms = {
        "contiguous": input,
        "channels_last": input.contiguous(memory_format=torch.channels_last),
        "sliced": torch.randn(3, 30, 17, 12)[:, 3:27, 2:15, :11],
        "expanded": input[:1, :, :, :1].expand(3, -1, -1, 11),
    }
    assert_trains_as_accurately(module, forms[layout])


@pytest.mark.parametrize("name", BLOCKS)
def test_the_kernels_run(name):
    module, input = prepared(name, "train")
    with Calls() as calls:
        module(input.requires_grad_()).sum().backward()
    assert any(called.startswith("train_") for called in calls.names)
    backward = [called for called in calls.names if called.endswith("_backward")]
    dense = name in ("stem", "pointwise-stride")
    assert dense or len(backward) == sum(called.endswith("conv2d") for called in calls.names)


def test_gradcheck_of_the_blocks():
    # In float64 they are PyTorch's; that these are right is what the kernels are compared with.
    for name in ("inverted", "mbconv"):
        module = prepared(name, "train")[0].double()
        input = torch.randn(2, 24, 3, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(module, input)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_running_statistics(momentum):
    torch.manual_seed(0)
    ours = Conv2dNormAct(8, 12, 1, bias=True)
    ours[1].momentum = momentum
    theirs = copy.deepcopy(ours)
    for _ in range(3):
        input = torch.randn(2, 8, 5, 5) * 3 + 1
        ours(input)
        with fastconv.use_backend("reference"):
            theirs(input)
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    assert ours[1].num_batches_tracked.item() == 3


@pytest.mark.parametrize("kwargs", [{"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize("training", [True, False])
def test_unusual_norms(kwargs, training):
    torch.manual_seed(0)
    norm = lambda channels: nn.BatchNorm2d(channels, **kwargs)  # noqa: E731
    module = InvertedResidual(8, 8, 1, 3, norm_layer=norm).train(training)
    assert_trains_as_accurately(module, torch.randn(2, 8, 5, 5))


def test_constant_and_far_away_channels():
    module = Conv2dNormAct(8, 16, 1, activation_layer=None)
    with torch.no_grad():
        module[0].weight[3] = 0
    assert_trains_as_accurately(module, torch.randn(4, 8, 30, 30) + 300)


def test_one_value_per_channel_is_refused():
    module = Conv2dNormAct(8, 12, 1)
    messages = []
    for name in ("native", "reference"):
        with (
            fastconv.use_backend(name),
            pytest.raises(ValueError, match="more than 1 value per channel") as caught,
        ):
            module(torch.randn(1, 8, 1, 1))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_only_what_wants_a_gradient_gets_one():
    module, input = prepared("inverted", "train")
    parameters = dict(module.named_parameters())
    whole = trained(module, input)
    for name in parameters:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        copied = copy.deepcopy(module)
        own = dict(copied.named_parameters())
        own[name].requires_grad_()
        output = copied(input)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        with Calls() as calls:
            output.backward(grad)
        torch.testing.assert_close(own[name].grad, whole[f"grad {name}"])
        assert all(p.grad is None for n, p in own.items() if n != name)
        # Nothing before the only one is computed.
        count = {"conv.2.weight": 1, "conv.3.weight": 0, "conv.3.bias": 0}.get(name)
        backward = [called for called in calls.names if called.endswith("_backward")]
        assert count is None or len(backward) == count, name


def test_without_gradients_only_statistics_move():
    module, input = prepared("inverted", "train")
    expected = trained(module, input, "reference")
    with torch.no_grad():
        output = module(input)
    assert not output.requires_grad
    torch.testing.assert_close(output, expected["output"])
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, expected[f"buffer {name}"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["stem", "pointwise-bias", "separable", "inverted", "mbconv"])
def test_second_derivatives_are_right(name, mode):
    found = []
    for backend_name in ("native", "reference"):
        module, input = prepared(name, mode)
        module, input = module.double(), input.double().requires_grad_()
        if backend_name == "native":
            module, input = module.float(), input.detach().float().requires_grad_()
        with fastconv.use_backend(backend_name):
            loss = module(input).square().mean()
            grads = torch.autograd.grad(
                loss, [input, *module.parameters()], create_graph=True, materialize_grads=True
            )
            sum(grad.square().sum() for grad in grads).backward()
        found.append([input.grad, *(p.grad for p in module.parameters())])
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-3, atol=1e-3)


def test_a_second_derivative_of_the_ops_is_right():
    input, weight = torch.randn(2, 8, 5, 5), torch.randn(12, 8, 1, 1)
    found = []
    for name in ("native", "reference"):
        x, w = input.clone().requires_grad_(), weight.clone().requires_grad_()
        with fastconv.use_backend(name):
            output = fastconv.pointwise_conv2d(x, w, activation="silu")
            (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(grad.square().sum(), (x, w)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropped_branches(p):
    torch.manual_seed(0)
    excite = lambda mid: SqueezeExcite(mid, 4)  # noqa: E731
    module = randomized(MBConv(8, 24, 8, squeeze_excite=excite, stochastic_depth_prob=p))
    input, found = torch.randn(16, 8, 5, 5), []
    for name in ("native", "reference"):
        torch.manual_seed(3)
        found.append(trained(module, input, name))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-4)
    kept = (found[0]["output"] != input).flatten(1).any(1)
    assert not kept.all()
    assert kept.any() == (p < 1)


def test_a_dropped_branch_that_is_not_added_does_nothing():
    module = MBConv(8, 24, 16, stochastic_depth_prob=0.5)
    with Calls() as calls:
        module(torch.randn(4, 8, 5, 5))
    assert calls.names


def _bytes_kept(module, input):
    """By the graph, beside parameters and the input."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    known.add(input.untyped_storage().data_ptr())
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(input)
    return sum(kept.values()), output


def test_what_is_kept_for_the_backward_pass():
    module, input = prepared("inverted", "train")
    kept, _ = _bytes_kept(module, input)
    pixels = input.shape[0] * input.shape[2] * input.shape[3]
    raw = 4 * pixels * (144 + 144 + 24)
    assert raw <= kept <= 1.05 * raw  # and some vectors of channels
    with fastconv.use_backend("reference"):
        eager, _ = _bytes_kept(module, input)
    assert kept <= 0.6 * eager


def test_the_same_bits_with_any_number_of_threads():
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            found.append(
                {name: trained(*prepared(name, "train")) for name in ("inverted", "mbconv")}
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name, values in other.items():
            for key, value in values.items():
                assert torch.equal(value, found[0][name][key]), key


def test_deterministic_algorithms():
    torch.use_deterministic_algorithms(True)  # the fixture of all tests only warns
    trained(*prepared("mbconv", "train"))


@contextmanager
def _observing(module):
    seen = []
    handle = module.register_forward_hook(lambda *args: seen.append(args[2].shape))
    yield seen
    handle.remove()


def test_hooks_inside_see_their_module():
    module, input = prepared("inverted", "train")
    expected = trained(module, input)
    with _observing(module.conv[1]) as seen:
        found = trained(module, input)
    assert seen == [torch.Size((3, 144, 13, 11))]
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


def test_what_the_kernels_do_not_train():
    input = torch.randn(4, 8, 5, 5)
    norm = lambda channels: nn.GroupNorm(4, channels)  # noqa: E731
    for module in (
        Conv2dNormAct(8, 8, 1, norm_layer=norm),
        Conv2dNormAct(8, 8, 1, activation_layer=nn.Mish, inplace=None),
        Conv2dNormAct(8, 8, 1, norm_layer=None),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)),
    ):
        with Calls() as calls:
            module(input).sum().backward()
        assert not calls.names


def _grouped(module):
    module[0] = nn.Conv2d(8, 8, 3, groups=2)
    return module


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nn.SyncBatchNorm.convert_sync_batchnorm, "SyncBatchNorm takes its statistics from all"),
        (lambda m: m.double(), "input is torch.float64"),
        (
            lambda m: nn.Sequential.__setitem__(m, 0, nn.Conv2d(8, 8, 3, groups=2)) or m,
            "dense, 1x1",
        ),
    ],
)
def test_why_the_kernels_do_not_train(change, reason):
    module = change(Conv2dNormAct(8, 8, 3))
    input = torch.randn(4, 8, 5, 5, dtype=module[0].weight.dtype)
    with fastconv.use_backend("native"), pytest.raises(fastconv.BackendError, match=reason):
        module(input)
    row = fastconv.report(module).rows[0]
    assert not row.trains_in
    assert row.train_reason


def test_report_says_what_trains():
    model = fastconv.models.mobilenet_v2()
    rows = fastconv.report(model).rows
    assert all(row.trains_in and not row.train_reason for row in rows)
    assert rows[1].trains_in == "features.1"
    with fastconv.use_backend("reference"):
        assert not any(row.trains_in for row in fastconv.report(model).rows)


def test_flop_counter():
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for name in ("native", "reference"):
        module, input = prepared("separable", "train")
        with fastconv.use_backend(name), FlopCounterMode(display=False) as counter:
            module(input.requires_grad_()).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_saving_and_copies():
    module, input = prepared("mbconv", "train")
    module(input).sum().backward()
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    torch.testing.assert_close(loaded(input), copy.deepcopy(module)(input))


def test_stochastic_depth_alone_is_no_row():
    assert StochasticDepth(0.5)(torch.ones(4, 2, 3, 3)).shape == (4, 2, 3, 3)


def test_maps_larger_than_the_caches():
    # Their stores go past the caches, where whole lines are written: 48 channels, not 40.
    torch.manual_seed(0)
    for channels in (16, 40):
        module = randomized(InvertedResidual(channels, channels, 1, 3 if channels == 16 else 1))
        input = torch.randn(6, channels, 112, 112)
        truth = trained(module, input, "reference", None)
        for autocast in (None, torch.bfloat16):
            ours, theirs = (
                trained(module, input.to(autocast or torch.float32), name, autocast)
                for name in ("native", "reference")
            )
            for name, expected in truth.items():
                if expected.is_floating_point():
                    error, other = ((x[name].float() - expected).norm() for x in (ours, theirs))
                    limit = 1e-3 if autocast is None else 0.1
                    assert error <= other + limit * expected.norm() + 1e-4, name
