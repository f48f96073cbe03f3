"""The swap: nothing is lost, the output is the same, and the report is true."""

import copy
import io
import pickle
import re
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastconv
from fastconv._swapped import Swapped
from fastconv._torchvision import import_torchvision
from fastconv.cli import main
from fastconv.nn._fused import original_class

from .test_nn import Calls, randomized


class Shortcut(nn.Module):
    """A user's own inverted residual; whether it adds its input only its forward says."""

    def __init__(self, channels=8, mid=24, stride=1, act=nn.ReLU6, add=True, kernel=3):
        super().__init__()
        self.one = nn.Conv2d(channels, mid, 1, bias=False)
        self.one_norm = nn.BatchNorm2d(mid)
        self.one_act = act()
        pad = kernel // 2
        self.two = nn.Conv2d(mid, mid, kernel, stride, pad, groups=mid, bias=False)
        self.two_norm = nn.BatchNorm2d(mid)
        self.two_act = act()
        self.three = nn.Conv2d(mid, channels, 1, bias=False)
        self.three_norm = nn.BatchNorm2d(channels)
        self.add = add

    def forward(self, x):
        y = self.one_act(self.one_norm(self.one(x)))
        y = self.two_act(self.two_norm(self.two(y)))
        y = self.three_norm(self.three(y))
        return x + y if self.add else y


class Functional(nn.Module):
    """Convolution, norm, and a ReLU that is no module."""

    def __init__(self, activation=F.relu):
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 1, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.activation = activation

    def forward(self, x):
        return self.activation(self.bn(self.conv(x)))


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


class Net(nn.Module):
    """A network of a user's own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
        )
        self.body = nn.Sequential(Shortcut(), Shortcut(stride=2, add=False), Shortcut())
        self.last = nn.Conv2d(8, 20, 1)
        self.fc = nn.Linear(20, 5)

    def forward(self, x):
        return self.fc(F.relu(self.last(self.body(self.stem(x)))).mean((2, 3)))


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


def net():
    torch.manual_seed(0)
    return randomized(Net()).eval(), torch.randn(2, 3, 33, 31)


def output(module, *args):
    with torch.no_grad():
        return module(*args)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


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
    with pytest.warns(UserWarning, match="nothing") if kind is None else _nothing():
        again = fastconv.swap(module)
    assert type(again).__mro__.count(Swapped) == 1
    assert torch.equal(output(module, input), actual)
    fastconv.restore(module)
    assert type(module) is kind
    assert torch.equal(output(module, input), expected)


class _nothing:  # noqa: N801
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.mark.parametrize(
    "odd",
    [
        lambda: Functional(F.relu6),
        lambda: Functional(lambda x: F.relu(x) * 2),
        lambda: Functional(lambda x: F.hardtanh(x, 0, 20)),
        lambda: Functional(lambda x: F.pad(x, (1, 1))),
    ],
)
def test_a_forward_that_does_something_else_is_left_alone(native, odd):
    module = randomized(odd()).eval()
    input = torch.randn(2, 8, 6, 5) * 30
    expected = output(module, input)
    fastconv.swap(module)
    assert not isinstance(module, Swapped)
    assert isinstance(module.conv, Swapped)  # which alone is what it says
    close(output(module, input), expected)


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


def test_nothing_is_lost():
    model, input = net()
    parameters = {name: id(p) for name, p in model.named_parameters()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [(name, original_class(m)) for name, m in model.named_modules()]
    fastconv.swap(model)
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [(name, original_class(m)) for name, m in model.named_modules()] == modules
    assert all(
        isinstance(m, kind)
        for (_, m), (_, kind) in zip(model.named_modules(), modules, strict=True)
    )
    expected = output(model, input)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), _saved(model)):
        assert torch.equal(output(copied, input), expected)
        assert fastconv.report(copied).coverage == 1
    state = {name: torch.randn_like(t) if t.is_floating_point() else t for name, t in after.items()}
    state = {name: t.abs() + 0.5 if "running_var" in name else t for name, t in state.items()}
    plain = Net().eval()
    plain.load_state_dict(state)
    model.load_state_dict(state)
    close(output(model, input), output(plain, input))


def _saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


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


def test_training_is_the_model_s_own():
    model, input = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)  # made before
    plain = copy.deepcopy(model)
    other = torch.optim.SGD(plain.parameters(), 0.1)
    fastconv.swap(model, memory_format=None)
    for network, step in ((model, optimizer), (plain, other)):
        network.train()
        for _ in range(2):
            step.zero_grad()
            network(input).square().sum().backward()
            step.step()
        network.eval()
    for (name, ours), (_, theirs) in zip(
        model.state_dict().items(), plain.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    close(output(model, input), output(plain, input))  # on the new weights
    with torch.no_grad():
        model.last.weight.mul_(2)
        plain.last.weight.mul_(2)
    close(output(model, input), output(plain, input))


def test_a_hook_inside_sees_the_block_s_own_forward(native):
    model, input = net()
    plain = copy.deepcopy(model)
    fastconv.swap(model)
    output(model, input)
    seen = []
    handle = model.body[1].two_norm.register_forward_hook(lambda m, i, o: seen.append(o))
    close(output(model, input), output(plain, input))
    assert len(seen) == 1
    reasons = {row.name: row.reason for row in fastconv.report(model).skipped}
    assert set(reasons) == {"body.1.one", "body.1.two", "body.1.three"}
    assert all("hook" in reason for reason in reasons.values())
    handle.remove()
    assert fastconv.report(model).coverage == 1
    output(model, input)
    assert len(seen) == 1


def test_hooks_on_a_swapped_block():
    model, input = net()
    fastconv.swap(model)
    seen = []
    model.body[1].register_forward_hook(lambda m, i, o: seen.append(o.shape))
    output(model, input)
    assert seen == [torch.Size([2, 8, 9, 8])]


def test_gradients():
    model, input = net()
    plain = copy.deepcopy(model)
    fastconv.swap(model, memory_format=None)
    for network in (model, plain):
        network(input).sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        close(ours.grad, theirs.grad)
    weights = {n: p.detach() for n, p in plain.named_parameters()}
    gradient = torch.func.grad(lambda w: torch.func.functional_call(model, w, (input,)).sum())
    for name, value in gradient(weights).items():
        close(value, dict(plain.named_parameters())[name].grad)


def test_checkpointing_and_averages():
    model, input = net()
    fastconv.swap(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    close(output(average, input), output(model, input))
    model.train()
    out = torch.utils.checkpoint.checkpoint(model.body, model.stem(input), use_reentrant=False)
    out.sum().backward()
    assert model.body[0].one.weight.grad is not None


def test_sync_batch_norm_before_and_after():
    for order in ("before", "after"):
        model, input = net()
        expected = output(model, input)
        if order == "before":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        fastconv.swap(model)
        output(model, input)
        if order == "after":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        close(output(model.eval(), input), expected)


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model, input = net()
        expected = output(model, input)
        parallel = nn.parallel.DistributedDataParallel(fastconv.swap(model))
        parallel.train()(input).sum().backward()
        assert model.body[0].one.weight.grad is not None
        plain = Net()
        plain.load_state_dict(model.state_dict())  # the statistics have moved
        close(output(parallel.eval(), input), output(plain.eval(), input))
        assert expected.shape == (2, 5)
    finally:
        torch.distributed.destroy_process_group()


def test_frozen_batch_norm():
    torchvision = import_torchvision()
    if torchvision is None:
        pytest.skip("torchvision is not installed")
    frozen = torchvision.ops.FrozenBatchNorm2d(12)
    for tensor in frozen.buffers():
        nn.init.uniform_(tensor, 0.5, 1.5)
    model = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), frozen, nn.ReLU()).eval()
    input = torch.randn(2, 8, 5, 5)
    expected = output(model, input)
    fastconv.swap(model)
    assert fastconv.report(model).coverage == 1
    close(output(model, input), expected)
    frozen.running_mean.add_(1)
    plain = fastconv.restore(copy.deepcopy(model))
    close(output(model, input), output(plain, input))


def test_the_command(capsys):
    pytest.importorskip("torchvision")
    assert main(["report", "torchvision:squeezenet1_1"]) == 0
    text = capsys.readouterr().out
    assert "26 of 26 convolutions run natively" in text
    assert "features.0" in text


def test_other_dtypes_and_autocast():
    model, input = net()
    expected = output(model, input)
    fastconv.swap(model)
    close(output(model.double(), input.double()).float(), expected)
    assert "float64" in fastconv.report(model).skipped[0].reason
    model.float()
    assert fastconv.report(model).coverage == 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert output(model, input).dtype == torch.bfloat16
    half = fastconv.swap(net()[0], dtype=torch.bfloat16)
    assert output(half, input.bfloat16()).dtype == torch.bfloat16


def test_compile_export_and_trace():
    model, input = net()
    expected = output(model, input)
    fastconv.swap(model)
    close(output(torch.compile(model, fullgraph=True, backend="aot_eager"), input), expected)
    with torch.no_grad():
        program = torch.export.export(model, (input,))
        traced = torch.jit.trace(model, input)
    assert not [node for node in program.graph.nodes if "fastconv" in str(node.target)]
    close(output(program.module(), input), expected)
    assert "fastconv" not in str(traced.inlined_graph)
    close(output(torch.fx.symbolic_trace(model), input), expected)


class Looks(nn.Module):
    """Two sequences one after the other, and something between them that is easily missed."""

    def __init__(self, between):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(1))
        self.calls = 0
        self.between = between

    def forward(self, x):
        return self.b(self.between(self, self.a(x)))


def _count(module, x):
    module.calls += 1
    return x


@pytest.mark.parametrize(
    "between",
    [
        lambda module, x: x.clamp(-1, 1),
        lambda module, x: x * module.scale,
        lambda module, x: x if x.shape[-1] < 20 else x[..., ::2],
        lambda module, x: F.interpolate(x, (3, 5)),
        _count,
    ],
)
def test_what_a_forward_does_beside_calling_its_children(between):
    model, input = Looks(between).eval(), torch.randn(2, 3, 24, 22)
    plain = copy.deepcopy(model)
    fastconv.swap(model)
    for network in (model, plain):
        output(network, input)
        with torch.no_grad():
            network.scale.mul_(3)
    close(output(model, input), output(plain, input))
    assert model.calls == plain.calls
    assert isinstance(model.a, Swapped)


class _OtherDropout(nn.Dropout):
    def forward(self, x):
        return x / 2


class _OtherSequential(nn.Sequential):
    def __iter__(self):
        return iter(list(self._modules.values())[:2])


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(8, 8, 1), _OtherDropout(), nn.Conv2d(8, 8, 1)),
        lambda: _OtherSequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)),
    ],
)
def test_subclasses_may_do_something_else(make):
    model, input = make().eval(), torch.randn(2, 8, 5, 5)
    expected = output(model, input)
    close(output(fastconv.swap(model), input), expected)


class _Mutates(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        x += self.norm(self.conv(x))
        return x


def test_a_block_that_changes_its_input():
    block, input = randomized(_Mutates()).eval(), torch.randn(2, 8, 5, 5)
    expected = input.clone()
    output(block, expected)
    fastconv.swap(block)
    output(block, input)
    close(input, expected)


def test_what_is_put_on_a_module_or_its_class():
    model, input = net()
    plain = copy.deepcopy(model)
    fastconv.swap(model)
    output(model, input)
    for network in (model, plain):
        network.stem[0].padding_mode = "circular"
        network.stem[0]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    close(output(model, input), output(plain, input))
    forward = Shortcut.forward
    try:
        Shortcut.forward = lambda self, x: x * 2 if self.add else forward(self, x)
        close(output(model, input), output(plain, input))
        close(output(fastconv.swap(fastconv.restore(model)), input), output(plain, input))
    finally:
        Shortcut.forward = forward


def test_weights_that_share_memory_still_do():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    model[2].weight.data = model[0].weight.data
    fastconv.swap(model)
    assert model[0].weight.data_ptr() == model[2].weight.data_ptr()


class _Named(nn.Module):
    """With names that are also ours, a state of its own, and a registry of subclasses."""

    known: list = []  # noqa: RUF012

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        _Named.known.append(cls)

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.lock = threading.Lock()

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def forward(self, x):
        return self.bn(self.conv(x))


def test_names_states_and_registries():
    block, input = randomized(_Named()).eval(), torch.randn(1, 8, 5, 5)
    expected = output(block, input)
    fastconv.swap(block)
    close(output(copy.deepcopy(block), input), expected)
    assert _Named.known == []
    block = randomized(Functional()).eval()
    block._layers = "mine"
    fastconv.swap(block)
    output(block, input)
    assert fastconv.restore(block)._layers == "mine"


def test_memory_format_none_keeps_the_format():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    fastconv.swap(model, memory_format=None)
    input = torch.randn(2, 3, 8, 8)
    assert output(model, input).is_contiguous()
    last = input.contiguous(memory_format=torch.channels_last)
    assert output(model, last).is_contiguous(memory_format=torch.channels_last)


def test_swap_under_inference_mode():
    model, input = net()
    with torch.inference_mode():
        fastconv.swap(model)
    model.train()(input).sum().backward()
    assert model.last.weight.grad is not None


@pytest.mark.parametrize("when", ["before", "after"])
def test_dropout_that_is_left_in_train_mode_drops(when):
    """As in Monte Carlo dropout; so does stochastic depth."""
    model = nn.Sequential(
        nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(16, 16, 1), nn.ReLU()
    ).eval()
    input = torch.randn(1, 8, 9, 9)
    if when == "after":
        fastconv.swap(model)
        output(model, input)
    model[2].train()
    fastconv.swap(model)
    assert not torch.equal(output(model, input), output(model, input))
    model[2].eval()
    assert torch.equal(output(model, input), output(model, input))


def test_the_same_layer_twice():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    input = torch.randn(1, 8, 9, 9)
    expected = output(model, input)
    close(output(fastconv.swap(model), input), expected)
    close(output(fastconv.fold(model), input), expected)


def test_what_is_changed_afterwards():
    model, input = net()
    plain = copy.deepcopy(model)
    fastconv.swap(model)
    output(model, input)
    for network in (model, plain):
        network.body[1].one_act = nn.Tanh()
    close(output(model, input), output(plain, input))
    assert {row.name for row in fastconv.report(model).skipped} == {
        "body.1.one",
        "body.1.two",
        "body.1.three",
    }


def test_a_flag_that_the_forward_looks_at():
    model, input = net()
    plain = copy.deepcopy(model)
    fastconv.swap(model)
    output(model, input)
    for network in (model, plain):
        network.body[0].add = False
    close(output(model, input), output(plain, input))


def test_what_is_used_twice_is_not_folded_twice():
    conv, norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
    for layers in ([conv, norm, conv, nn.BatchNorm2d(8)], [conv, norm, nn.Conv2d(8, 8, 1), norm]):
        model = randomized(nn.Sequential(*layers)).eval()
        input = torch.randn(1, 8, 5, 5)
        close(output(fastconv.fold(model), input), output(model, input))


def test_parametrizations():
    model, input = net()
    plain = copy.deepcopy(model)
    fastconv.swap(model)
    output(model, input)
    for network in (model, plain):
        torch.nn.utils.parametrizations.weight_norm(network.last)
        with torch.no_grad():
            network.last.parametrizations.weight.original0.mul_(2)
    close(output(model, input), output(plain, input))
    with pytest.raises(RuntimeError, match="restore: modules must have the classes"):
        fastconv.restore(model)


def test_graph_modules_and_scripts():
    model, input = net()
    expected = output(model, input)
    graph = fastconv.swap(torch.fx.symbolic_trace(model))
    assert type(graph).__mro__.count(Swapped) == 0
    assert fastconv.report(graph).coverage > 0.8
    close(output(graph, input), expected)
    close(output(copy.deepcopy(graph), input), expected)
    scripted = nn.Sequential(torch.jit.script(model.stem), nn.Conv2d(8, 8, 1)).eval()
    expected = output(scripted, input)
    close(output(fastconv.swap(scripted), input), expected)
    assert [row.runs_as for row in fastconv.report(scripted).rows] == ["sequential"]


def test_a_patched_forward_is_used():
    model, input = net()
    fastconv.swap(model)
    model.body[0].forward = lambda x: x * 0
    plain = net()[0]
    plain.body[0].forward = lambda x: x * 0
    close(output(model, input), output(plain, input))


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


def test_rejects():
    for function in (fastconv.swap, fastconv.restore, fastconv.report):
        with pytest.raises(TypeError, match=re.escape("must be a torch.nn.Module, got int")):
            function(3)
    with pytest.raises(ValueError, match="swap: backend must be one of"):
        fastconv.swap(net()[0], backend="tpu")
