"""A swapped model in all that is done with models: copies, training, hooks, dtypes, compilers."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn

import fastconv
from fastconv._torchvision import import_torchvision
from fastconv.nn._fused import original_class

from .swap_helpers import Functional, Net, close, net, output
from .test_nn import randomized


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
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")
    close(output(model, input), output(plain, input))  # on the new weights
    with torch.no_grad():
        model.last.weight.mul_(2)
        plain.last.weight.mul_(2)
    close(output(model, input), output(plain, input))


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


def test_swap_under_inference_mode():
    model, input = net()
    with torch.inference_mode():
        fastconv.swap(model)
    model.train()(input).sum().backward()
    assert model.last.weight.grad is not None


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
