"""The ``fastconv augment`` command: what augmentations make of a photo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import _commands


def add_parser(commands: Any) -> None:
    """Add ``fastconv augment`` to the subparsers of ``fastconv``."""
    parser = commands.add_parser("augment", help="draw what augmentations make of a photo")
    add = parser.add_argument
    add("photo", nargs="?", metavar="PHOTO", help="an image file (one of an installed package)")
    add("--plot", required=True, metavar="FILE", help="the picture to write: .png, .jpg, .svg")
    add(
        "--names",
        metavar="LIST",
        help="comma-separated, of crop,mirror,rotate,shear,warp,color,shift,pca (all)",
    )
    add("--strength", type=float, default=1.0, metavar="X", help="0 to 3 (1)")
    add("--draws", type=_commands._positive, default=5, help="pictures of each (5)")
    add("--size", type=_commands._positive, default=224, help="of the square pictures (224)")
    add("--seed", type=int, default=0)
    parser.set_defaults(run=lambda arguments: _commands._explaining("augment", _run, arguments))


def _run(arguments: argparse.Namespace) -> None:
    import torch

    from . import _plot, classify
    from ._images import loaded
    from ._resolve import ResolveError

    _plot.check(arguments.plot)
    try:
        from . import augment
    except ImportError as error:
        raise ResolveError(str(error)) from error

    def transform(*names: str) -> Any:
        return augment.compose(names, arguments.size, strength=arguments.strength)

    try:
        names = augment.NAMES if arguments.names is None else augment.parse(arguments.names)
        transforms = {name: transform(name) for name in names}
        if len(names) > 1:
            transforms["together"] = transform(*names)
    except ValueError as error:
        text = str(error).removeprefix("augment: ")
        raise ResolveError(f"--{text}") from error
    try:
        (photo,) = loaded([Path(arguments.photo or classify.demo_photos()[0])])
    except (classify.ClassifyError, FileNotFoundError, ImportError, ValueError) as error:
        raise ResolveError(str(error).partition(": ")[2]) from error
    if not names:
        raise ResolveError(f"--names must be of {', '.join(augment.NAMES)}, got none")
    center = transform()(photo)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        rows = [
            (name, [center, *(draw(photo) for _ in range(arguments.draws))])
            for name, draw in transforms.items()
        ]
    _plot.draw_images(rows, "photo", arguments.plot)
