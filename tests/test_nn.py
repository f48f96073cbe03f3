"""Layers: the results of the modules they are made of, in every mode and after every change."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

import fastconv
from fastconv import backend, models
from fastconv.nn import (
    Conv2d,
    Conv2dNormAct,
    DepthwiseSeparableConv2d,
    InvertedResidual,
    Linear,
    SqueezeExcite,
)

NATIVE_OPS = {  # id: (make, input's shape, native op)
    "dense": (lambda: Conv2d(8, 12, 3, padding=1), (2, 8, 7, 9), "conv2d_bias_act"),
    "pointwise": (lambda: Conv2d(24, 40, 1), (2, 24, 9, 7), "pointwise_conv2d"),
    "pointwise-stride": (lambda: Conv2d(8, 9, 1, 2), (1, 8, 9, 7), "pointwise_conv2d"),
    "depthwise": (
        lambda: Conv2d(24, 24, (3, 5), (1, 2), (1, 2), groups=24, bias=False),
        (2, 24, 9, 7),
        "depthwise_conv2d",
    ),
    "depthwise-same": (
        lambda: Conv2d(24, 24, 4, padding="same", dilation=2, groups=24),
        (2, 24, 9, 10),
        "depthwise_conv2d",
    ),
    "stem": (lambda: Conv2d(3, 16, 3, 2, "valid"), (2, 3, 9, 7), "conv2d_bias_act"),
    "linear": (lambda: Linear(24, 40), (5, 24), "linear"),
    "norm-act": (lambda: Conv2dNormAct(3, 16, stride=2), (2, 3, 11, 9), "conv2d_bias_act"),
    "norm-act-pointwise": (
        lambda: Conv2dNormAct(12, 16, 1, activation_layer=nn.SiLU),
        (2, 12, 5, 5),
        "pointwise_conv2d",
    ),
    "norm-act-depthwise": (
        lambda: Conv2dNormAct(16, 16, 5, groups=16, activation_layer=nn.Hardswish, dilation=2),
        (2, 16, 9, 9),
        "depthwise_conv2d",
    ),
    "act-only": (
        lambda: Conv2dNormAct(12, 16, 1, norm_layer=None), (1, 12, 5, 5), "pointwise_conv2d",
    ),
    "norm-only": (
        lambda: Conv2dNormAct(12, 16, 1, activation_layer=None), (1, 12, 5, 5), "pointwise_conv2d",
    ),
    "separable": (
        lambda: DepthwiseSeparableConv2d(16, 24, 3, 2),
        (2, 16, 9, 7),
        "depthwise_separable_conv2d",
    ),
    "inverted": (lambda: InvertedResidual(16, 16, 1, 6), (2, 16, 9, 7), "inverted_residual"),
    "inverted-stride": (lambda: InvertedResidual(16, 24, 2, 3), (2, 16, 9, 7), "inverted_residual"),
    "inverted-no-expand": (
        lambda: InvertedResidual(16, 16, 1, 1), (2, 16, 9, 7), "depthwise_separable_conv2d",
    ),
    "inverted-excite": (
        lambda: InvertedResidual(
            16, 16, 1, 4, kernel_size=5, activation_layer=nn.SiLU,
            squeeze_excite=lambda mid: SqueezeExcite(mid, 4, nn.SiLU),
        ),
        (2, 16, 9, 7),
        "inverted_residual",
    ),
    "inverted-excite-no-expand": (
        lambda: InvertedResidual(16, 8, 2, 1, squeeze_excite=lambda mid: SqueezeExcite(mid, 4)),
        (2, 16, 9, 7),
        "inverted_residual",
    ),
    "excite": (
        lambda: SqueezeExcite(16, 4, scale_activation=nn.Hardsigmoid),
        (2, 16, 9, 7),
        "squeeze_excite",
    ),
}  # fmt: skip


class Calls(TorchDispatchMode):
    """The fastconv ops that are called, without _infer and without packing, and on which dtypes."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastconv" and not func._opname.startswith("pack"):
            self.names.append(func._opname.removesuffix("_infer"))
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def randomized(module):
    """Gives BatchNorms statistics that a folding mistake would show."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, 0, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.5)
    return module


def block():
    return randomized(InvertedResidual(16, 16, 1, 6)).eval(), torch.randn(2, 16, 9, 7)


def check(module, input, native=True):
    """The module's output is that of its plain forward, as one native op or not.

    A block that is not one op may still have parts that are.
    """
    with torch.no_grad(), Calls() as calls:
        output = module(input)
    parts = {"pointwise_conv2d", "depthwise_conv2d"} if isinstance(module, InvertedResidual) else ()
    assert (len(calls.names) == 1 and calls.names[0] not in parts) == native, calls.names
    with torch.no_grad(), fastconv.use_backend("reference"):
        expected = module(input)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    return output


@pytest.mark.parametrize("name", NATIVE_OPS)
def test_one_native_op(any_backend, name):
    torch.manual_seed(0)
    make, shape, op = NATIVE_OPS[name]
    module, input = randomized(make()).eval(), torch.randn(shape)
    with torch.no_grad(), Calls() as calls:
        outputs = [module(input), module(input)]
    assert calls.names == ([] if any_backend == "reference" else [op, op])
    double = copy.deepcopy(module).double()
    with fastconv.use_backend("reference"):
        truth = double(input.double()).float()
    for output in outputs:
        torch.testing.assert_close(output, truth, rtol=1e-4, atol=1e-4)
    if any_backend != "reference" and output.dim() == 4:
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: Conv2d(8, 12, 1, groups=2), (1, 8, 7, 7)),
        (lambda: Conv2d(3, 12, 3, padding=1, padding_mode="reflect"), (1, 3, 7, 7)),
        (lambda: Conv2d(3, 12, 3, dilation=2), (1, 3, 7, 7)),
        (lambda: Conv2d(8, 16, 3, groups=8), (1, 8, 7, 7)),
        (lambda: Conv2dNormAct(8, 8, 1, norm_layer=lambda c: nn.GroupNorm(2, c)), (2, 8, 5, 5)),
        (lambda: Conv2dNormAct(8, 8, 1, activation_layer=nn.ELU), (2, 8, 5, 5)),
        (lambda: InvertedResidual(8, 8, 1, 4, activation_layer=nn.LeakyReLU), (2, 8, 5, 5)),
        (lambda: SqueezeExcite(8, 4, scale_activation=nn.Tanh), (2, 8, 5, 5)),
    ],
)
def test_what_has_no_native_op_is_pytorch_s(native, make, shape):
    check(randomized(make()).eval(), torch.randn(shape), native=False)


def test_unbatched_images_and_more_dimensions_are_pytorch_s():
    check(Conv2d(8, 12, 1).eval(), torch.randn(8, 5, 5), native=False)
    check(Linear(8, 12).eval(), torch.randn(2, 3, 8), native=False)
    assert Linear(8, 12).eval()(torch.randn(8)).shape == (12,)


def test_an_explicit_backend_says_why_it_cannot(native):
    layer = Conv2d(8, 12, 1).eval()
    with torch.no_grad(), pytest.raises(fastconv.BackendError, match=r"Conv2d: .* 3 dimensions"):
        layer(torch.randn(8, 5, 5))
    with torch.no_grad(), pytest.raises(fastconv.BackendError, match="float64"):
        layer.double()(torch.randn(1, 8, 5, 5).double())


def test_where_a_gradient_is_wanted_other_kernels_run(native):
    module, input = block()
    with Calls() as calls:
        module(input)
    assert all(name.startswith("train_") for name in calls.names)
    assert calls.names
    module.requires_grad_(False)
    with Calls() as calls:
        module(input)  # nothing wants a gradient
    assert calls.names
    assert not any(name.startswith("train_") for name in calls.names)
    with Calls() as calls:
        module(input.requires_grad_()).sum().backward()
    assert any(name.endswith("_backward") for name in calls.names)
    assert input.grad is not None


def _replace_norm(module):
    module.conv[3] = randomized(nn.BatchNorm2d(16)).eval()


def _freeze_other_eps(module):
    module.conv[3].eps = 0.5


def _dilate(module):
    module.conv[1][0].dilation = module.conv[1][0].padding = (2, 2)


def _load(module):
    module.load_state_dict(randomized(InvertedResidual(16, 16, 1, 6)).state_dict())


def _load_inner(module):
    module.conv[2].load_state_dict(nn.Conv2d(96, 16, 1, bias=False).state_dict())


def _train_a_step(module):
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.randn(4, 16, 9, 7)).square().mean().backward()
    optimizer.step()
    module.eval()


CHANGES = {
    "weight": lambda m: m.conv[1][0].weight.mul_(2),
    "weight.data": lambda m: setattr(m.conv[2].weight, "data", torch.randn(16, 96, 1, 1)),
    "new parameter": lambda m: setattr(
        m.conv[2], "weight", nn.Parameter(torch.randn(16, 96, 1, 1))
    ),
    "new bias": lambda m: setattr(m.conv[2], "bias", nn.Parameter(torch.randn(16))),
    "gamma": lambda m: m.conv[3].weight.mul_(2),
    "beta": lambda m: m.conv[0][1].bias.add_(1),
    "running_mean": lambda m: m.conv[0][1].running_mean.add_(1),
    "running_var": lambda m: m.conv[3].running_var.mul_(3),
    "new buffer": lambda m: setattr(m.conv[3], "running_mean", torch.randn(16)),
    "eps": _freeze_other_eps,
    "norm": _replace_norm,
    "dilation": _dilate,
    "activation": lambda m: m.conv[0].__setitem__(2, nn.ReLU6(inplace=False)),
    "load_state_dict": _load,
    "load_state_dict of a part": _load_inner,
    "training": _train_a_step,
    "to and back": lambda m: m.half().float(),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "data in place, then eval": lambda m: (m.conv[2].weight.data.mul_(2), m.eval()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(native, change):
    module, input = block()
    before = check(module, input)
    with torch.set_grad_enabled(change == "training"):
        CHANGES[change](module)
    after = check(module, input)
    same = change in ("activation", "to and back", "channels_last")
    assert torch.allclose(before, after, atol=0.02 if same else 1e-4) == same


def test_a_change_of_a_linear_layer_is_seen(native):
    layer, input = Linear(8, 12).eval(), torch.randn(2, 8)
    before = check(layer, input)
    with torch.no_grad():
        layer.bias.add_(1)
    torch.testing.assert_close(check(layer, input), before + 1)


def test_an_activation_that_is_not_known_ends_native_runs(native):
    module, input = block()
    check(module, input)
    module.conv[0][2] = nn.ELU()
    check(module, input, native=False)


def test_a_batch_norm_in_train_mode_is_not_folded(native):
    module, input = block()
    check(module, input)
    module.conv[3].train()
    with torch.no_grad(), Calls() as calls:
        module(input)
    assert calls.names == ["pointwise_conv2d", "depthwise_conv2d"]
    module.conv[3].eval()
    check(module, input)


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_inner_hooks_see_every_call(native, kind):
    module, input = block()
    check(module, input)
    seen = []
    handle = getattr(module.conv[1][0], kind)(lambda *args: seen.append(args[0]))
    check(module, input, native=False)
    assert len(seen) == 2
    handle.remove()
    check(module, input)
    with_own_hook = module.register_forward_hook(lambda *args: seen.append(args[0]))
    check(module, input)  # a hook of the module itself does not look inside
    assert len(seen) == 4
    with_own_hook.remove()


def test_global_hooks_see_every_module(native):
    module, input = block()
    check(module, input)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        check(module, input, native=False)
    finally:
        handle.remove()
    assert nn.BatchNorm2d in seen
    check(module, input)


def test_parametrized_and_pruned_weights_are_pytorch_s(native):
    module, input = block()
    check(module, input)
    nn.utils.parametrizations.weight_norm(module.conv[2])
    check(module, input, native=False)
    module, input = block()
    check(module, input)
    prune.l1_unstructured(module.conv[2], "weight", 0.5)
    check(module, input, native=False)


def test_functional_call_uses_the_given_parameters(native):
    module, input = block()
    before = check(module, input)
    other = {name: value * 1.5 for name, value in module.named_parameters()}
    with torch.no_grad():
        changed = torch.func.functional_call(module, other, (input,))
        with fastconv.use_backend("reference"):
            expected = torch.func.functional_call(module, other, (input,))
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(check(module, input), before)


def test_the_cache_is_invisible(native):
    module, input = block()
    keys, names = list(module.state_dict()), {name for name, _ in module.named_buffers()}
    expected = check(module, input)
    assert list(module.state_dict()) == keys
    assert {name for name, _ in module.named_buffers()} == names
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [
        copy.copy(module),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert "_fused_cache" not in other.__dict__
        assert torch.equal(check(other, input), expected)
    assert "_fused_cache" in module.__dict__
    module.train()
    assert "_fused_cache" not in module.__dict__


def test_a_deepcopy_is_independent(native):
    module, input = block()
    expected = check(module, input)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.conv[2].weight.zero_()
    assert torch.equal(check(module, input), expected)


def test_modules_of_inference_tensors(native):
    with torch.inference_mode():
        module, input = block()
        check(module, input)
        _load(module)
        check(module, input)


def test_another_instruction_set(native):
    module, input = block()
    check(module, input)
    with backend.use_isa(0):
        check(module, input)
    check(module, input)


def test_batch_of_none(native):
    module, _ = block()
    check(module, torch.randn(0, 16, 9, 7))


@pytest.mark.parametrize("name", ["inverted", "inverted-no-expand", "excite", "norm-act", "linear"])
def test_compile_is_one_graph_with_the_native_op(native, name):
    make, shape, op = NATIVE_OPS[name]
    module, input = randomized(make()).eval(), torch.randn(shape)
    targets = []

    def eager(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=eager)
    with torch.no_grad():
        expected = module(input)
        output = compiled(input)
        assert targets.count(f"fastconv.{op}_infer.default") == 1
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
        next(module.parameters()).mul_(2)  # the fold is a part of the graph
        torch.testing.assert_close(compiled(input), module(input), rtol=1e-4, atol=1e-4)
    module.train()
    compiled(input).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_export_and_trace_have_pytorch_s_ops_only():
    module, input = block()
    check(module, input)
    with torch.no_grad():
        program = torch.export.export(module, (input,))
        traced = torch.jit.trace(module, input)
        expected = module(input)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("fastconv" in target for target in targets)
    assert "fastconv::" not in str(traced.inlined_graph)
    torch.testing.assert_close(program.module()(input), expected, rtol=1e-4, atol=1e-4)


def test_func_transforms_are_pytorch_s():
    module, input = block()
    module.requires_grad_(False)
    stacked = torch.func.vmap(module)(input[:, None])
    torch.testing.assert_close(stacked[:, 0], module(input), rtol=1e-4, atol=1e-4)
    assert torch.func.grad(lambda x: module(x).sum())(input).shape == input.shape


def test_conv2d_is_a_drop_in():
    ours, theirs = Conv2d(8, 12, 1, bias=False), nn.Conv2d(8, 12, 1, bias=False)
    assert isinstance(ours, nn.Conv2d)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    assert isinstance(Linear(2, 3), nn.Linear)


@pytest.mark.parametrize("stride", [0, 3])
def test_inverted_residual_rejects(stride):
    with pytest.raises(ValueError, match=f"stride must be 1 or 2, got {stride}"):
        InvertedResidual(8, 8, stride, 6)


def test_pooled(native):
    layer = randomized(Conv2dNormAct(12, 40, 1, activation_layer=nn.ReLU6)).eval()
    input = torch.randn(2, 12, 5, 7)
    with torch.no_grad():
        with Calls() as calls:
            output = layer.pooled(input)
        torch.testing.assert_close(output, layer(input).mean((2, 3)))
    assert calls.names == ["pointwise_conv2d_pool"]
    other = randomized(Conv2dNormAct(3, 8, stride=2)).eval()
    with torch.no_grad():
        input = torch.randn(2, 3, 9, 9)
        torch.testing.assert_close(other.pooled(input), other(input).mean((2, 3)))
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    layer.pooled(torch.randn(2, 12, 5, 7))
    assert seen


@pytest.mark.parametrize(
    ("make", "shape", "change"),
    [
        (
            lambda: Conv2dNormAct(8, 8, 1, activation_layer=nn.GELU),
            (2, 8, 5, 5),
            lambda module: setattr(module[2], "approximate", "tanh"),
        ),
        (
            models.lenet5,
            (2, 1, 32, 32),
            lambda module: setattr(module.s2, "divisor_override", 3),
        ),
    ],
    ids=["gelu", "average pooling"],
)
def test_a_setting_without_weights_can_change(native, make, shape, change):
    torch.manual_seed(0)
    module, input = make().eval(), 3 * torch.randn(shape)
    with torch.no_grad():
        before = module(input)
        change(module)
        after = module(input)
        with fastconv.use_backend("reference"):
            expected = module(input)
    assert (before - expected).abs().max() > 1e-4
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)
