"""``fastconv finetune``: what it learns, keeps and refuses, and how it goes on after a stop."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import fastconv
from fastconv import _memory, _torchvision, cli
from fastconv.finetune import checkpoint, features, loop

pytestmark = [
    pytest.mark.skipif(
        _torchvision.import_torchvision() is None, reason="torchvision has the transforms"
    ),
    pytest.mark.usefixtures("one_thread"),
]
pytest.importorskip("safetensors", reason="weights and features are kept in its files")
Image = pytest.importorskip("PIL.Image", reason="it reads the images")

SMALL = ["--model", "mobilenet_v3_small", "--size", "32", "--batch", "8", "--no-augment"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Red, green and blue images, and noise."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for index, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir()
        for i in range(15):
            pixels = torch.randint(0, 100, (40, 48, 3), generator=generator, dtype=torch.uint8)
            pixels[:, :, 2 - index] += 120
            Image.fromarray(pixels.numpy()).save(root / name / f"{i}.png")
    return root


def run(*arguments):
    return cli.main(["finetune", *map(str, arguments)])


def state(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def assert_same(a, b):
    for key, value in a["model"].items():
        assert torch.equal(value, b["model"][key]), key
    assert [line["loss"] for line in a["history"]] == [line["loss"] for line in b["history"]]


@pytest.mark.parametrize(
    "mode",
    [
        ["head", "--lr", 0.05, "--epochs", 10],
        ["last", "--blocks", 3, "--lr", 0.002, "--epochs", 4, "--freeze-norm"],
        ["all", "--lr", 0.002, "--epochs", 6],
    ],
    ids=lambda mode: mode[0],
)
def test_it_learns(folder, tmp_path, capsys, mode, pretrained_weights):
    options = ["--size", 64, "--batch", 8, "--weights", pretrained_weights, "--no-augment"]
    assert run(folder, "--out", tmp_path, *options, "--mode", *mode) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert max(line["accuracy"] for line in history) >= 0.9
    assert history[-1]["loss"] < history[0]["loss"]
    assert (tmp_path / "classes.txt").read_text().split() == ["blue", "green", "red"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "create_model('mobilenet_v2', num_classes=3" in capsys.readouterr().out
    weights = tmp_path / "best.safetensors"
    model = fastconv.models.create_model("mobilenet_v2", num_classes=3, weights=str(weights))
    assert model.classifier[-1].out_features == 3


def test_what_is_frozen_stays(folder, tmp_path):
    torch.manual_seed(0)
    start = fastconv.models.create_model("mobilenet_v3_small")
    torch.save(start.state_dict(), tmp_path / "start.pt")
    weights = ["--weights", tmp_path / "start.pt", "--epochs", 1, *SMALL]
    assert run(folder, "--out", tmp_path / "a", "--mode", "last", "--blocks", 2, *weights) == 0
    found, before = state(tmp_path / "a")["model"], start.state_dict()
    same = {key for key in found if torch.equal(found[key], before.get(key, found[key] + 1))}
    count = len(start.features)
    for key in found:
        if key.startswith("features."):
            assert (key in same) == (int(key.split(".")[1]) < count - 2), key
    assert run(folder, "--out", tmp_path / "b", "--mode", "all", "--freeze-norm", *weights) == 0
    found = state(tmp_path / "b")["model"]
    assert torch.equal(found["features.0.1.running_mean"], before["features.0.1.running_mean"])
    assert not torch.equal(found["features.0.1.weight"], before["features.0.1.weight"])


def test_features_are_computed_once(folder, tmp_path, monkeypatch):
    computed = []
    original = features._computed
    monkeypatch.setattr(
        features, "_computed", lambda *args: computed.append(args[2]) or original(*args)
    )
    command = [folder, "--out", tmp_path, *SMALL, "--epochs"]
    assert run(*command, 2) == 0
    assert computed == ["train", "held"]
    for kept in tmp_path.glob("checkpoint*"):
        kept.unlink()
    assert run(*command, 3) == 0
    assert computed == ["train", "held"]  # from the disk
    (file,) = tmp_path.glob("features-*")
    file.write_bytes(file.read_bytes()[:100])  # damaged
    assert run(*command, 3) == 0
    assert len(computed) == 4
    image = folder / "red" / "0.png"
    os.utime(image, (1, 1))  # changed
    assert run(*command, 3) == 0
    assert len(computed) == 6
    assert len(list(tmp_path.glob("features-*"))) == 1


def stopped_command(folder, mode):
    return [folder, *SMALL[:-1], "--epochs", 3, "--mode", mode, "--checkpoint-every", 0]


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """By the mode: the directory of a run that nothing stopped."""

    @functools.cache
    def finished(mode):
        out = tmp_path_factory.mktemp("whole")
        assert run(*stopped_command(folder, mode), "--out", out) == 0
        return out

    return finished


@pytest.mark.parametrize("at", [1, 5, 6, 11])
@pytest.mark.parametrize("mode", ["all", "head"])
def test_it_goes_on_with_the_same_bits(folder, whole, tmp_path, monkeypatch, mode, at):
    command = stopped_command(folder, mode)
    expected = state(whole(mode))
    steps = 0
    original = loop.Trainer._one

    def stopping(self, *args):
        nonlocal steps
        steps += 1
        if steps == at + 1:
            raise KeyboardInterrupt if at % 2 else RuntimeError("the power is off")
        return original(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_one", stopping)
        if at % 2:
            assert run(*command, "--out", tmp_path / "parts") == 130
        else:
            with pytest.raises(RuntimeError, match="power"):
                run(*command, "--out", tmp_path / "parts")
    assert run(*command, "--out", tmp_path / "parts") == 0
    assert_same(expected, state(tmp_path / "parts"))


def test_it_survives_being_killed(folder, tmp_path):
    command = [folder, *SMALL[:-1], "--epochs", "3", "--mode", "all", "--checkpoint-every", "0"]
    command += ["--augment", "crop,rotate,warp,color,pca", "--augment-strength", "1.5"]
    assert run(*command, "--out", tmp_path / "whole") == 0
    parts = tmp_path / "parts"
    shell = [sys.executable, "-m", "fastconv", "finetune", *map(str, command), "--out", str(parts)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # How long after the first checkpoint of each process; however many read the images.
    for wait, workers in (0.05, 2), (0.5, 0):
        once = [*shell, "--workers", str(workers)]
        process = subprocess.Popen(once, env=environment, stderr=subprocess.DEVNULL)
        file = parts / "checkpoint.pt"
        seen = file.stat().st_mtime_ns if file.exists() else 0
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            if file.exists() and file.stat().st_mtime_ns > seen:
                break
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(shell, env=environment, check=True, capture_output=True)
    assert_same(state(tmp_path / "whole"), state(parts))


def test_a_head_learns_from_features_without_augmentation(folder, tmp_path, capsys):
    command = [folder, *SMALL[:-1], "--epochs", 1, "--out"]
    assert run(*command, tmp_path / "a") == 0
    assert "no augmentation: the features of each image are computed once" in (
        capsys.readouterr().out
    )
    assert run(*command, tmp_path / "b", "--no-augment") == 0
    assert "augmentation" not in capsys.readouterr().out
    assert_same(state(tmp_path / "a"), state(tmp_path / "b"))
    for more in (["--augment", "pca"], ["--augment-strength", 2]):
        assert run(*command, tmp_path / "c", *more) == 2
        assert "must be left out for --mode head" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_the_only_one(tmp_path):
    kept = checkpoint.Checkpoints(tmp_path)
    assert kept.load() is None
    kept.save({"at": 1})
    kept.save({"at": 2})
    assert kept.load() == {"at": 2}
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:50])
    assert kept.load() == {"at": 1}
    (tmp_path / "checkpoint-before.pt").unlink()
    assert kept.load() is None


def test_a_file_is_whole_or_the_old_one(tmp_path):
    path = tmp_path / "file"
    checkpoint.write(path, lambda new: new.write_text("old"))

    def half(new):
        new.write_text("ne")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        checkpoint.write(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_it_stops_early(folder, tmp_path, capsys):
    command = [folder, "--out", tmp_path, *SMALL, "--epochs", 30, "--patience", 2]
    assert run(*command, "--lr", 0) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 3


def test_digits_of_a_package(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(_memory, "keep_freed_memory", lambda: kept.append(True))
    pytest.importorskip("sklearn", reason="scikit-learn has the data")
    assert run("sklearn:digits", "--out", tmp_path, *SMALL[:5], 64, "--epochs", 1) == 0
    assert (tmp_path / "classes.txt").read_text().split() == list("0123456789")
    assert kept == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "DATA must be a folder of images or sklearn:digits, got /nowhere"),
        (["{folder}", "--model", "vgg"], "--model must be one of alexnet, "),
        (["{folder}", "--model", "lenet5"], "--size must be 32 for lenet5, got 224"),
        (["{folder}", "--model", "nin"], "--model must be a network that ends with a Linear layer"),
        (["{folder}", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (
            ["{folder}", "--augment", "crop,blur"],
            "--augment must be of crop, mirror, rotate, shear, warp, color, shift, pca, got blur",
        ),
        (
            ["{folder}", "--augment-strength", "4"],
            "--augment-strength must be between 0 and 3, got 4.0",
        ),
        (["{folder}", "--momentum", "1"], "--momentum must be at least 0.0 and below 1.0, got 1.0"),
        (["{folder}", "--weights", "/no/file"], "--weights must be a file that fits mobilenet_v2"),
        (["{folder}/red"], "DATA must have a folder for each of two classes or more, got 0"),
        (["{folder}", "--mode", "last", "--blocks", "99"], "--blocks must be at most"),
        (
            ["{folder}", "--mode", "last", "--model", "mobilenet_v1"],
            "--mode last must be used with a network that has features",
        ),
    ],
)
def test_mistakes(folder, tmp_path, capsys, arguments, message):
    filled = [argument.format(folder=folder) for argument in arguments]
    assert run(*filled, "--out", tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"finetune: {message}")


@pytest.mark.parametrize("model", ["resnet18", "googlenet", "lenet5"])
def test_networks_with_another_last_layer(folder, tmp_path, capsys, model):
    command = [folder, "--out", tmp_path, "--model", model, *SMALL[2:], "--epochs", 1]
    assert run(*command, "--mode", "all") == 0
    call = capsys.readouterr().out.splitlines()[-1]
    network = eval(call, {"fastconv": fastconv})
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_other_arguments_are_not_mixed(folder, tmp_path, capsys):
    command = [folder, "--out", tmp_path, *SMALL, "--epochs"]
    assert run(*command, 1) == 0
    assert run(*command, 2) == 2
    assert "epochs: 1, now 2" in capsys.readouterr().err


def test_unreadable_images(folder, tmp_path, capsys):
    copied = tmp_path / "images"
    for name in ("blue", "red"):
        (copied / name).mkdir(parents=True)
        for i in range(5):
            data = (folder / name / f"{i}.png").read_bytes()
            (copied / name / f"{i}.png").write_bytes(data)
    (copied / "red" / "9.png").write_bytes(b"no image")
    command = [copied, "--out", tmp_path / "out", *SMALL, "--epochs", 1]
    assert run(*command) == 2
    assert "9.png" in capsys.readouterr().err
    assert run(*command, "--skip-unreadable") == 0
