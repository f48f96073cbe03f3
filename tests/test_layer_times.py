"""What `fastconv summary --plot` times and draws. No time is looked at."""

import json

import pytest
import torch
from torch import nn

import fastconv
from fastconv import _layer_times, cli, models, summary
from fastconv._layer_times import KINDS, ROUNDS, time_layers


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """One call per value: nobody looks at the times."""
    interleave = _layer_times._timing.interleave
    monkeypatch.setattr(
        _layer_times._timing,
        "interleave",
        lambda contenders, **more: interleave(contenders, block_seconds=0.0, **more),
    )


def timed(model, *size):
    """The times, which together are of all that the model multiplies."""
    result, rounds = summary(model, size), []
    input = torch.randn(result.input_size)
    before = model(input)
    times = time_layers(model, input, result.rows, each_round=lambda: rounds.append(None))
    assert len(rounds) == ROUNDS
    assert torch.equal(model(input), before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert sum(time.row.macs for time in times) == result.total_macs
    rows = list(result.rows)
    for time in times:
        assert time.row in rows
        assert len(time.timing.seconds) == ROUNDS
        assert time.macs_per_second == time.row.macs / time.timing.median > 0
    return times


@torch.no_grad()
def test_a_native_block_counts_as_one(native):
    times = timed(models.mobilenet_v2(width_mult=0.25).eval(), 3, 64, 64)
    assert [time.kind for time in times] == ["dense", *["block"] * 17, "1x1", "linear"]
    with fastconv.use_backend("reference"):
        times = timed(models.mobilenet_v2(width_mult=0.25).eval(), 3, 64, 64)
    kinds = [time.kind for time in times]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "dense": 1, "depthwise": 17, "1x1": 34, "linear": 1,
    }  # fmt: skip


@torch.no_grad()
def test_a_chain_of_native_ops_is_no_block(native, torchvision):
    swapped = fastconv.swap(torchvision.models.mobilenet_v2(width_mult=0.25).eval())
    assert summary(swapped, (3, 32, 32)).rows[0].name == "features"  # all of them in one call
    assert [time.kind for time in timed(swapped, 3, 32, 32)].count("block") == 17
    residual = fastconv.swap(torchvision.models.resnet18(num_classes=2).eval())  # two ops a block
    assert "block" not in {time.kind for time in timed(residual, 3, 32, 32)}


class Shared(nn.Module):
    """Calls a layer with two sizes, by keyword."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.classifier = nn.Linear(4, 2)

    def forward(self, input):
        output = self.layer(input=self.up(self.layer(input=input)))
        return self.classifier(output.mean((2, 3)))


@torch.no_grad()
def test_each_call_counts():
    sizes = []
    model = Shared().eval()
    model.layer.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input"].shape[-1]), with_kwargs=True
    )
    result = summary(model, (4, 6, 6))
    times = time_layers(model, torch.randn(1, 4, 6, 6), result.rows, each_round=lambda: None)
    assert [time.kind for time in times] == ["grouped", "dense", "grouped", "linear"]
    assert times[2].row.macs == 4 * times[0].row.macs
    assert sizes.count(6) > ROUNDS
    assert sizes.count(12) > ROUNDS


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_picture(capsys, tmp_path, suffix, start):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"layers{suffix}"
    arguments = ["summary", "mobilenet_v2", "--size", "32", "--batch", "2", "--json"]
    assert cli.main([*arguments, "--plot", str(path)]) == 0
    picture = path.read_bytes()
    assert picture.startswith(start)
    data = json.loads(capsys.readouterr().out)
    assert sum(time["macs"] for time in data["times"]) == data["total_macs"]
    kinds = {time["kind"] for time in data["times"]}
    assert kinds < set(KINDS)
    assert all(time["ms"] > 0 for time in data["times"])
    best = max(time["macs"] / time["ms"] / 1e6 for time in data["times"])
    if suffix == ".svg":  # which holds the texts that it draws in comments
        texts = picture.decode()
        for text in (f"the best: {best:.3g} G multiplications/s", "mobilenet_v2, batch 2", *kinds):
            assert f"<!-- {text}" in texts
    assert cli.main(arguments) == 0
    assert "times" not in json.loads(capsys.readouterr().out)


def test_mistakes_are_explained(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    model = tmp_path / "model.pt"
    torch.save(nn.ReLU(), model)
    for arguments, message in [
        (["mobilenet_v2", "--plot", "layers.doc"], "--plot must end in one of "),
        (["mobilenet_v2", "--plot", "none/a.png"], "--plot must be in a folder that exists, got"),
        (
            [str(model), "--trust-file", "--plot", str(tmp_path / "a.png")],
            f"{model} must have a convolution or linear layer to be drawn",
        ),
    ]:
        assert cli.main(["summary", *arguments]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines()[-1].startswith(f"summary: {message}")
    assert not (tmp_path / "a.png").exists()
