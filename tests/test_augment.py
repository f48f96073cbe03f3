"""Augmentations: what they keep, what they draw, and that workers and seeds draw it again."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastconv import classify, cli
from fastconv.finetune import data

Image = pytest.importorskip("PIL.Image", reason="it reads the photos")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def augment(torchvision):
    from fastconv import augment

    return augment


@pytest.fixture(scope="module")
def photo():
    """(3, 61, 83), uint8: smooth, so that what is moved a little changes a little."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, 5, 6, generator=generator)
    large = torch.nn.functional.interpolate(small, (61, 83), mode="bicubic")[0]
    return (large.clamp(0, 1) * 255).round().to(torch.uint8)


def as_pil(photo):
    return Image.fromarray(photo.permute(1, 2, 0).numpy())


KINDS = {
    "uint8": lambda photo: photo,
    "float32": lambda photo: photo / 255,
    "float64": lambda photo: photo.double() / 255,
    "batch": lambda photo: torch.stack([photo, 255 - photo]),
    "pil": as_pil,
}
ALL = ("crop", "mirror", "rotate", "shear", "warp", "color", "shift", "pca")


@pytest.mark.parametrize("kind", KINDS)
def test_pca_color_is_its_formula(augment, photo, kind):
    image = KINDS[kind](photo)
    transform = augment.PCAColor(0.5)
    torch.manual_seed(5)
    alpha = 0.5 * torch.randn(*(2,) * (kind == "batch"), 3).double().numpy()
    torch.manual_seed(5)
    output = transform(image)
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)
    shift = (alpha * values) @ vectors.T
    pixels = photo.numpy() / 255
    pixels = np.stack([pixels, 1 - pixels]) if kind == "batch" else pixels
    expected = np.clip(pixels + shift[..., None, None], 0, 1)
    assert type(output) is type(image) if kind != "pil" else output.mode == "RGB"
    if kind == "pil":
        output = torch.from_numpy(np.array(output)).permute(2, 0, 1)
    else:
        assert output.dtype == image.dtype
    scale, tolerance = (1, 1e-6) if output.is_floating_point() else (255, 0.501 / 255)
    np.testing.assert_allclose(output.numpy() / scale, expected, atol=tolerance)
    assert np.abs(shift).min() > 1 / 255


def test_pca_color_draws_once_for_each_image(augment, torchvision):
    torch.manual_seed(0)
    transform = augment.PCAColor(0.2)
    batch = torch.full((20000, 3, 2, 2), 0.5, dtype=torch.float64)
    shifts = transform(batch) - 0.5
    assert torch.equal(shifts, shifts[..., :1, :1].expand_as(shifts))
    found = shifts[..., 0, 0]
    assert found.mean(0).abs().max() < 0.001
    vectors, values = transform.eigenvectors.double(), transform.eigenvalues.double()
    expected = vectors @ torch.diag((0.2 * values) ** 2) @ vectors.T
    torch.testing.assert_close(found.T.cov(), expected, rtol=0.05, atol=2e-6)
    video = torchvision.tv_tensors.Video(batch[:5])
    frames = transform(video)
    assert type(frames) is torchvision.tv_tensors.Video
    assert torch.equal(frames, frames[:1].expand_as(frames))


def test_pca_color_leaves_all_but_the_image(augment, torchvision, photo):
    tv = torchvision.tv_tensors
    mask = tv.Mask(torch.ones(3, 61, 83, dtype=torch.uint8))
    sample = {"image": tv.Image(photo), "mask": mask, "label": 3}
    result = augment.PCAColor(2.0)(sample)
    assert type(result["image"]) is tv.Image
    assert not torch.equal(result["image"], photo)
    assert result["mask"] is mask
    assert result["label"] == 3
    assert augment.PCAColor()({"mask": mask})["mask"] is mask


def test_fit_finds_the_axes(augment):
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    deviations = torch.tensor([0.1, 0.05, 0.01], dtype=torch.float64)
    colors = torch.randn(40, 50, 60, 3, generator=generator, dtype=torch.float64) * deviations
    images = (0.5 + colors @ axes.T).movedim(-1, 1)
    fitted = augment.PCAColor.fit(images, 0.3)
    assert fitted.std == 0.3
    torch.testing.assert_close(fitted.eigenvalues.double(), deviations**2, rtol=0.02, atol=0)
    cosines = (fitted.eigenvectors.double() * axes).sum(0).abs()
    assert cosines.min() > 0.9999


def test_fit_takes_all_that_a_call_takes(augment, photo):
    covariance = np.cov(photo.flatten(1).numpy() / 255, bias=True)
    for images in ([photo], [photo / 255], iter([as_pil(photo)]), photo[None], [photo[None]] * 2):
        fitted = augment.PCAColor.fit(images)
        vectors, values = fitted.eigenvectors.numpy(), fitted.eigenvalues.numpy()
        assert list(values) == sorted(values, reverse=True)
        np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, covariance, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*ALL, "all"])
def test_every_name_keeps_type_and_range(augment, photo, name, kind):
    names = ALL if name == "all" else [name]
    image = KINDS[kind](photo)
    torch.manual_seed(0)
    for strength in (0, 1, 3):
        outputs = [augment.compose(names, 32, strength=strength)(image) for _ in range(8)]
        center = augment.compose((), 32)(image)
        if kind == "pil":
            assert {(output.mode, output.size) for output in outputs} == {("RGB", (32, 32))}
            outputs = [torch.from_numpy(np.array(output)) for output in outputs]
            center = torch.from_numpy(np.array(center))
        assert {(output.shape, output.dtype) for output in outputs} == {
            (center.shape, center.dtype)
        }
        if center.is_floating_point():
            assert min(o.min() for o in outputs) >= 0
            assert max(o.max() for o in outputs) <= 1 + 1e-6  # what a resize rounds
        if strength > 0 or name == "mirror":
            assert any(not torch.equal(output, outputs[0]) for output in outputs)
        elif "crop" not in names:
            steps = 1 / 255 if center.is_floating_point() else 1
            torch.testing.assert_close(outputs[0], center, rtol=0, atol=steps)


def test_mirror_and_shift(augment, photo):
    center = augment.compose("", 32)(photo)
    torch.manual_seed(0)
    mirrored = [augment.compose("mirror", 32)(photo) for _ in range(20)]
    flipped = [torch.equal(picture, center.flip(-1)) for picture in mirrored]
    assert all(torch.equal(p, center) or f for p, f in zip(mirrored, flipped, strict=True))
    assert 5 < sum(flipped) < 15
    half = torch.full((2000, 3, 20, 20), 0.5)
    shifts = augment.compose("shift", 16)(half)[..., 0, 0] - 0.5
    torch.testing.assert_close(shifts.T.cov(), 0.05**2 * torch.eye(3), rtol=0.1, atol=3e-4)


@pytest.mark.parametrize("strength", [0.5, 1, 2, 3])
@pytest.mark.parametrize("name", ["rotate", "shear", "warp"])
def test_no_corner_is_empty(augment, name, strength):
    plain = torch.full((3, 40, 60), 200, dtype=torch.uint8)
    torch.manual_seed(0)
    for size in (16, 33):
        transform = augment.compose(name, size, strength=strength)
        assert all(bool((transform(plain) == 200).all()) for _ in range(15))


def test_warp_is_torchvisions(augment, torchvision, photo):
    """With the blur in two passes."""
    ours = next(s for s in augment.compose("warp", 48).transforms if isinstance(s, augment._Warp))
    theirs = torchvision.transforms.v2.ElasticTransform(ours.alpha, ours.sigma)
    torch.manual_seed(0)
    moves = ours.make_params([photo])["displacement"]
    torch.manual_seed(0)
    torch.testing.assert_close(moves, theirs.make_params([photo])["displacement"])
    pixels = moves * torch.tensor([83, 61]) / 2
    assert 0.5 < float(pixels.square().mean().sqrt()) / (0.012 * 48) < 2


class Drawn(torch.utils.data.Dataset):
    """The same photo in every place, augmented."""

    def __init__(self, transform, photo):
        self.transform, self.photo = transform, photo

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.transform(self.photo)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_draw_different_numbers_and_a_seed_the_same(augment, photo, workers):
    drawn = Drawn(augment.compose(ALL, 32), photo)

    def epochs(seed):
        torch.manual_seed(seed)
        loader = torch.utils.data.DataLoader(drawn, num_workers=workers)
        return [torch.cat(list(loader)) for _ in range(2)]

    first, again, other = epochs(0), epochs(0), epochs(1)
    pictures = [picture for epoch in (*first, *other) for picture in epoch]
    for i, picture in enumerate(pictures):
        assert not any(torch.equal(picture, before) for before in pictures[:i])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def read(entries, workers, epoch=0, seed=0, context=None):
    images = data.Dataset(entries, 32, ALL, 1.0, seed)
    images.epoch = epoch
    loader = torch.utils.data.DataLoader(
        images, 2, num_workers=workers, multiprocessing_context=context
    )
    return torch.cat([inputs for inputs, _ in loader])


def test_what_finetune_draws_depends_on_seed_epoch_and_image(augment, photo, tmp_path):
    as_pil(photo).save(tmp_path / "photo.png")
    entries = ((str(tmp_path / "photo.png"), 0),) * 5
    torch.manual_seed(0)
    images = data.Dataset(entries, 32, ALL, 1.0, 0)
    state = torch.get_rng_state()
    pictures = [picture for picture, _ in images]
    assert torch.equal(torch.get_rng_state(), state)
    first = read(entries, 0)
    assert torch.equal(torch.stack(pictures), first)
    assert torch.equal(read(entries, 2), first)
    assert torch.equal(read(entries, 1, context="spawn"), first)
    for other in (read(entries, 2, epoch=1), read(entries, 2, seed=1)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not any(torch.equal(first[i], first[j]) for i in range(5) for j in range(i))


def test_the_picture(augment, photo, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="it draws")
    as_pil(photo).save(tmp_path / "photo.png")
    monkeypatch.setattr(classify, "demo_photos", lambda: [tmp_path / "photo.png"])
    command = ["augment", "--size", "32", "--draws", "2", "--plot"]
    state = torch.get_rng_state()
    for name, more in {
        "all": [], "given": [str(tmp_path / "photo.png")], "seed": ["--seed", "1"],
        "two": ["--names", "pca,crop"], "one": ["--names", "crop"],
    }.items():  # fmt: skip
        assert cli.main([*command, str(tmp_path / f"{name}.png"), *more]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    drawn = {path.stem: Image.open(path).convert("RGB") for path in tmp_path.glob("*.png")}
    assert np.array_equal(drawn["all"], drawn["given"])
    assert not np.array_equal(drawn["all"], drawn["seed"])
    heights = {name: picture.height for name, picture in drawn.items()}
    row = heights["two"] - heights["one"]  # crop; crop, pca and both
    assert heights["all"] - heights["two"] == row / 2 * (len(ALL) + 1 - 3)


def test_the_names_are_in_the_help(augment, capsys):
    assert augment.NAMES == ALL
    for command in ("augment", "finetune"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert ",".join(ALL) in re.sub(r"\s", "", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--names", "crop,blur"], f"--names must be of {', '.join(ALL)}, got blur"),
        (["--names", ""], f"--names must be of {', '.join(ALL)}, got none"),
        (["--strength", "3.5"], "--strength must be between 0 and 3, got 3.5"),
        (["--size", "8"], "--size must be an int of at least 16, got 8"),
        (["/no/photo.png"], "image must be a file, got /no/photo.png"),
        (["--plot", "picture.txt"], "--plot must end in one of"),
    ],
)
def test_mistakes(augment, tmp_path, capsys, arguments, message):
    pytest.importorskip("matplotlib", reason="it draws")
    assert cli.main(["augment", "--plot", str(tmp_path / "picture.png"), *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"augment: {message}")
    assert not list(tmp_path.iterdir())


def test_rejects(augment):
    assert augment.parse(["pca", "crop", "pca"]) == augment.parse("pca,crop") == ("crop", "pca")
    for names, size, strength, message in [
        (["blur"], 32, 1, "augment: names must be of crop, .*, got blur"),
        ((), 15, 1, "augment: size must be an int of at least 16, got 15"),
        ((), 32.0, 1, r"augment: size must be an int of at least 16, got 32\.0"),
        ((), 32, -1, "augment: strength must be between 0 and 3, got -1"),
        ((), 32, float("nan"), "augment: strength must be between 0 and 3, got nan"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            augment.compose(names, size, strength=strength)
    for arguments, message in [
        ({"std": -1}, "std must be a number of at least 0, got -1"),
        ({"std": float("inf")}, "std must be a number of at least 0, got inf"),
        ({"eigenvalues": [1, 2]}, r"eigenvalues must have shape \(3,\), got \[2\]"),
        ({"eigenvectors": torch.eye(2)}, r"eigenvectors must have shape \(3, 3\), got \[2, 2\]"),
    ]:
        with pytest.raises(ValueError, match=f"^PCAColor: {message}$"):
            augment.PCAColor(**arguments)
    transform = augment.PCAColor()
    for image, message in [
        (torch.rand(1, 8, 8), r"image must have shape \(..., 3, H, W\), got \[1, 8, 8\]"),
        (torch.rand(3, 8), r"image must have shape \(..., 3, H, W\), got \[3, 8\]"),
        (Image.new("L", (8, 9)), r"image must have shape \(..., 3, H, W\), got \[1, 9, 8\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "image must be uint8 or .*, got torch.int64"),
    ]:
        with pytest.raises(ValueError, match=f"^PCAColor: {message}$"):
            transform(image)
        with pytest.raises(ValueError, match=rf"^PCAColor\.fit: {message}$"):
            augment.PCAColor.fit([image])
    with pytest.raises(ValueError, match=r"^PCAColor\.fit: images must have pixels, got none$"):
        augment.PCAColor.fit([])
    with pytest.raises(TypeError, match=r"^PCAColor\.fit: image must be .*, got str$"):
        augment.PCAColor.fit(["photo.png"])


def test_without_torchvision():
    code = """
import sys
import fastconv, fastconv.cli
assert "torchvision" not in sys.modules
fastconv._torchvision.import_torchvision = lambda: None
from fastconv import augment
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = "ImportError: fastconv.augment needs torchvision: pip install --no-deps torchvision"
    assert result.stderr.splitlines()[-1] == message


def test_readme_code_runs(augment):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = (c for c in re.findall(r"^```py\n(.*?)^```", text, re.S | re.M) if "augment" in c)
    namespace = {"images": torch.rand(4, 3, 40, 50)}
    exec(code, namespace)
    assert namespace["picture"].shape == (3, 224, 224)
