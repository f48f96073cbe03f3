"""The networks that classify, on fastconv and on PyTorch, and the ways to run them."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _runtimes, _torchvision, models
from .._images import batches_of, loaded
from .._runtimes import UnavailableError
from .._timing import Contender
from ..finetune.command import BUILT_WITH
from ..predict import average
from .sources import ClassifyError

OURS = "fastconv"
ALONE = "fastconv, one by one"


@dataclass(frozen=True)
class Networks:
    """Networks in eval mode, whose probabilities are averaged.

    Args:
        ours: fastconv's
        eager: the same by torchvision, or on plain PyTorch functions
        sizes: of their square images
        reason: why some of `eager` are not torchvision's; "" if all are
    """

    ours: tuple[nn.Module, ...]
    eager: tuple[nn.Module, ...]
    sizes: tuple[int, ...]
    reason: str

    @property
    def eager_name(self) -> str:
        return "reference" if self.reason else "PyTorch"


def load_networks(names: Sequence[str], weights: Sequence[Path]) -> Networks:
    """Networks by name with the weights of files.

    Raises:
        ClassifyError: if there is no such network, or a file does not fit.
    """
    ours = tuple(_load(name, path) for name, path in zip(names, weights, strict=True))
    twins = [_torchvision_twin(name, model) for name, model in zip(names, ours, strict=True)]
    eager = [
        _Reference(model) if isinstance(twin, str) else twin
        for model, twin in zip(ours, twins, strict=True)
    ]
    reasons = [twin for twin in twins if isinstance(twin, str)]
    sizes = tuple(models.image_size(name) for name in names)
    return Networks(ours, tuple(eager), sizes, reasons[0] if reasons else "")


def _load(name: str, weights: Path) -> nn.Module:
    if name not in models.list_models():
        known = ", ".join(models.list_models())
        raise ClassifyError(f"classify: --model must be one of {known}, got {name}")
    try:
        model = models.create_model(name, weights=str(weights), **BUILT_WITH.get(name, {}))
    except (
        *(ImportError, RuntimeError, ValueError, KeyError, OSError),
        *(EOFError, pickle.UnpicklingError),
    ) as error:
        raise ClassifyError(f"classify: --weights must fit {name}: {error}") from error
    return model.eval()


def _torchvision_twin(name: str, ours: nn.Module) -> nn.Module | str:
    """torchvision's network with the same weights, or why there is none."""
    torchvision = _torchvision.import_torchvision()
    if torchvision is None:
        return "torchvision is not installed"
    if name not in torchvision.models.list_models(module=torchvision.models):
        return f"torchvision has no {name}"
    arguments: dict[str, Any] = {}
    if hasattr(ours, "transform_input"):
        own = {"transform_input": ours.transform_input, "init_weights": False}
        arguments = BUILT_WITH[name] | own
    eager: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    eager.load_state_dict(ours.state_dict())
    return eager.eval()


class _Reference(nn.Module):
    """fastconv's network on plain PyTorch functions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> Tensor:
        from .. import use_backend

        with use_backend("reference"):
            output: Tensor = self.model(input)
        return output


def contenders(
    networks: Networks, photo: Path, batches: Sequence[Tensor]
) -> tuple[list[Contender], list[str]]:
    """Everything that can be timed here, and why the rest cannot.

    Args:
        networks: each contender runs all of them
        photo: its file
        batches: its crops, one batch for each network, (crops, 3, size, size)
    """
    threads = torch.get_num_threads()
    eager_name = networks.eager_name
    contiguous = torch.contiguous_format

    def of_each(
        name: str, make: Callable[[nn.Module, Tensor], Contender], models: Sequence[nn.Module]
    ) -> Contender:
        parts = [make(model, batch) for model, batch in zip(models, batches, strict=True)]
        return Contender(
            name,
            lambda: [part.call() for part in parts],
            lambda: [part.result() for part in parts],
        )

    found = _ours(networks, photo, batches)
    found.append(of_each(f"{eager_name} channels_last", _runtimes.eager, networks.eager))
    if networks.reason:
        return found, [networks.reason]
    found.append(
        of_each(eager_name, lambda m, b: _runtimes.eager(m, b, contiguous), networks.eager)
    )
    export = functools.cache(_runtimes.export_onnx)
    runtimes = {"ONNX Runtime": _runtimes.onnxruntime, "OpenVINO": _runtimes.openvino}
    reasons = []
    for name, runtime in runtimes.items():

        def make(model: nn.Module, batch: Tensor, runtime: Any = runtime) -> Contender:
            return runtime(export(model, batch), batch, threads)

        try:
            found.append(of_each(name, make, networks.eager))
        except UnavailableError as error:
            reasons.append(f"{name}: {error}")
    return found, reasons


def _ours(networks: Networks, photo: Path, batches: Sequence[Tensor]) -> list[Contender]:
    """fastconv; for an average also each network on each crop alone, and both with the reading."""
    crops = len(batches[0])
    pairs = list(zip(networks.ours, batches, strict=True))

    def together() -> object:
        return [model(batch) for model, batch in pairs]

    def alone() -> object:
        return [model(crop) for model, batch in pairs for crop in batch.split(1)]

    def read_together() -> object:
        return average(networks.ours, batches_of(loaded([photo]), networks.sizes, crops), crops)

    def read_alone() -> object:
        means = []
        for model, size in zip(networks.ours, networks.sizes, strict=True):
            (batch,) = batches_of(loaded([photo]), [size], crops)
            means += [average([model], [crop], 1) for crop in batch.split(1)]
        return torch.stack(means).mean(0)

    calls = {OURS: together}
    if len(pairs) * crops > 1:
        reading = ", with reading the photo"
        calls |= {ALONE: alone, OURS + reading: read_together, ALONE + reading: read_alone}
    return [Contender(name, call, call) for name, call in calls.items()]
