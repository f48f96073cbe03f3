"""``fastconv.predict``: the averages that are computed one by one, from one batch."""

import functools

import pytest
import torch
from torch import nn

import fastconv
from fastconv import _images, _resolve, models

Image = pytest.importorskip("PIL.Image")
CROPS = (1, 5, 10)


class Watched(nn.Module):
    """Sees where an image's parts are and which way round; notes the shapes that it was given."""

    def __init__(self, classes=6, seed=0, channels=3):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(channels, 4, 3, stride=2)
            self.linear = nn.Linear(4 * 9, classes)
            nn.init.normal_(self.linear.weight, 0, 4)  # probabilities that are far from equal
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, input):
        is_channels_last = input.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((tuple(input.shape), input.dtype, is_channels_last))
        assert not torch.is_grad_enabled()
        maps = torch.nn.functional.adaptive_avg_pool2d(self.conv(input).relu(), 3)
        return self.linear(self.dropout(maps.flatten(1)))


@pytest.fixture
def picture():
    """Odd sides, and structure that mirroring and moving change."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (9, 13, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy()).resize((301, 211), Image.Resampling.BICUBIC)


def transforms():
    return pytest.importorskip("torchvision.transforms.v2")


def tensor_of(picture):
    return transforms().functional.pil_to_tensor(picture)


def prepare(image, resize=256):
    """By torchvision: resized and normalized, (1, 3, H, W)."""
    v2 = transforms()
    steps = [v2.Resize(resize), v2.ToImage(), v2.ToDtype(torch.float32, True)]
    return v2.Compose([*steps, v2.Normalize(_images.MEAN, _images.STD)])(image)[None]


def one_by_one(networks, image, crops, size=224, resize=256):
    """The mean over networks and torchvision's crops, each of which runs alone."""
    functional = transforms().functional
    cut = {1: lambda *a: (functional.center_crop(*a),), 5: functional.five_crop}
    parts = (cut | {10: functional.ten_crop})[crops](prepare(image, resize), size)
    with torch.inference_mode():
        singles = [network.eval()(part).softmax(1) for network in networks for part in parts]
    assert crops == 1 or (singles[0] - singles[-1]).abs().max() > 1e-3, "crops must matter"
    return torch.stack(singles).mean(0)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("crops", CROPS)
@pytest.mark.parametrize("size", [(301, 211), (211, 301), (224, 224), (1000, 257), (30, 20)])
def test_crops_are_torchvisions(picture, crops, size):
    picture, network = picture.resize(size), Watched().eval()
    expected = one_by_one([network], picture, crops)
    network.seen.clear()
    actual = fastconv.predict(network, picture, crops=crops)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert network.seen == [((crops, 3, 224, 224), torch.float32, True)]


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("crops", [1, 10])
def test_networks_and_images_share_a_batch(picture, crops):
    networks = [Watched(seed=seed) for seed in range(3)]
    pictures = [picture, picture.rotate(40, expand=True)]
    expected = torch.cat([one_by_one(networks, image, crops) for image in pictures])
    for network in networks:
        network.seen.clear()
    for ensemble in (networks, tuple(networks), nn.ModuleList(networks)):
        actual = fastconv.predict(ensemble, pictures, crops=crops)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    for network in networks:
        assert [shape for shape, *_ in network.seen] == [(2 * crops, 3, 224, 224)] * 3


@functools.cache
def random_network(name):
    # Not any seed: some networks magnify the rounding of their input a hundredfold.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = models.create_model(name)
        _resolve.randomize_norms(network, (3, 64, 64))
        last = network.get_submodule("classifier.3" if "v3" in name else "fc")
        nn.init.normal_(last.weight, 0, 0.2)
    return network.eval()


@pytest.mark.usefixtures("torchvision", "one_thread")
def test_ten_crops_of_the_real_photos(demo_photos, pretrained_weights):
    network = models.mobilenet_v2(weights=pretrained_weights).eval()
    actual = fastconv.predict(network, demo_photos, crops=10)
    assert actual.shape == (len(demo_photos), 1000)
    for path, probabilities in zip(demo_photos, actual, strict=True):
        with Image.open(path) as file:
            expected = one_by_one([network], file.convert("RGB"), 10)[0]
        torch.testing.assert_close(probabilities, expected, rtol=1e-3, atol=1e-6)
        assert probabilities.argmax() == expected.argmax()


@pytest.mark.usefixtures("torchvision", "one_thread")
def test_three_networks_on_the_real_photos(demo_photos, pretrained_weights):
    networks = [models.mobilenet_v2(weights=pretrained_weights).eval()]
    networks += [random_network(name) for name in ("mobilenet_v3_small", "resnet18")]
    actual = fastconv.predict(networks, demo_photos)
    for path, probabilities in zip(demo_photos, actual, strict=True):
        with Image.open(path) as file:
            expected = one_by_one(networks, file.convert("RGB"), 1)[0]
        torch.testing.assert_close(probabilities, expected, rtol=1e-3, atol=1e-6)


def test_each_network_can_have_its_size(picture):
    networks = [Watched(seed=seed).eval() for seed in range(3)]
    actual = fastconv.predict(networks, picture, crops=5, size=(32, 48, 32), resize=60)
    assert [network.seen[0][0] for network in networks] == [(5, 3, s, s) for s in (32, 48, 32)]
    each = [
        fastconv.predict(network, picture, crops=5, size=size, resize=60)
        for network, size in zip(networks, (32, 48, 32), strict=True)
    ]
    torch.testing.assert_close(actual, torch.stack(each).mean(0))


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (299, 342)])
def test_resize_is_torchvisions_by_default(picture, size, resize):
    """(299, 342) are Inception v3's."""
    (batch,) = _images.batches_of(_images.loaded([picture]), [size], 1)
    expected = transforms().functional.center_crop(prepare(picture, resize), size)
    torch.testing.assert_close(batch, expected, rtol=0, atol=1e-5)
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("interpolation", _images.INTERPOLATIONS)
def test_pictures_and_bytes_are_resized_as_by_torchvision(picture, interpolation):
    v2 = transforms()
    mode = v2.InterpolationMode(interpolation)
    preparation = _images.Preparation(60, (0, 0, 0), (1, 1, 1), interpolation)
    for image, levels in ((picture, 0), (tensor_of(picture), 1)):  # Pillow's own, and PyTorch's
        resized = v2.functional.resize(image, [60], interpolation=mode, antialias=True)
        expected = v2.functional.to_dtype(v2.functional.to_image(resized), torch.float32, True)
        actual = _images.prepared(image, 60, preparation)
        torch.testing.assert_close(actual, expected.as_subclass(torch.Tensor), **near(levels))


def near(levels):
    """Of the 255 that eight bits have."""
    return {"rtol": 0, "atol": (levels + 0.01) / 255}


@pytest.mark.usefixtures("torchvision")
def test_images_are_paths_pictures_bytes_and_prepared_tensors(picture, tmp_path):
    picture.save(tmp_path / "photo.png")
    network = Watched().eval()
    path = tmp_path / "photo.png"
    prepared = prepare(picture)
    expected = fastconv.predict(network, picture, crops=10)
    for image in (path, str(path), prepared, prepared[0], [prepared[0]], (path,)):
        actual = fastconv.predict(network, image, crops=10)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    pixels = tensor_of(picture)
    for image in (pixels, pixels[None]):  # resized by PyTorch: a level of 255 here and there
        actual = fastconv.predict(network, image, crops=10)
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.01)
    mixed = fastconv.predict(network, [path, pixels, prepared[0]])
    assert mixed.shape == (3, 6)
    torch.testing.assert_close(mixed[2], mixed[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1", "P", "I;16"])
def test_any_mode_of_a_picture_becomes_rgb(mode, tmp_path, picture):
    path = tmp_path / ("photo.tiff" if mode == "CMYK" else "photo.png")
    other = picture.convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)
    other.save(path)
    network = Watched().eval()
    with Image.open(path) as file:
        expected = fastconv.predict(network, file.convert("RGB"))
    torch.testing.assert_close(fastconv.predict(network, path), expected)
    assert expected.shape == (1, 6)


def test_exif_turns_a_photo(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture.save(tmp_path / "photo.png", exif=exif)
    turned = picture.transpose(Image.Transpose.ROTATE_270)
    network = Watched().eval()
    expected = fastconv.predict(network, turned)
    assert not torch.allclose(expected, fastconv.predict(network, picture), atol=1e-3)
    torch.testing.assert_close(fastconv.predict(network, tmp_path / "photo.png"), expected)


def test_prepared_images_may_have_other_channels():
    image = torch.randn(2, 1, 40, 36)
    network = Watched(channels=1).eval()
    actual = fastconv.predict(network, image, crops=5, size=32)
    parts = [image[:, :, t : t + 32, left : left + 32] for t in (0, 8) for left in (0, 4)]
    parts.append(image[:, :, 4:36, 2:34])
    with torch.inference_mode():
        expected = torch.stack([network(part).softmax(1) for part in parts]).mean(0)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_networks_compute_in_their_own_dtype(picture):
    networks = [Watched().double(), Watched().bfloat16(), Watched()]
    probabilities = fastconv.predict(networks, picture)
    assert [network.seen[0][1] for network in networks] == [
        torch.float64,
        torch.bfloat16,
        torch.float32,
    ]
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1))
    torch.testing.assert_close(
        probabilities, fastconv.predict(networks[2], picture), rtol=0.05, atol=0.02
    )


def test_train_mode_comes_back(picture):
    network = Watched().train()
    network.conv.eval()
    before = {name: module.training for name, module in network.named_modules()}
    first = fastconv.predict(network, picture)
    assert torch.equal(first, fastconv.predict(network, picture)), "Dropout must not drop"
    assert {name: module.training for name, module in network.named_modules()} == before
    with pytest.raises(ValueError, match="same number of classes"):
        fastconv.predict([network, Watched(classes=7).train()], picture)
    assert {name: module.training for name, module in network.named_modules()} == before
    assert not first.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_norms_and_auxiliary_heads_are_in_eval_mode():
    network = models.googlenet(num_classes=5, aux_logits=True).train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    image = torch.randn(1, 3, 64, 64)
    probabilities = fastconv.predict(network, image, size=64)
    assert network.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    with torch.inference_mode():
        torch.testing.assert_close(probabilities, network.eval()(image).softmax(1))


def test_weights_stay_packed_until_they_change(native):
    network = models.mobilenet_v3_small(num_classes=5)
    image = torch.randn(2, 3, 64, 64)
    for mode in (False, True):
        network.train(mode)
        fastconv.predict(network, image, size=64)
        packed = dict(network.__dict__["_fused_cache"])
        assert packed
        fastconv.predict(network, image, size=64)
        assert packed == network.__dict__["_fused_cache"], "packed again"
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    before = fastconv.predict(network, image, size=64)
    network(image).square().sum().backward()
    optimizer.step()
    after = fastconv.predict(network, image, size=64)
    assert not torch.allclose(before, after)
    with torch.inference_mode():
        torch.testing.assert_close(after, network.eval()(image).softmax(1))


def test_image_sizes_are_torchvisions(torchvision):
    for name in models.list_models():
        if name in torchvision.models.list_models():
            published = torchvision.models.get_model_weights(name).IMAGENET1K_V1
            assert [models.image_size(name)] == published.transforms().crop_size
    assert models.image_size("mobilenet_v1") == 224
    with pytest.raises(ValueError, match=r"^image_size: name must be one of .*, got 'lenet'"):
        models.image_size("lenet")


GOOD = torch.zeros(3, 40, 40)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"models": []}, ValueError, "models must be at least one network, got none"),
        ({"models": ["a"]}, TypeError, "models must be torch.nn.Modules, got str"),
        ({"models": 5}, TypeError, "models must be torch.nn.Modules, got int"),
        (
            {"models": [Watched(), Watched(7)]},
            ValueError,
            r"models must have the same number of classes, got 6 from models\[0\] \(Watched\) and "
            r"7 from models\[1\] \(Watched\)",
        ),
        (
            {"models": nn.Conv2d(3, 4, 1)},
            ValueError,
            r"models must return logits of shape \(1, classes\), got \[1, 4, 32, 32\] from "
            r"models\[0\] \(Conv2d\)",
        ),
        ({"crops": 3}, ValueError, "crops must be 1, 5 or 10, got 3"),
        ({"size": 0}, ValueError, "size must be a positive integer, or one for each of 1 models"),
        ({"size": (32, 32)}, ValueError, r"size must be a positive .*, got \(32, 32\)"),
        ({"resize": 31}, ValueError, "resize must be an integer of at least 32, got 31"),
        ({"resize": 40.0}, ValueError, "resize must be an integer of at least 32, got 40.0"),
        ({"mean": (0, 0)}, ValueError, r"mean and std must be 3 numbers each.*got \(0, 0\)"),
        ({"std": (0, 1, 1)}, ValueError, "mean and std must be 3 numbers each, std positive"),
        ({"interpolation": "area"}, ValueError, "interpolation must be bilinear or bicubic, got"),
        ({"image": []}, ValueError, "image must be at least one image, got none"),
        ({"image": 5}, TypeError, "image must be a path, a PIL image, a tensor .*, got int"),
        ({"image": torch.zeros(3, 4)}, ValueError, r"image must have shape .*, got \[3, 4\]"),
        ({"image": torch.zeros(3, 0, 4)}, ValueError, r"image must have .*, got \[3, 0, 4\]"),
        ({"image": GOOD.int()}, ValueError, "image must be uint8 or floating point, got torch.int"),
        ({"image": GOOD[:1].byte()}, ValueError, "image must have 3 channels where it is uint8"),
        ({"image": torch.zeros(3, 1, 200).byte()}, ValueError, "image must be less elongated, got"),
        ({"image": GOOD[:, :31]}, ValueError, "image must be at least 32 x 32 .*, got 31 x 40"),
        (
            {"image": [GOOD, GOOD[:1]]},
            ValueError,
            r"image must have as many channels as the others, got \[1, 3\]",
        ),
        ({"image": "none.png"}, FileNotFoundError, "image must be a file, got none.png"),
        ({"image": __file__}, ValueError, r"image must be an image, got .*test_predict.py \("),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_rejects(changes, error, message):
    arguments = {"models": Watched(), "image": GOOD, "size": 32} | changes
    with pytest.raises(error, match=f"^predict: {message}"):
        fastconv.predict(arguments.pop("models"), arguments.pop("image"), **arguments)


def test_says_that_reading_needs_pillow(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match="predict: reading images needs Pillow"):
        fastconv.predict(Watched(), "photo.png")
    assert fastconv.predict(Watched(), GOOD, size=32).shape == (1, 6), "tensors need no Pillow"
