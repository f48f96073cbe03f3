"""The ``fastconv classify`` command."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import _library, _timing, _torchvision
from .._images import CROPS, batches_of, loaded
from .._table import print_table
from .._timing import Timing
from ..predict import average
from .networks import OURS, Networks, contenders, load_networks
from .sources import ClassifyError, demo_photos, find_weights

_DEFAULT = "mobilenet_v2"


@dataclass(frozen=True)
class Prediction:
    """One photo's probabilities, (classes,).

    Args:
        fastconv: by fastconv, all crops in one batch
        alone: by fastconv, each crop on each network alone
        eager: by PyTorch
    """

    photo: Path
    fastconv: Tensor
    alone: Tensor
    eager: Tensor

    @property
    def difference(self) -> float:
        """The largest difference from PyTorch's, relative to the largest probability."""
        return _difference(self.fastconv, self.eager)

    @property
    def difference_alone(self) -> float:
        """The same from the average of what was computed one by one."""
        return _difference(self.fastconv, self.alone)

    @property
    def same_top(self) -> bool:
        return int(self.fastconv.argmax()) == int(self.eager.argmax())


def _difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.max())


def _predict(networks: Networks, path: Path, batches: Sequence[Tensor]) -> Prediction:
    crops = len(batches[0])
    alone = [
        average(networks.ours, [batch[index : index + 1] for batch in batches], 1)
        for index in range(crops)
    ]
    return Prediction(
        path,
        average(networks.ours, batches, crops)[0],
        torch.stack(alone).mean(0)[0],
        average(networks.eager, batches, crops)[0],
    )


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """What :func:`fastconv.predict` refuses is a mistake of the user."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        raise ClassifyError(f"classify: {str(error).removeprefix('predict: ')}") from error


def top_classes(probabilities: Tensor, count: int = 5) -> list[tuple[int, float]]:
    """The likeliest of (classes,) probabilities, with their classes."""
    values, indices = probabilities.topk(min(count, probabilities.numel()))
    return list(zip(indices.tolist(), values.tolist(), strict=True))


def _show_prediction(prediction: Prediction, eager_name: str, names: Sequence[str]) -> None:
    def label(index: int) -> str:
        return names[index] if len(names) == len(prediction.fastconv) else f"class {index}"

    rows = []
    pairs = zip(top_classes(prediction.fastconv), top_classes(prediction.eager), strict=True)
    for rank, ((left, left_p), (right, right_p)) in enumerate(pairs, 1):
        rows.append([str(rank), label(left), f"{left_p:.2%}", label(right), f"{right_p:.2%}"])
    header = ["<#", "<fastconv", ">", f"<{eager_name}", ">"]
    print_table(prediction.photo.name, header, rows)
    same = "same top 1" if prediction.same_top else "DIFFERENT TOP 1"
    print(f"  {same}; probabilities differ by {prediction.difference:.1e} of the largest")


def _show_agreement(predictions: Sequence[Prediction], eager_name: str, runs: int) -> None:
    same = sum(prediction.same_top for prediction in predictions)
    difference = max(prediction.difference for prediction in predictions)
    print(
        f"\nfastconv and {eager_name} agree on the top 1 of {same} of {len(predictions)} photos; "
        f"probabilities differ by at most {difference:.1e} of the largest"
    )
    if runs > 1:
        alone = max(prediction.difference_alone for prediction in predictions)
        print(f"and from the average of {runs} runs one by one by at most {alone:.1e}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _show_times(timings: dict[str, Timing], reasons: Sequence[str], title: str) -> None:
    ours = timings[OURS].median
    rows = [
        [
            name,
            f"{timing.median * 1e3:.2f}",
            f"{timing.iqr * 1e3:.2f}",
            f"{timing.median / ours:.2f}x",
        ]
        for name, timing in sorted(timings.items(), key=lambda item: item[1].median)
    ]
    print_table(title, ["<runs on", ">ms", ">IQR", ">of fastconv's time"], rows)
    for reason in reasons:
        print(f"  not compared: {reason}")
    if not _library.is_loaded():
        print("  fastconv ran on its reference: the compiled library is missing (fastconv info)")


def classify(
    photos: Sequence[Path],
    networks: Networks,
    *,
    crops: int = 1,
    threads: int = 1,
    rounds: int = 10,
) -> list[Prediction]:
    """Classify photos on fastconv and eager PyTorch, print both, the agreement and the times."""
    with _explaining():
        prepared = [batches_of(loaded([photo]), networks.sizes, crops) for photo in photos]
    names = _torchvision.imagenet_categories()
    eager_name, count = networks.eager_name, len(networks.ours)
    predictions = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for path, batches in zip(photos, prepared, strict=True):
            with _explaining():
                prediction = _predict(networks, path, batches)
            predictions.append(prediction)
            _show_prediction(prediction, eager_name, names)
        found, reasons = contenders(networks, photos[0], prepared[0])
        with torch.inference_mode():
            timings = _timing.interleave(found, rounds=rounds)
    finally:
        torch.set_num_threads(before)
    _show_agreement(predictions, eager_name, crops * count)
    work = ["One photo", *[_count(n, what) for n, what in ((crops, "crop"), (count, "network"))]]
    title = f"{', '.join(work)}, {_count(threads, 'thread')}, median of {rounds} interleaved runs"
    _show_times(timings, reasons, title)
    return predictions


def add_parser(commands: Any) -> None:
    """Add the subcommand to the subparsers of ``fastconv``."""
    parser = commands.add_parser(
        "classify",
        help="classify photos, and compare with PyTorch",
        description="Classifies photos. With several networks, or several crops of each photo, it "
        "shows the mean of their probabilities.",
    )
    add = parser.add_argument
    add("photos", nargs="*", metavar="PHOTO", help="image files")
    add("--demo", action="store_true", help="photos of installed packages")
    add(
        "--model",
        action="append",
        metavar="NAME",
        help=f"one of fastconv.models ({_DEFAULT}); again for each network of an ensemble",
    )
    add(
        "--weights",
        action="append",
        metavar="FILE",
        help="checkpoint of the network; once for each --model, in the same order",
    )
    add(
        "--crops",
        type=int,
        choices=CROPS,
        default=1,
        help="of each photo: the center, with the corners, and these mirrored (1)",
    )
    add("--threads", type=int, default=1, help="threads to compute with (1)")
    add("--rounds", type=int, default=10, help="values to take medians of (10)")
    parser.set_defaults(run=run)


def _networks(arguments: argparse.Namespace) -> Networks:
    names = arguments.model or [_DEFAULT]
    files = arguments.weights or [None] * names.count(_DEFAULT)
    if len(files) != len(names):
        raise ClassifyError(
            f"classify: --weights must be given once for each --model, got {len(files)} for "
            f"{', '.join(names)}"
        )
    return load_networks(names, [find_weights(file) for file in files])


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
        predictions = classify(
            photos,
            _networks(arguments),
            crops=arguments.crops,
            threads=arguments.threads,
            rounds=arguments.rounds,
        )
    except ClassifyError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if all(p.same_top for p in predictions) else 1
