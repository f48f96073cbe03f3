"""A swapped module computes what its own forward does, whatever else that does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastconv
from fastconv._swapped import Swapped

from .swap_helpers import Functional, Shortcut, close, net, output
from .test_nn import randomized


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


class _Chooses(nn.Module):
    """One class of blocks, of which some do something else."""

    def __init__(self, **facts):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.register_buffer("order", facts.get("order"))
        self.function = facts.get("function", F.relu)
        self.usual = facts.get("usual")
        self.setting = facts.get("setting", self.usual)
        if facts.get("tied"):
            self.norm.bias = self.norm.weight

    def forward(self, x):
        x = x if self.order is None else x[:, self.order]
        x = self.act(self.norm(self.conv(x)))
        x = self.function(x)
        if self.norm.bias is self.norm.weight:
            x = x + 1
        usual = type(self.setting) is type(self.usual) and self.setting == self.usual
        return x if usual else x * 2


@pytest.mark.parametrize(
    "facts",
    [
        {"setting": True, "usual": 1},
        {"setting": (1, "a", 0), "usual": (1, "a", 2)},
        {"setting": object()},
        {"function": torch.tanh},
        {"order": torch.arange(8).flip(0)},
        {"tied": True},
    ],
    ids=lambda facts: next(iter(facts)),
)
@pytest.mark.parametrize("odd_first", [False, True])
def test_blocks_of_one_class_are_told_apart(native, facts, odd_first):
    usual = {"usual": facts.get("usual")}
    blocks = [_Chooses(**usual), _Chooses(**facts), _Chooses(**usual)]
    model = randomized(nn.Sequential(*blocks[int(odd_first) :])).eval()
    input = torch.randn(2, 8, 6, 5)
    expected = output(model, input)
    fastconv.swap(model)
    close(output(model, input), expected)
    assert not isinstance(blocks[1], Swapped)
    assert isinstance(blocks[2], Swapped)


class _Drops(nn.Module):
    runs = 0

    def __init__(self, probability):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(8, 8, 1), nn.Dropout(probability)

    def forward(self, x):
        type(self).runs += 1
        return x + self.conv(self.drop(x))


def test_dropout_s_probability_does_not_tell_blocks_apart(native, monkeypatch):
    def runs_of_swap(*probabilities):
        monkeypatch.setattr(_Drops, "runs", 0)
        fastconv.swap(nn.Sequential(*map(_Drops, probabilities)).eval())
        return _Drops.runs

    one = runs_of_swap(0.1)
    assert runs_of_swap(0.1, 0.2, 0.3) == one > 0
    assert runs_of_swap(0.1, 0.0) == 2 * one  # which may do something else


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


def test_a_patched_forward_is_used():
    model, input = net()
    fastconv.swap(model)
    model.body[0].forward = lambda x: x * 0
    plain = net()[0]
    plain.body[0].forward = lambda x: x * 0
    close(output(model, input), output(plain, input))


def test_a_flag_that_the_forward_looks_at():
    model, input = net()
    plain = copy.deepcopy(model)
    fastconv.swap(model)
    output(model, input)
    for network in (model, plain):
        network.body[0].add = False
    close(output(model, input), output(plain, input))


def test_what_is_changed_afterwards():
    model, input = net()
    plain = copy.deepcopy(model)
    fastconv.swap(model)
    output(model, input)
    for network in (model, plain):
        network.body[1].one_act = nn.Mish()
    close(output(model, input), output(plain, input))
    assert {row.name for row in fastconv.report(model).skipped} == {
        "body.1.one",
        "body.1.two",
        "body.1.three",
    }


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
