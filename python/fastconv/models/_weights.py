"""Loads published and own weights, strictly."""

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

StateDict = Mapping[str, Tensor]
Weights = Any  # a path, a state_dict, a published name, torchvision's enum, or None
Model = TypeVar("Model", bound=nn.Module)


def load_weights(model: Model, weights: str | os.PathLike[str] | StateDict) -> Model:
    """Loads weights that fit the model exactly; its parameters stay the same objects.

    Args:
        model: any module
        weights: a state_dict, or the path of a file that torch.save wrote one to. The file is read
            with ``weights_only=True``: it cannot run code.

    Returns:
        the model

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming every key that is missing, unexpected or of another shape; the model is
            then unchanged.

    Example:
        >>> model = fastconv.models.load_weights(fastconv.models.mobilenet_v2(), "mobilenet_v2.pth")
    """
    source = "state_dict"
    if not isinstance(weights, Mapping):
        source = os.fspath(weights)
        weights = torch.load(source, map_location="cpu", weights_only=True)
        if not isinstance(weights, Mapping):
            raise ValueError(f"load_weights: {source} must be a state_dict, got {type(weights)}")
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is unexpected" for key in weights if key not in own]
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            problems.append(f"{key} is a {type(value).__name__}, not a tensor")
        elif key in own and own[key].shape != value.shape:
            wanted, got = list(own[key].shape), list(value.shape)
            problems.append(f"{key} must have shape {wanted}, got {got}")
    if problems:
        name = type(model).__name__
        raise ValueError(f"load_weights: {source} must fit {name}, got: " + "; ".join(problems))
    model.load_state_dict(weights)
    return model


def load_published(
    model: Model, weights: Weights, published: Mapping[str, str], progress: bool
) -> Model:
    """Loads what a builder was given as `weights`: a name of `published` (name -> address),
    torchvision's enum, a path or a state_dict."""
    address = getattr(weights, "url", None)
    if isinstance(weights, str):
        address = published.get(weights.rpartition(".")[2], None)
        if address is None and not os.path.exists(weights):
            raise ValueError(
                f"{type(model).__name__}: weights must be a file or one of "
                f"{', '.join(published)}, got {weights!r}"
            )
    if address is not None:
        weights = torch.hub.load_state_dict_from_url(
            address, progress=progress, check_hash=True, map_location="cpu", weights_only=True
        )
    return load_weights(model, weights)
