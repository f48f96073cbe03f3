"""Data augmentation: random changes of a photo that leave what is to be seen on it.

All is :mod:`torchvision.transforms.v2` as far as that has it; :class:`PCAColor` is what it lacks.
It needs torchvision, so fastconv alone does not import it: ``from fastconv import augment``.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ._torchvision import import_torchvision

if import_torchvision() is None:
    raise ImportError("fastconv.augment needs torchvision: pip install --no-deps torchvision")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    v2: Any = importlib.import_module("torchvision.transforms.v2")
    tv_tensors: Any = importlib.import_module("torchvision.tv_tensors")

_MOST = 3.0  # of strength: a rotation by 45 degrees
# Of ImageNet's pixels in [0, 1], as https://github.com/facebookarchive/fb.resnet.torch has them.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def _is_image(value: Any) -> bool:
    """Whether a part of a sample is one; torchvision's masks and boxes are other tensors."""
    if isinstance(value, tv_tensors.TVTensor):
        return isinstance(value, tv_tensors.Image | tv_tensors.Video)
    return isinstance(value, Tensor | Image.Image)


def _pixels(op: str, image: Any) -> Tensor:
    """An image as a tensor (..., 3, H, W), uint8 or floating-point."""
    if isinstance(image, Image.Image):
        image = v2.functional.pil_to_tensor(image)
    if not isinstance(image, Tensor):
        raise TypeError(f"{op}: image must be a tensor or a PIL image, got {type(image).__name__}")
    if image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(f"{op}: image must have shape (..., 3, H, W), got {list(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"{op}: image must be uint8 or floating-point, got {image.dtype}")
    return image


class PCAColor(v2.Transform):
    """Shifts all pixels along the axes on which the colours of photos differ most.

    Adds ``eigenvectors @ (alpha * eigenvalues)`` to the red, green and blue of every pixel, with
    three numbers `alpha` from a normal distribution, drawn once for each image, also of a batch;
    the frames of a video share them. Both are of the covariance of pixels in [0, 1], whose first
    axis is brightness: the photo under more or less light, of another colour.

    Args:
        std: of `alpha`
        eigenvalues: 3 numbers; those of ImageNet by default
        eigenvectors: (3, 3), a column for each eigenvalue; those of ImageNet by default

    It takes what transforms of torchvision.transforms.v2 take. An image is a tensor
    (..., 3, H, W), uint8 in 0..255 or floating-point in [0, 1], or a PIL image of three channels;
    the result has its type, dtype and range.

    Raises:
        TypeError, ValueError: for arguments or images that are not such.

    Example:
        >>> augment.PCAColor()(torch.rand(3, 224, 224)).shape
        torch.Size([3, 224, 224])

    See "ImageNet Classification with Deep Convolutional Neural Networks", section 4.1
    (https://doi.org/10.1145/3065386).
    """

    _transformed_types = (_is_image,)

    def __init__(
        self,
        std: float = 0.1,
        eigenvalues: Sequence[float] | Tensor = _EIGENVALUES,
        eigenvectors: Sequence[Sequence[float]] | Tensor = _EIGENVECTORS,
    ) -> None:
        super().__init__()
        if not 0 <= std < math.inf:
            raise ValueError(f"PCAColor: std must be a number of at least 0, got {std}")
        given = (("eigenvalues", eigenvalues, (3,)), ("eigenvectors", eigenvectors, (3, 3)))
        for name, values, shape in given:
            tensor = torch.as_tensor(values, dtype=torch.float32)
            if tensor.shape != shape:
                raise ValueError(
                    f"PCAColor: {name} must have shape {shape}, got {list(tensor.shape)}"
                )
            self.register_buffer(name, tensor)
        self.std = std

    @classmethod
    def fit(cls, images: Iterable[Any], std: float = 0.1) -> PCAColor:
        """Computes the axes from images of one's own, which are read one by one.

        Args:
            images: tensors (..., 3, H, W) or PIL images, as in a call
            std: of `alpha`

        Returns:
            a PCAColor with the eigenvalues of the pixels' covariance, the largest first

        Raises:
            TypeError, ValueError: if there are no images, or one is not such.

        Example:
            >>> augment.PCAColor.fit(torch.rand(8, 3, 32, 32)).eigenvectors.shape
            torch.Size([3, 3])
        """
        count = 0
        total = torch.zeros(3, dtype=torch.float64)
        products = torch.zeros(3, 3, dtype=torch.float64)
        for image in images:
            pixels = _pixels("PCAColor.fit", image)
            scale = 255.0 if pixels.dtype == torch.uint8 else 1.0
            rows = pixels.movedim(-3, 0).flatten(1).to("cpu", torch.float64) / scale  # [3, pixels]
            count += rows.shape[1]
            total += rows.sum(1)
            products += rows @ rows.T
        if count == 0:
            raise ValueError("PCAColor.fit: images must have pixels, got none")
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - mean.outer(mean))
        return cls(std, values.flip(0).clamp(min=0), vectors.flip(1))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the shifts, (..., 3); called by torchvision."""
        batch: tuple[int, ...] = ()
        for image in flat_inputs[:1]:
            if not isinstance(image, tv_tensors.Video):
                batch = tuple(_pixels("PCAColor", image).shape[:-3])
        # On the CPU for an image on any device, so that a seed means the same.
        alpha = self.std * torch.randn(*batch, 3, device="cpu")
        return {"shift": (alpha * self.eigenvalues.cpu()) @ self.eigenvectors.cpu().T}

    def transform(self, image: Any, params: dict[str, Any]) -> Any:
        """Shifts one image; called by torchvision."""
        pixels = _pixels("PCAColor", image)
        shift = params["shift"][..., None, None].to(pixels.device)
        if pixels.dtype == torch.uint8:
            output = (pixels + 255 * shift).round_().clamp_(0, 255).to(torch.uint8)
        else:
            output = (pixels + shift.to(pixels.dtype)).clamp_(0, 1)
        if isinstance(image, Image.Image):
            return v2.functional.to_pil_image(output, image.mode)
        return tv_tensors.wrap(output, like=image) if type(image) is not Tensor else output


class _Warp(v2.ElasticTransform):
    """torchvision's, its blur in two passes: for waves as wide as here in 1/50 of the time."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.functional.get_size(flat_inputs[0])
        moves = []
        for alpha, sigma, side in zip(self.alpha, self.sigma, (width, height), strict=True):
            move = torch.rand(1, 1, height, width) * 2 - 1
            taps = int(8 * sigma + 1) | 1
            for kernel in ([taps, 1], [1, taps]):
                move = v2.functional.gaussian_blur(move, kernel, [sigma, sigma])
            moves.append(move * alpha / side)
        return {"displacement": torch.concat(moves, 1).permute(0, 2, 3, 1)}


def _crop(size: int, strength: float) -> list[Any]:
    ratio = 0.75**strength
    return [v2.RandomResizedCrop(size, (0.4**strength, 1.0), (ratio, 1 / ratio))]


def _mirror(size: int, strength: float) -> list[Any]:
    return [v2.RandomHorizontalFlip()]


def _rotate(size: int, strength: float) -> list[Any]:
    angle = 15 * strength
    beyond = (math.sin(math.radians(angle)) + math.cos(math.radians(angle)) - 1) / 2
    return _inside(v2.RandomRotation(angle, v2.InterpolationMode.BILINEAR), size, beyond)


def _shear(size: int, strength: float) -> list[Any]:
    angle = 10 * strength
    slope = math.tan(math.radians(angle))
    shear = v2.RandomAffine(
        0, shear=(-angle, angle, -angle, angle), interpolation=v2.InterpolationMode.BILINEAR
    )
    return _inside(shear, size, (slope + slope**2) / 2)


def _warp(size: int, strength: float) -> list[Any]:
    # Blurred noise of variance 1/3 has the standard deviation 1 / (sigma sqrt(12 pi)), and half of
    # alpha is its unit in pixels: here 1.2 % of the side.
    sigma, std = size / 12, 0.012 * strength * size
    alpha = 2 * std * sigma * math.sqrt(12 * math.pi)
    return _inside(_Warp(alpha, sigma), size, 5 * std / size)


def _color(size: int, strength: float) -> list[Any]:
    some = 0.25 * strength
    return [v2.ColorJitter(brightness=some, contrast=some, saturation=some, hue=some / 8)]


def _shift(size: int, strength: float) -> list[Any]:
    return [PCAColor(0.05 * strength, torch.ones(3), torch.eye(3))]


def _pca(size: int, strength: float) -> list[Any]:
    return [PCAColor(0.3 * strength)]


def _inside(step: Any, size: int, beyond: float) -> list[Any]:
    """A step that moves an image's border inwards, by a part of its size: nobody sees it, because
    the image goes on mirrored for long enough."""
    return [
        v2.Pad(math.ceil(beyond * size) + 2, padding_mode="reflect"),
        step,
        v2.CenterCrop(size),
    ]


# In the order in which they are applied.
_STEPS: dict[str, Callable[[int, float], list[Any]]] = {
    "crop": _crop,
    "mirror": _mirror,
    "rotate": _rotate,
    "shear": _shear,
    "warp": _warp,
    "color": _color,
    "shift": _shift,
    "pca": _pca,
}
NAMES = tuple(_STEPS)


def parse(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names in the order in which they are applied, each once.

    Args:
        names: of ``augment.NAMES``; a string has commas between them

    Raises:
        ValueError: if one is not of these.

    Example:
        >>> augment.parse("mirror,crop")
        ('crop', 'mirror')
    """
    given = [name for name in names.split(",") if name] if isinstance(names, str) else list(names)
    for name in given:
        if name not in NAMES:
            raise ValueError(f"augment: names must be of {', '.join(NAMES)}, got {name}")
    return tuple(name for name in NAMES if name in given)


def compose(names: str | Iterable[str], size: int, *, strength: float = 1.0) -> Any:
    """A transform of torchvision.transforms.v2 that makes a random square picture of a photo.

    ======  ======================================================================================
    crop    a part of 40 to 100 % of the area, up to a third wider or higher (RandomResizedCrop);
            without it, the center
    mirror  left and right, every second time (RandomHorizontalFlip)
    rotate  by up to 15 degrees (RandomRotation)
    shear   by up to 10 degrees, along both axes (RandomAffine)
    warp    pixels move, neighbours alike, by 1.2 % of the side (ElasticTransform)
    color   brightness, contrast and saturation by up to 25 %, hue by 3 % (ColorJitter)
    shift   red, green and blue, each by a number of standard deviation 0.05 (PCAColor)
    pca     along the axes on which colours differ most, as of a lamp: alpha of standard deviation
            0.3 (PCAColor); the paper's 0.1 moves a pixel by 3 of 255, which nobody sees
    ======  ======================================================================================

    They are applied in this order. What is rotated, sheared or warped goes on mirrored at its
    border, so that no corner is empty.

    Args:
        names: which, as :func:`parse` takes them; none for the center of the photo
        size: of the picture, at least 16
        strength: what the numbers above are multiplied by, 0 to 3; crop takes the power

    Returns:
        a transform that takes uint8 or float images (..., 3, H, W) and PIL images of any size, and
        gives (..., 3, size, size) or a PIL image, of the same dtype and range. Its random numbers
        are PyTorch's: a DataLoader gives each worker process its own.

    Raises:
        ValueError: for another name, size or strength.

    Example:
        >>> transform = augment.compose("crop,mirror,pca", 224)
        >>> transform(torch.rand(3, 301, 400)).shape
        torch.Size([3, 224, 224])
    """
    chosen = parse(names)
    if not isinstance(size, int) or size < 16:
        raise ValueError(f"augment: size must be an int of at least 16, got {size!r}")
    if not 0 <= strength <= _MOST:
        raise ValueError(f"augment: strength must be between 0 and {_MOST:g}, got {strength}")
    steps = [] if "crop" in chosen else [v2.Resize(size * 8 // 7), v2.CenterCrop(size)]
    for name in chosen:
        steps += _STEPS[name](size, strength)
    return v2.Compose(steps)
