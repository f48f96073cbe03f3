"""MobileNetV2 as one row of native ops: what it must see, beyond what each of its layers sees."""

import pytest
import torch
from torch import nn

import fastconv
from fastconv.nn import Conv2dNormAct, InvertedResidual

SETTING = [[1, 16, 1, 1], [4, 24, 2, 2]]


def network(**kwargs):
    torch.manual_seed(0)
    model = fastconv.models.MobileNetV2(10, inverted_residual_setting=SETTING, **kwargs).eval()
    nn.init.normal_(model.classifier[1].weight, std=10)
    return model, torch.randn(3, 3, 33, 31)


def check(model, input):
    """The model's output, which is that of plain PyTorch."""
    with torch.no_grad():
        output = model(input)
        with fastconv.use_backend("reference"):
            expected = model(input)
    assert model._fused_cache["network"].run is not None
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    return output


def _second_weight(model):
    return model.features[2].conv[0][0].weight


CHANGES = {
    "in place": lambda m: _second_weight(m).mul_(2),
    "running_var": lambda m: m.features[1].conv[2].running_var.mul_(3),
    "classifier": lambda m: m.classifier[1].bias.add_(1),
    "child": lambda m: m.features.__setitem__(3, InvertedResidual(24, 24, 1, 2).eval()),
    "one more": lambda m: m.features.insert(4, InvertedResidual(24, 24, 1, 2).eval()),
    "past the counter, then a layer's eval": lambda m: (
        _second_weight(m).data.mul_(2),
        m.features[2].eval(),
    ),
    "a layer to bfloat16 and back": lambda m: m.features[2].bfloat16().float(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(native, change):
    model, input = network()
    before = check(model, input)
    with torch.no_grad():
        CHANGES[change](model)
    after = check(model, input)
    assert not torch.allclose(before, after, rtol=1e-4, atol=1e-4)


def test_dropout_in_train_mode_drops(native):
    model, input = network(dropout=0.9)
    expected = check(model, input)
    model.classifier[0].train()
    with torch.no_grad():
        assert not torch.equal(model(input), model(input))
    fused = model._fused_cache["network"]
    with torch.no_grad():
        model(input)
    assert model._fused_cache["network"] is fused  # it is not looked for again and again
    model.classifier[0].eval()
    assert torch.equal(check(model, input), expected)


class Doubled(InvertedResidual):
    def forward(self, input):
        return 2 * super().forward(input)


class Shifted(Conv2dNormAct):
    def pooled(self, input):
        return 1 + super().pooled(input)


def test_a_layer_s_own_methods_are_called(native):
    model, input = network()
    with torch.no_grad():
        expected = model(input)
        doubled, _ = network(block=Doubled)
        doubled.load_state_dict(model.state_dict())
        assert not torch.allclose(doubled(input), expected, rtol=1e-3)
        model.features[-1].__class__ = Shifted
        model.eval()
        assert not torch.allclose(model(input), expected, rtol=1e-3)


def test_a_method_put_on_a_layer_is_called(native):
    model, input = network()
    expected = check(model, input)
    layer = model.features[3]
    layer.forward = lambda x: x * 0
    with torch.no_grad():
        assert not torch.allclose(model(input), expected, rtol=1e-3)
    del layer.forward
    assert torch.equal(check(model, input), expected)


def test_a_layer_used_twice(native):
    model, input = network()
    model.features.insert(4, model.features[3])
    check(model, input)


def test_weights_are_packed_once(native):
    model, input = network()
    with torch.no_grad():
        model(input)
        runs = {id(layer._fused_cache["forward"]) for layer in model.features[:-1]}
        for layer in model.features[:-1]:
            input = layer(input)
    assert runs == {id(layer._fused_cache["forward"]) for layer in model.features[:-1]}


def test_a_plain_classifier_is_pytorch_s(native):
    model, input = network()
    model.classifier[1] = nn.Linear(1280, 4).eval()
    with torch.no_grad():
        assert model(input).shape == (3, 4)
