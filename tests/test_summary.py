"""What summary counts, on networks whose numbers are known, and that it leaves no trace."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fastconv
from fastconv import models, summary
from fastconv.nn import Conv2d, InvertedResidual, SqueezeExcite


def test_mobilenet_v2():
    result = summary(models.mobilenet_v2(), (3, 224, 224))
    assert result.total_macs == 300_774_272
    assert result.total_parameters == 3_504_872
    assert result.input_size == (1, 3, 224, 224)
    blocks = [row for row in result.rows if row.is_block]
    layers = [row for row in result.rows if not row.is_block]
    assert {row.type for row in blocks} >= {"InvertedResidual"}
    assert len([row for row in blocks if row.type == "InvertedResidual"]) == 17
    assert len(layers) == 53
    assert layers[0].name == "features.0.0"
    assert layers[0].output_shape == (1, 32, 112, 112)
    assert layers[-1].output_shape == (1, 1000)
    assert summary(models.mobilenet_v2(), (2, 3, 224, 224)).total_macs == 2 * result.total_macs


def test_row():
    (row,) = summary(nn.Conv2d(8, 16, 3, padding=1, groups=4), (8, 5, 7)).rows
    assert row.output_shape == (1, 16, 5, 7)
    assert row.parameters == 16 * 2 * 9 + 16
    assert row.macs == 16 * 5 * 7 * 2 * 9
    assert row.bytes == 4 * (8 * 35 + 16 * 35 + 16 * 2 * 9 + 16)
    assert row.intensity == 2 * row.macs / row.bytes
    assert row.runs_on == "PyTorch"
    (half,) = summary(nn.Conv2d(8, 16, 3).half(), (8, 5, 7)).rows
    (single,) = summary(nn.Conv2d(8, 16, 3), (8, 5, 7)).rows
    assert single.bytes == 2 * half.bytes


@pytest.mark.parametrize(
    ("layer", "size", "macs"),
    [
        (nn.ConvTranspose2d(4, 6, 2, 2, bias=False), (4, 5, 7), 5 * 7 * 4 * 6 * 2 * 2),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), 12 * 5),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 8, 3)), (3, 2, 5), 8 * 8 * 3 * 3),
        (nn.ReLU(), (3, 2, 2), 0),
    ],
)
def test_macs(layer, size, macs):
    assert summary(layer, size).total_macs == macs


def test_block_and_its_layers(native):
    excite = InvertedResidual(8, 8, 1, 4, squeeze_excite=lambda mid: SqueezeExcite(mid, 4))
    result = summary(nn.Sequential(nn.Identity(), excite), (8, 6, 6))
    block, *inside = result.rows
    assert (block.name, block.type, block.depth) == ("1", "InvertedResidual", 0)
    assert all(row.depth >= 1 for row in inside)
    layers = [row for row in inside if not row.is_block]
    assert [row.name for row in layers] == [
        "1.conv.0.0", "1.conv.1.0", "1.conv.2.fc1", "1.conv.2.fc2", "1.conv.3",
    ]  # fmt: skip
    assert block.macs == sum(row.macs for row in layers) == result.total_macs
    weights = sum(module.weight.numel() for module in excite.modules() if type(module) is nn.Conv2d)
    assert block.bytes == 4 * (2 * 8 * 36 + weights + 4 + 32)  # between its layers nothing moves
    assert block.bytes < sum(row.bytes for row in layers)


def test_what_runs_it(native):
    def kinds(model, size=(8, 6, 6)):
        return [row.runs_on for row in summary(model, size).rows]

    assert kinds(Conv2d(8, 8, 1)) == ["fastconv native"]
    assert kinds(Conv2d(8, 8, 1).train()) == ["fastconv native"]
    assert kinds(Conv2d(8, 8, 1).double()) == ["PyTorch"]
    assert kinds(nn.Sequential(nn.Conv2d(8, 8, 1), Conv2d(8, 8, 1))) == [
        "PyTorch", "fastconv native",
    ]  # fmt: skip
    assert set(kinds(models.mobilenet_v2(), (3, 32, 32))) == {"fastconv native"}
    block = InvertedResidual(8, 8, 1, 4)
    assert set(kinds(block)) == {"fastconv native"}
    block.conv[0].register_forward_hook(lambda *_: None)
    assert kinds(block) == ["fastconv native", "fastconv native", "PyTorch"]  # layer by layer
    with fastconv.use_backend("reference"):
        assert set(kinds(block)) == {"PyTorch"}


def test_a_module_used_twice_counts_twice():
    layer = nn.Conv2d(4, 4, 1)
    result = summary(nn.Sequential(layer, nn.ReLU(), layer), (4, 3, 3))
    assert [row.macs for row in result.rows] == [144, 144]
    assert result.total_parameters == 20


class Counting(nn.Module):
    """Sets attributes and a buffer while it runs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, input):
        assert not self.training
        self.calls = self.calls + 1
        self.last = self.layer(input)
        return {"output": self.last.mean((2, 3))}


def test_model_is_unchanged(native):
    counting = Counting()
    prune.random_unstructured(counting.layer, "weight", 0.5)
    network = models.mobilenet_v2(num_classes=3).eval()
    for model in (counting, network):
        image = torch.randn(1, 3, 32, 32)
        with torch.inference_mode():
            if model is network:
                model(image)
        for mode in (True, False):
            for module in model.modules():
                module.training = mode
            model.train(mode)
            before = [dict(module.__dict__) for module in model.modules()]
            state = {key: value.clone() for key, value in model.state_dict().items()}
            assert summary(model, (3, 32, 32)).rows
            with pytest.raises(ValueError, match="must run at"):
                summary(model, (5, 32, 32))
            after = [module.__dict__ for module in model.modules()]
            for old, new in zip(before, after, strict=True):
                assert old.keys() == new.keys()
                assert all(old[key] is new[key] for key in old)
            assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
            assert not any(m._forward_hooks for m in model.modules())
            assert type(counting.layer.weight) is torch.Tensor


def test_printing(capsys):
    result = summary(models.mobilenet_v2(), (3, 32, 32))
    text = str(result)
    assert text.startswith("MobileNetV2, 1 x 3 x 32 x 32, float32: 7.4 M MACs")
    assert "3,504,872 parameters" in text
    assert "    features.2.conv.0.0" in text
    assert len(text.splitlines()) == 3 + len(result.rows)
    result.show()
    assert capsys.readouterr().out.strip() == text
    data = json.loads(json.dumps(result.to_dict()))
    assert data["total_macs"] == result.total_macs
    assert len(data["rows"]) == len(result.rows)
    assert data["rows"][0]["intensity"] == result.rows[0].intensity
    assert data["rows"][0]["output_shape"] == [1, 32, 16, 16]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_norms_are_checked(mode, monkeypatch):
    """What they return is known, so PyTorch is not asked; what they refuse is still refused."""

    def asked(*_):
        raise AssertionError("PyTorch was asked, which takes it several ms a layer")

    def net(features):
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(features)).eval()

    with mode():
        # Of a size that no test has asked PyTorch for: it keeps its answers.
        with monkeypatch.context() as patch:
            patch.setattr("torch._decomp.decompositions.native_batch_norm_helper", asked)
            rows = summary(net(4), (3, 5, 29)).rows
        assert [row.output_shape for row in rows] == [(1, 4, 5, 29)]
        for features in (1, 3, 5):
            with pytest.raises(ValueError, match="model must run at input_size"):
                summary(net(features), (3, 5, 29))


def test_rejects():
    layer = nn.Conv2d(3, 4, 3)
    with pytest.raises(TypeError, match=r"^summary: model must be a torch.nn.Module, got str"):
        summary("mobilenet_v2", (3, 224, 224))
    for size in (224, (224, 224), (3, 0, 5), (1, 3, 2.0, 2), (1, 1, 3, 5, 5), "abc"):
        with pytest.raises(ValueError, match=r"^summary: input_size must be \(N, C, H, W\)"):
            summary(layer, size)
    with pytest.raises(
        ValueError, match=r"^summary: model must run at input_size \(1, 3, 2, 2\), "
    ):
        summary(layer, (3, 2, 2))
    with pytest.raises(ValueError, match=r"^summary: model must have run once, got a Sequential"):
        summary(nn.Sequential(nn.LazyConv2d(4, 1)), (3, 8, 8))
    assert not layer._forward_hooks
