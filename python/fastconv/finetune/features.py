"""What a frozen network makes of every image, computed once and kept on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import Progress
from . import checkpoint
from .data import Dataset, FinetuneError

Features = tuple[Tensor, Tensor]  # (N, C) and the classes (N,)


def kept(
    backbone: nn.Module,
    sets: dict[str, Dataset],
    folder: Path,
    facts: object,
    batch: int,
    workers: int,
    progress: Progress,
) -> dict[str, Features]:
    """The features of the images of each set: from the disk, if the weights and the files are what
    they were, else computed by the kernels of inference."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file
    except ImportError as error:
        raise FinetuneError("--mode head needs safetensors: pip install safetensors") from error
    path = folder / f"features-{checkpoint.fingerprint(backbone, facts)}.safetensors"
    try:
        tensors = load_file(path)
        return {name: (tensors[f"{name}.features"], tensors[f"{name}.labels"]) for name in sets}
    except (FileNotFoundError, SafetensorError, KeyError):
        pass  # not there, or damaged
    found = {
        name: _computed(backbone, images, name, batch, workers, progress)
        for name, images in sets.items()
    }
    for old in folder.glob("features-*.safetensors"):
        old.unlink()
    flat = {f"{name}.features": features for name, (features, _) in found.items()}
    flat |= {f"{name}.labels": labels for name, (_, labels) in found.items()}
    checkpoint.write(path, lambda new: save_file(flat, new))
    return found


def _computed(
    backbone: nn.Module, images: Dataset, name: str, batch: int, workers: int, progress: Progress
) -> Features:
    loader: Any = torch.utils.data.DataLoader(
        images, batch, num_workers=workers, generator=torch.Generator()
    )
    progress.task(f"features of {name}", len(loader))
    features, labels = [], []
    with torch.inference_mode():
        for inputs, classes in loader:
            features.append(backbone(inputs))
            labels.append(classes)
            progress.step()
    return torch.cat(features).clone(), torch.cat(labels).clone()


def identity(file: str) -> tuple[str, int, int]:
    """A file's name, size and time, by which a change is seen."""
    about = Path(file).stat()
    return file, about.st_size, about.st_mtime_ns
