"""What `fastconv profile` measures and prints. No time is compared with another."""

import json

import pytest
import torch

import fastconv
from fastconv import _profile, _resolve, cli, models
from fastconv._progress import Progress

TINY = {"batch": 1, "size": 64, "threads": 1, "rounds": 2, "dtype": "float32"}


def profiled(name, **options):
    with Progress() as progress:
        return _profile.profile(_resolve.resolve(name), **(TINY | options), progress=progress)


@pytest.mark.parametrize(("batch", "threads"), [(1, 2), (3, 1)])
def test_every_step_has_its_time(native, batch, threads):
    before = torch.get_num_threads()
    result = profiled("mobilenet_v2", batch=batch, threads=threads, size=160)
    assert torch.get_num_threads() == before
    # The first two run band by band, as one, where the map between them is larger than L2.
    names = [step.name for step in result.steps]
    joint = "3x3 convolution, stride 2 + block 3x3"
    assert names[:-18] in ([joint], ["3x3 convolution, stride 2", "block 3x3"])
    assert names[-2:] == ["1x1 convolution, mean", "fully connected"]
    assert names.count("block 3x3 at 144 channels, stride 2") == 1
    assert (result.steps[0].input, result.steps[-1].output) == ((3, 160, 160), (1000, 1, 1))
    for before_it, step in zip(result.steps, result.steps[1:], strict=False):
        assert before_it.output[0] == step.input[0]
    network = models.mobilenet_v2()
    assert sum(step.macs for step in result.steps) == (
        fastconv.summary(network, (1, 3, 160, 160)).total_macs
    )
    assert all(step.seconds > 0 for step in result.steps)
    parts = sum(part.seconds for part in (*result.steps, *result.ops))
    assert result.rest == pytest.approx(result.seconds - parts)
    assert result.flops(result.steps[3]) == pytest.approx(
        2 * batch * result.steps[3].macs / result.steps[3].seconds
    )
    assert result.peak > 0


def test_ops_beside_the_steps_are_counted(native, torchvision):
    result = profiled("torchvision:googlenet", rounds=1)
    ops = {op.name: op for op in result.ops}
    assert ops["aten::cat"].calls == 9
    assert all(op.seconds > 0 for op in result.ops)
    assert sorted(result.ops, key=lambda op: -op.seconds) == list(result.ops)


def test_branches_side_by_side_are_one_entry(native):
    names = [step.name for step in profiled("googlenet", rounds=1).steps]
    assert names.count("1x1 convolution + 1x1 convolution + 1x1 convolution") == 9
    assert "max pooling 3x3, stride 2" in names


def test_profile_command(native, capsys):
    arguments = ["profile", "mobilenet_v3_small", "--size", "64", "--rounds", "1"]
    assert cli.main([*arguments, "--threads", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("\nmobilenet_v3_small, batch 1, 64x64, float32, 2 threads, FMA peak ")
    assert "block 5x5 at 96 channels, stride 2, squeeze-excite" in out
    assert out.splitlines()[-1].split()[:3] == ["the", "whole", "call"]
    assert err == "mobilenet_v3_small: timing its steps\n"
    assert cli.main([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["input_size"] == [1, 3, 64, 64]
    assert data["steps"][0]["output"] == [16, 32, 32]
    assert data["rest"] == pytest.approx(
        data["seconds"] - sum(part["seconds"] for part in data["steps"] + data["ops"])
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torchvision:vit_b_16"], "must run as native calls of several steps in float32"),
        (["torchvision:alexnet", "--size", "16"], "must run on images of shape (1, 3, 16, 16)"),
        (["nothing"], "NAME must be one of"),
    ],
)
def test_mistakes(native, torchvision, capsys, arguments, message):
    threads = torch.get_num_threads()
    assert cli.main(["profile", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("profile: ")
    assert message in err
    assert torch.get_num_threads() == threads


def test_without_the_library(monkeypatch, capsys):
    monkeypatch.setattr(_profile._library, "is_loaded", lambda: False)
    assert cli.main(["profile", "mobilenet_v2"]) == 1
    assert "the compiled library is missing" in capsys.readouterr().err
