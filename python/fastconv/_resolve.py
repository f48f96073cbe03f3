"""A network by what a user of the command calls it."""

from __future__ import annotations

import importlib
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import _torchvision, backend, models

SOURCES = ("fastconv", "torchvision", "timm")


class ResolveError(Exception):
    """A mistake of the user, with a message that says what to do."""


@dataclass(frozen=True)
class Network:
    """A network in eval mode.

    Args:
        name: as the user called it
        source: "fastconv", "torchvision", "timm" or "file"
        module: the network; its weights are random unless it comes from a file
    """

    name: str
    source: str
    module: nn.Module


def resolve(name: str, *, trust_file: bool = False) -> Network:
    """Builds or loads a network.

    Args:
        name: "fastconv:NAME", "torchvision:NAME", "timm:NAME", the path of a file that
            torch.save wrote a whole module to, or NAME alone: fastconv's, else torchvision's
        trust_file: allows files, because loading a module runs code that is in the file

    Raises:
        ResolveError: if there is no such network, or what it needs is not installed.
    """
    source, _, rest = name.partition(":")
    torch.manual_seed(0)
    if source in SOURCES and rest:
        build = {"fastconv": _fastconv, "torchvision": _from_torchvision, "timm": _from_timm}
        return Network(name, source, build[source](rest).eval())
    if name in models.list_models():
        return Network(name, "fastconv", _fastconv(name).eval())
    if Path(name).is_file():
        return Network(name, "file", _from_file(name, trust_file).eval())
    torchvision = _torchvision.import_torchvision()
    if torchvision is not None and name in _torchvision_names(torchvision):
        return Network(name, "torchvision", _from_torchvision(name).eval())
    raise ResolveError(
        f"NAME must be one of {', '.join(models.list_models())}, torchvision:NAME, timm:NAME, or "
        f"a file with a module, got {name}"
    )


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def randomize_norms(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Gives fresh BatchNorms statistics that differ from the defaults and fit the weights.

    With the defaults, signals would grow or vanish on their way through a deep network with random
    weights, and a wrong fold would not be seen.

    Args:
        shape: of one image, (C, H, W)
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    moments = [norm.momentum for norm in norms]
    # The last maps of a small image are single pixels: their variance needs more images.
    count = min(16, max(2, 2 * 224**2 // (shape[1] * shape[2])))
    random = torch.random.fork_rng(devices=[])
    with torch.no_grad(), random, backend.use_backend("reference"):
        torch.manual_seed(0)
        module.eval()  # all but the norms: a dropped branch would give other statistics
        for norm in norms:
            norm.train().momentum = 1.0
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.7, 1.4)
                nn.init.normal_(norm.bias, 0, 0.3)
        module(torch.randn(count, *shape))
        for norm, momentum in zip(norms, moments, strict=True):
            norm.eval().momentum = momentum
            if norm.running_var is not None:
                # A channel that is almost constant would enlarge every rounding error.
                norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()))


def _fastconv(name: str) -> nn.Module:
    try:
        return models.create_model(name)
    except ValueError as error:
        raise ResolveError(str(error).removeprefix("create_model: ")) from error


def _torchvision_names(torchvision: Any) -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _from_torchvision(name: str) -> nn.Module:
    torchvision = _torchvision.import_torchvision()
    if torchvision is None:
        raise ResolveError(f"torchvision:{name} needs torchvision, which is not installed")
    if name not in _torchvision_names(torchvision):
        raise ResolveError(f"torchvision has no classifier {name!r}; see torchvision.models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of how weights will be initialized
        module: nn.Module = torchvision.models.get_model(name, weights=None)
    return module


def _from_timm(name: str) -> nn.Module:
    _torchvision.import_torchvision()  # timm imports it, and this also copes with a broken one
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ResolveError(f"timm:{name} needs timm: pip install --no-deps timm") from error
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:5]) or "none similar"
        raise ResolveError(f"timm has no model {name!r}; it has: {near}")
    module: nn.Module = timm.create_model(name, pretrained=False)
    return module


def _from_file(path: str, trust_file: bool) -> nn.Module:
    if not trust_file:
        raise ResolveError(
            f"{path} is a file, and loading a module runs code that is in it: give --trust-file if "
            "you trust it"
        )
    try:
        module = torch.load(path, map_location="cpu", weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ImportError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ResolveError(f"{path} must hold a torch.nn.Module, got: {reason}") from error
    if not isinstance(module, nn.Module):
        raise ResolveError(
            f"{path} must hold a torch.nn.Module, as torch.save(model, path) writes it, got a "
            f"{type(module).__name__}"
        )
    return module
