"""The images that a network is trained on: folders of them, or a data set that a package ships."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._images import MEAN, STD

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class FinetuneError(Exception):
    """A mistake of the user, with a message that says what to do."""


@dataclass(frozen=True)
class Images:
    """Where images are, and their classes.

    Args:
        classes: the names
        train, held: (source, class) of each image; a source is a path, or a (H, W) array
    """

    classes: tuple[str, ...]
    train: tuple[tuple[Any, int], ...]
    held: tuple[tuple[Any, int], ...]


def find(data: str, seed: int, skips_unreadable: bool) -> Images:
    """Looks for the images.

    Args:
        data: a folder with a folder for each class, or with train/ and val/ that are such;
            "sklearn:digits"
        seed: of the split, where there is none: every fifth image of a class is held back

    Raises:
        FinetuneError: if there are no images, fewer than two classes, or an image is damaged.
    """
    if data == "sklearn:digits":
        return _digits(seed)
    root = Path(data)
    if not root.is_dir():
        raise FinetuneError(f"DATA must be a folder of images or sklearn:digits, got {data}")
    parts = [root / "train", root / "val"]
    split = all(part.is_dir() for part in parts)
    if split:
        classes = _classes(parts[0])
        train, held = (_listed(part, classes, skips_unreadable) for part in parts)
    else:
        classes = _classes(root)
        train, held = _split(_listed(root, classes, skips_unreadable), len(classes), seed)
    if not held:
        raise FinetuneError(f"DATA must have images to validate with, got none in {data}")
    return Images(tuple(classes), tuple(train), tuple(held))


def _classes(folder: Path) -> list[str]:
    found = sorted(child.name for child in folder.iterdir() if child.is_dir())
    if len(found) < 2:
        raise FinetuneError(
            f"DATA must have a folder for each of two classes or more, got {len(found)} in {folder}"
        )
    return found


def _listed(folder: Path, classes: list[str], skips: bool) -> list[tuple[Any, int]]:
    image = _pillow()
    found: list[tuple[Any, int]] = []
    for index, name in enumerate(classes):
        files = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in SUFFIXES)
        good = len(found)
        for file in files:
            try:
                with image.open(file) as opened:
                    opened.verify()
            except Exception as error:  # whatever Pillow raises for a damaged file
                if not skips:
                    raise FinetuneError(
                        f"images must be readable (or give --skip-unreadable), got {file}: {error}"
                    ) from error
                continue
            found.append((str(file), index))
        if good == len(found):
            raise FinetuneError(f"every class must have images, got none in {folder / name}")
    return found


def _split(
    found: list[tuple[Any, int]], classes: int, seed: int
) -> tuple[list[tuple[Any, int]], list[tuple[Any, int]]]:
    train: list[tuple[Any, int]] = []
    held: list[tuple[Any, int]] = []
    generator = torch.Generator().manual_seed(seed)
    for index in range(classes):
        own = [entry for entry in found if entry[1] == index]
        order = torch.randperm(len(own), generator=generator).tolist()
        count = max(1, len(own) // 5) if len(own) > 1 else 0
        held += [own[i] for i in order[:count]]
        train += [own[i] for i in order[count:]]
    return train, held


def _digits(seed: int) -> Images:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise FinetuneError(
            "sklearn:digits needs scikit-learn: pip install scikit-learn"
        ) from error
    digits = datasets.load_digits()
    entries = [(i / 16 * 255, int(c)) for i, c in zip(digits.images, digits.target, strict=True)]
    train, held = _split(entries, 10, seed)
    return Images(tuple("0123456789"), tuple(train), tuple(held))


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise FinetuneError("finetune needs Pillow: pip install pillow") from error


def augmentations(given: str | None, head: bool, size: int, strength: float) -> tuple[str, ...]:
    """Checks what is to be done to the images that are trained on.

    Args:
        given: names with commas between them, "" for none, None for the default
        head: whether features that are computed once are trained on
        size, strength: as :func:`fastconv.augment.compose` takes them

    Raises:
        FinetuneError: if something is wrong, or torchvision missing.
    """
    try:
        from .. import augment
    except ImportError as error:
        raise FinetuneError(str(error)) from error
    try:
        names = augment.parse("crop,mirror" if given is None else given)
        augment.compose(names, size, strength=strength)
    except ValueError as error:
        text = str(error).replace("augment: names", "--augment")
        raise FinetuneError(text.replace("augment: strength", "--augment-strength")) from error
    if not head:
        return names
    if given or strength != 1:
        raise FinetuneError(
            "--augment and --augment-strength must be left out for --mode head, whose features are "
            f"computed once, got {given or 'the default'} and {strength:g}"
        )
    return ()


class Dataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images as the network sees them.

    What an augmentation draws depends on the seed, the epoch and the image alone, so that it is
    the same in any number of worker processes, and after a restart.
    """

    def __init__(
        self,
        entries: tuple[tuple[Any, int], ...],
        size: int,
        augmentations: tuple[str, ...],
        strength: float,
        seed: int,
    ) -> None:
        self._size, self._augmentations, self._strength = size, augmentations, strength
        self._entries, self._seed, self.epoch = entries, seed, 0

    @functools.cached_property
    def _transform(self) -> Any:
        # Not in __init__: a worker process that is not forked imports torchvision here.
        from .. import augment

        v2 = augment.v2
        picture = augment.compose(self._augmentations, self._size, strength=self._strength)
        steps = [v2.ToImage(), v2.ToDtype(torch.float32, True), v2.Normalize(MEAN, STD)]
        return v2.Compose([picture, *steps])

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        source, label = self._entries[index]
        image = _pillow()
        if isinstance(source, str):
            with image.open(source) as opened:
                picture = opened.convert("RGB")
        else:
            picture = image.fromarray(source.astype("uint8")).convert("RGB")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self._seed * 1009 + self.epoch) * len(self) + index)
            return self._transform(picture), label
