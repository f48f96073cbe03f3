"""The auxiliary heads and the transformed input of GoogLeNet and Inception v3."""

import re

import pytest
import torch
from torch import nn

from fastconv import models
from fastconv.models import load_weights

from .test_classic_networks import counterpart
from .test_networks import assert_close, calibrated, output_of
from .train_cases import assert_trains_like

HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
FILES = {
    "googlenet": "googlenet-1378be20.pth",
    "inception_v3": "inception_v3_google-0cc3c7bd.pth",
}


class Joined(nn.Module):
    """One output of a network that has several in train mode."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, input):
        return torch.cat(self.network(input), 1)


def test_googlenet_trains_with_its_heads(native, torchvision):
    torch.manual_seed(0)
    off = {"dropout": 0.0, "dropout_aux": 0.0, "num_classes": 10, "transform_input": True}
    ours = models.googlenet(**off)
    theirs = counterpart(torchvision, "googlenet", **off)
    for module in ours.modules():  # the paper's first weights give maps that are almost constant
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    theirs.load_state_dict(ours.state_dict())
    assert_trains_like(Joined(ours), Joined(theirs), torch.randn(8, 3, 64, 64))
    outputs = ours(torch.randn(2, 3, 64, 64))
    assert type(outputs) is models.GoogLeNetOutputs
    assert outputs._fields == ("logits", "aux_logits2", "aux_logits1")
    ours.aux_logits, ours.aux1, ours.aux2 = False, None, None
    assert ours(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_inception_v3_trains_with_its_head(torchvision):
    """In float64: behind the head's last window are single pixels, so that its BatchNorm makes
    another sign of any difference."""
    off = {"dropout": 0.0, "num_classes": 10, "transform_input": True}
    torch.manual_seed(0)
    ours, theirs = models.inception_v3(**off), counterpart(torchvision, "inception_v3", **off)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(2, 3, 299, 299, dtype=torch.float64)
    found = []
    for model in (ours.double(), theirs.double()):
        outputs = model(input)
        assert model is theirs or type(outputs) is models.InceptionOutputs
        torch.cat(outputs, 1).square().mean().backward()
        found.append([*outputs, *(p.grad for p in model.parameters()), *model.buffers()])
    for value, expected in zip(*found, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9 * scale)


def test_compile_and_export_a_block_of_googlenet(native):
    torch.manual_seed(0)
    block = calibrated(nn.Sequential(models.Inception(3, 8, 4, 8, 4, 8, 8)), (9, 7))
    input = torch.randn(2, 3, 9, 7)
    expected = output_of(block, input)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    assert_close(output_of(compiled, input), expected)
    program = torch.export.export(block, (input,))
    assert_close(output_of(program.module(), input), expected)


@pytest.fixture(scope="module", params=HEADS)
def published(request):
    """A network's name, and a state_dict with all heads."""
    torch.manual_seed(0)
    return request.param, models.create_model(request.param, num_classes=5).state_dict()


def without(state, heads):
    return {key: value for key, value in state.items() if not key.startswith(heads)}


def test_weights_with_heads_and_without(published):
    name, state = published
    heads = HEADS[name]
    for weights in (state, without(state, heads)):
        model = models.create_model(name, weights=weights, aux_logits=False, num_classes=5)
        loaded = model.state_dict()
        assert list(loaded) == list(without(state, heads))
        assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    model = models.create_model(name, weights=state, aux_logits=True, num_classes=5)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    # As in torchvision, weights alone have GoogLeNet without heads, and Inception v3 with its one.
    default = models.create_model(name, weights=state, num_classes=5)
    assert default.aux_logits == (name == "inception_v3")
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    load_weights(models.create_model(name, aux_logits=False, num_classes=5), old)


@pytest.mark.parametrize("change", ["unknown", "missing", "shape", "wanted"])
def test_heads_that_do_not_fit(published, change):
    name, state = published
    head, wanted = HEADS[name][0], change == "wanted"
    state = dict(state)
    key = next(key for key in state if key.startswith(head))
    message = f"got: {re.escape(key)} is missing$"
    if change == "unknown":
        state[f"{head}fc9.weight"] = torch.zeros(1)
        message = rf"got: {head}fc9\.weight is unexpected$"
    elif change == "missing":
        del state[key]
    elif change == "shape":
        state[key] = torch.zeros(3)
        message = rf"got: {re.escape(key)} must have shape \[128, \d+, 1, 1\], got \[3\]$"
    else:
        state = without(state, HEADS[name])
        message = f"got: {re.escape(key)} is missing; "
    model = models.create_model(name, aux_logits=wanted, num_classes=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(model, state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_published_weights_have_their_input_transformed(
    published, torchvision, monkeypatch, tmp_path
):
    name, state = published
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: state)
    torch.save(state, tmp_path / FILES[name])
    torch.save(state, tmp_path / "mine.pth")
    enum = torchvision.models.get_model_weights(name).DEFAULT
    for weights in ("DEFAULT", "IMAGENET1K_V1", enum, tmp_path / FILES[name]):
        model = models.create_model(name, weights=weights, num_classes=5)
        assert model.transform_input
        model = models.create_model(name, weights=weights, num_classes=5, transform_input=False)
        assert not model.transform_input
    for weights in (None, state, str(tmp_path / "mine.pth")):
        assert not models.create_model(name, weights=weights, num_classes=5).transform_input


@pytest.mark.parametrize("name", HEADS)
def test_the_transformed_input(native, torchvision, name):
    torch.manual_seed(0)
    options = {"transform_input": True, "aux_logits": False, "num_classes": 5}
    ours = calibrated(models.create_model(name, **options), (96, 96))
    theirs = counterpart(torchvision, name, **options).eval()
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(2, 3, 96, 96)
    output = output_of(ours, input)
    assert_close(output, output_of(theirs, input))
    ours.transform_input = False
    assert not torch.allclose(output_of(ours, input), output)
    with pytest.raises(ValueError, match="transform_input must be False unless in_chans is 3"):
        models.create_model(name, in_chans=1, transform_input=True)
