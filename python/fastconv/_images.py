"""Images as networks take them: read, resized, normalized, cropped. See :func:`predict`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image as Photo

Image: TypeAlias = "str | os.PathLike[str] | Photo | Tensor"

# Of ImageNet: what published weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
CROPS = (1, 5, 10)
_ELONGATED = 100  # the longer side over the shorter: a resized image would fill the memory


@dataclass(frozen=True)
class Preparation:
    """What becomes of an image before it is cropped.

    Args:
        resize: the new shorter side; None for 8/7 of the crops', 256 for 224
        mean, std: of the three channels, for values from 0 to 1
        interpolation: one of INTERPOLATIONS
    """

    resize: int | None = None
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD
    interpolation: str = "bilinear"


def loaded(images: Sequence[Image]) -> list[Photo | Tensor]:
    """Images that are read: by Pillow, upright and in RGB, or tensors (C, H, W) as they are.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: saying what an image must be.
    """
    found = [_loaded(image) for image in images]
    channels = {_channels(image) for image in found}
    if len(channels) > 1:
        raise ValueError(
            f"predict: image must have as many channels as the others, got {sorted(channels)}"
        )
    return found


def _loaded(image: Image) -> Photo | Tensor:
    if isinstance(image, Tensor):
        _check_tensor(image)
        return image
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError("predict: reading images needs Pillow: pip install pillow") from error
    if isinstance(image, PIL.Image.Image):
        photo = PIL.ImageOps.exif_transpose(image).convert("RGB")
    elif isinstance(image, (str, os.PathLike)):
        try:
            with PIL.Image.open(image) as file:
                photo = PIL.ImageOps.exif_transpose(file).convert("RGB")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"predict: image must be a file, got {image}") from error
        except (OSError, PIL.Image.DecompressionBombError) as error:
            reason = str(error)
            raise ValueError(f"predict: image must be an image, got {image} ({reason})") from error
    else:
        raise TypeError(
            "predict: image must be a path, a PIL image, a tensor or a list of these, got "
            f"{type(image).__name__}"
        )
    _check_sides(photo.height, photo.width)
    return photo


def _check_tensor(image: Tensor) -> None:
    if image.dim() != 3 or 0 in image.shape:
        raise ValueError(
            "predict: image must have shape (C, H, W) or (N, C, H, W), not empty, got "
            f"{list(image.shape)}"
        )
    if image.is_floating_point():
        return
    if image.dtype != torch.uint8:
        raise ValueError(f"predict: image must be uint8 or floating point, got {image.dtype}")
    if image.shape[0] != 3:
        raise ValueError(
            f"predict: image must have 3 channels where it is uint8, got {image.shape[0]}"
        )
    _check_sides(*image.shape[1:])


def _check_sides(height: int, width: int) -> None:
    if max(height, width) > _ELONGATED * min(height, width):
        raise ValueError(f"predict: image must be less elongated, got {height} x {width}")


def _channels(image: Photo | Tensor) -> int:
    return image.shape[0] if isinstance(image, Tensor) else 3


def batches_of(
    images: Sequence[Photo | Tensor],
    sizes: Sequence[int],
    crops: int,
    preparation: Preparation = Preparation(),
) -> list[Tensor]:
    """For each size a batch of all crops of all images, those of an image one after the other.

    Args:
        images: of :func:`loaded`
        sizes: of the square crops; equal sizes share their batch
        crops: of each image, one of CROPS

    Returns: (N * crops, C, size, size) each, channels_last, with the first image's device and
        dtype; float32 unless that is floating point.
    """
    made = {size: _batch(images, size, crops, preparation) for size in dict.fromkeys(sizes)}
    return [made[size] for size in sizes]


def _batch(
    images: Sequence[Photo | Tensor], size: int, crops: int, preparation: Preparation
) -> Tensor:
    shorter = round(size * 8 / 7) if preparation.resize is None else preparation.resize
    ready = [prepared(image, shorter, preparation) for image in images]
    first = ready[0]
    batch = torch.empty(
        (len(ready) * crops, first.shape[0], size, size),
        dtype=first.dtype,
        device=first.device,
        memory_format=torch.channels_last,
    )
    for index, image in enumerate(ready):
        _fill(batch[index * crops : (index + 1) * crops], image, size)
    return batch


def prepared(image: Photo | Tensor, resize: int, preparation: Preparation) -> Tensor:
    """One image, (C, H, W), resized and normalized unless it is floating point, which is both."""
    if isinstance(image, Tensor) and image.is_floating_point():
        return image
    height, width = image.shape[1:] if isinstance(image, Tensor) else (image.height, image.width)
    shorter = min(height, width)
    height, width = (resize * side // shorter for side in (height, width))
    if isinstance(image, Tensor):
        mode = preparation.interpolation
        resized = F.interpolate(image[None].float(), (height, width), mode=mode, antialias=True)
        pixels = resized[0].round().clamp(0, 255).permute(1, 2, 0)  # [H, W, C], as 8 bits would be
    else:
        from PIL.Image import Resampling

        photo = image.resize((width, height), Resampling[preparation.interpolation.upper()])
        data = torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8)
        pixels = data.view(height, width, 3).float()
    mean, std = (pixels.new_tensor(values) for values in (preparation.mean, preparation.std))
    return ((pixels / 255 - mean) / std).permute(2, 0, 1)


def _fill(crops: Tensor, image: Tensor, size: int) -> None:
    height, width = image.shape[1:]
    if min(height, width) < size:
        raise ValueError(
            f"predict: image must be at least {size} x {size} where it is floating point, got "
            f"{height} x {width}"
        )
    for crop, part in zip(crops, cut(image, len(crops), size), strict=True):
        crop.copy_(part)


def cut(image: Tensor, crops: int, size: int) -> list[Tensor]:
    """Views of the corners and the center, (..., size, size), then the mirror image's."""
    # While this is traced, sizes are tensors.
    bottom, right = (int(side) - size for side in image.shape[-2:])
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)] if crops > 1 else []
    places = [*corners, (round(bottom / 2), round(right / 2))]
    # Mirrored as a whole, as torchvision does: the center of an odd margin is then another one.
    sources = [image, image.flip(-1)] if crops > len(places) else [image]
    return [
        source[..., top : top + size, left : left + size]
        for source in sources
        for top, left in places
    ]
