"""Class probabilities of images: averaged over crops and over networks."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ._images import CROPS, INTERPOLATIONS, MEAN, STD, Image, Preparation, batches_of, loaded


def predict(
    models: nn.Module | Iterable[nn.Module],
    image: Image | Sequence[Image],
    *,
    crops: int = 1,
    size: int | Sequence[int] = 224,
    resize: int | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    interpolation: str = "bilinear",
) -> Tensor:
    """The mean of the softmax probabilities of all crops of an image and of several networks.

    The crops of all images are one batch, which each network runs once, in eval mode and without
    gradients; networks in train mode are in train mode again afterwards. Ten crops are those of
    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (2012), but
    of the whole resized image, as torchvision's ten_crop; the paper's images were square.

    Args:
        models: networks whose eval mode returns logits (N, classes): one, or several of as many
            classes, also a ModuleList. Each runs on its own device and in its own dtype.
        image: one image or a list of them. A path, a PIL image (RGB is made of any mode; it is
            turned as its EXIF data say) or a uint8 tensor (3, H, W) is resized and normalized. A
            floating point tensor (C, H, W) must be both already: crops are cut of it as it is.
            A tensor (N, 3, H, W) or (N, C, H, W) is N images.
        crops: 1 for the center, 5 for the corners and the center, 10 for these of the mirror image
            as well
        size: of the square crops: one number, or one for each network, such as 299 for inception_v3
        resize: the shorter side of a resized image; by default 8/7 of size: 256 for 224
        mean, std: of the channels, for values from 0 to 1; by default ImageNet's
        interpolation: how images are resized: "bilinear" or "bicubic"

    Returns: (N, classes), float32, on the device of the first network. Memory grows with N * crops.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if Pillow is needed to read an image and is not installed.
        TypeError: if a network or an image is none.
        ValueError: if the networks do not have the same number of classes, an image cannot be read,
            or an argument is not as above.

    Example:
        >>> model = fastconv.models.mobilenet_v2(weights="DEFAULT")
        >>> probabilities = fastconv.predict(model, "photo.jpg", crops=10)
        >>> probabilities.shape, int(probabilities.argmax())
        (torch.Size([1, 1000]), 281)
    """
    networks = _checked_models(models)
    if crops not in CROPS:
        raise ValueError(f"predict: crops must be 1, 5 or 10, got {crops!r}")
    sizes = _checked_sizes(size, len(networks))
    preparation = _checked_preparation(max(sizes), resize, mean, std, interpolation)
    if isinstance(image, Tensor) and image.dim() == 4:
        images: Sequence[Image] = image.unbind()
    else:
        images = image if isinstance(image, (list, tuple)) else [image]  # type: ignore[list-item]
    if not images:
        raise ValueError("predict: image must be at least one image, got none")
    batches = batches_of(loaded(images), sizes, crops, preparation)
    return average(networks, batches, crops)


def average(models: Sequence[nn.Module], batches: Sequence[Tensor], crops: int) -> Tensor:
    """The mean probabilities, (N, classes), of batches (N * crops, C, H, W), one for each model."""
    with torch.inference_mode(), _evaluating(models):
        # All are started before the first result is waited for: on several GPUs they run together.
        logits = [_run(model, batch) for model, batch in zip(models, batches, strict=True)]
        _check_logits(models, logits, len(batches[0]))
        means = [
            output.float().softmax(1).view(-1, crops, output.shape[1]).mean(1).to(logits[0].device)
            for output in logits
        ]
        return torch.stack(means).mean(0)


@contextlib.contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Eval mode for a while. Without eval() and train(), which forget packed weights."""
    trained = [module for model in models for module in model.modules() if module.training]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def _run(model: nn.Module, batch: Tensor) -> Tensor:
    tensors = itertools.chain(model.parameters(), model.buffers())
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), batch)
    output: Tensor = model(batch.to(like))
    return output


def _checked_models(models: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    is_one = isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList)
    networks = list(models) if isinstance(models, Iterable) and not is_one else [models]
    if not networks:
        raise ValueError("predict: models must be at least one network, got none")
    found = [network for network in networks if isinstance(network, nn.Module)]
    if len(found) < len(networks):
        kinds = ", ".join(type(network).__name__ for network in networks)
        raise TypeError(f"predict: models must be torch.nn.Modules, got {kinds}")
    return found


def _checked_sizes(size: int | Sequence[int], count: int) -> list[int]:
    sizes = [size] * count if isinstance(size, int) else list(size)
    if len(sizes) != count or not all(type(side) is int and side > 0 for side in sizes):
        raise ValueError(
            f"predict: size must be a positive integer, or one for each of {count} models, got "
            f"{size!r}"
        )
    return sizes


def _checked_preparation(
    size: int, resize: int | None, mean: Sequence[float], std: Sequence[float], interpolation: str
) -> Preparation:
    if resize is not None and not (type(resize) is int and resize >= size):
        raise ValueError(f"predict: resize must be an integer of at least {size}, got {resize!r}")
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise ValueError(
            f"predict: mean and std must be 3 numbers each, std positive, got {mean!r} and {std!r}"
        )
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"predict: interpolation must be bilinear or bicubic, got {interpolation!r}"
        )
    return Preparation(resize, mean, std, interpolation)


def _check_logits(models: Sequence[nn.Module], logits: Sequence[object], count: int) -> None:
    for index, (model, output) in enumerate(zip(models, logits, strict=True)):
        name = f"models[{index}] ({type(model).__name__})"
        if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != count:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"predict: models must return logits of shape ({count}, classes), got {got} from "
                f"{name}"
            )
        first = logits[0]
        assert isinstance(first, Tensor)
        if output.shape[1] != first.shape[1]:
            raise ValueError(
                "predict: models must have the same number of classes, got "
                f"{first.shape[1]} from models[0] ({type(models[0]).__name__}) and "
                f"{output.shape[1]} from {name}"
            )
