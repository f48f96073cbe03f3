"""Loads published and own weights, strictly."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import _dialects

StateDict = Mapping[str, Tensor]
Weights = Any  # a path, a state_dict, a published name, torchvision's enum, or None
Model = TypeVar("Model", bound=nn.Module)

_WRAPPINGS = ("state_dict", "model")  # what training scripts put a state_dict into
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def load_weights(
    model: Model, weights: str | os.PathLike[str] | StateDict, source: str = "auto"
) -> Model:
    """Loads weights that fit the model exactly; its parameters stay the same objects.

    Keys that fit are loaded as they are. If the model has torchvision's names and the weights
    timm's, or the reverse, layers are matched by their place in the network; all shapes must agree.
    A state_dict inside {"state_dict": ...} or {"model": ...}, the prefixes "module." and
    "_orig_mod.", and old files without num_batches_tracked are understood. A network that was built
    without its auxiliary heads leaves out those of the weights, which must fit all the same.

    Args:
        model: any module
        weights: a state_dict, or the path of a file that torch.save wrote one to. The file is read
            with ``weights_only=True``: it cannot run code. A file whose name ends in .safetensors
            is read by the package of that name.
        source: whose names the weights have: "torchvision", "timm", or "auto" to find out

    A state_dict does not tell what its network computes beside its weights. timm's ``tf_`` networks
    have a BatchNorm eps of 1e-3 and TensorFlow's padding: their weights load into a network without
    these, but its results are others.

    Returns:
        the model

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the file needs a package that is not installed.
        ValueError: naming every key that is missing, unexpected or of another shape; the model is
            then unchanged.

    Example:
        >>> model = fastconv.models.load_weights(fastconv.models.mobilenet_v2(), "mobilenet_v2.pth")
    """
    if source not in _dialects.SOURCES:
        names = ", ".join(_dialects.SOURCES)
        raise ValueError(f"load_weights: source must be one of {names}, got {source!r}")
    where = "state_dict" if isinstance(weights, Mapping) else os.fspath(weights)
    given = _unwrapped(weights if isinstance(weights, Mapping) else _read(where))
    if not isinstance(given, Mapping):
        raise ValueError(f"load_weights: {where} must be a state_dict, got {type(given)}")
    if not all(isinstance(key, str) for key in given):
        raise ValueError(f"load_weights: {where} must have strings as keys, got {list(given)[:3]}")
    state, problems = _fitted(model, given, source)
    if problems:
        name = type(model).__name__
        raise ValueError(f"load_weights: {where} must fit {name}, got: " + "; ".join(problems))
    model.load_state_dict(state)
    return model


def _read(path: str) -> Any:
    if Path(path).suffix.lower() != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        import safetensors
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"load_weights: reading {path} needs safetensors: pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"load_weights: {path} must be a safetensors file, got: {error}") from None


def _unwrapped(value: Any) -> Any:
    while isinstance(value, Mapping):
        inside = [value[key] for key in _WRAPPINGS if isinstance(value.get(key), Mapping)]
        if not inside:
            break
        value = inside[0]
    return value


def _fitted(model: nn.Module, given: Mapping[str, Any], source: str) -> tuple[StateDict, list[str]]:
    """The weights with the model's own keys, and all that does not fit."""
    model_state = model.state_dict()
    prefix, own = _without_prefix(model_state)
    weights = _without_prefix(given)[1]
    heads = _absent_heads(model, weights)
    own |= heads
    problems = [
        f"{key} is a {type(value).__name__}, not a tensor"
        for key, value in weights.items()
        if not isinstance(value, Tensor)
    ]
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    named, target = _dialects.dialect_of(weights), _dialects.dialect_of(own)
    if _needed(own) <= weights.keys() <= own.keys():
        named = target
    elif source not in ("auto", named):
        return {}, [f"names that are not {source}'s, such as {next(iter(weights), 'none at all')}"]
    if named is None or target is None or named == target:
        problems += _differences(own, weights)
        state = tensors
    else:
        state, more = _dialects.translate(tensors, named, own, target)
        problems += more
    if problems:
        return {}, problems
    state = {key: value for key, value in state.items() if key not in heads}
    counters = {key: own[key] for key in own.keys() - _needed(own) - state.keys() - heads.keys()}
    if prefix == "" and state.keys() == given.keys():
        return {**given, **counters} if counters else given, []
    return {prefix + key: value for key, value in (state | counters).items()}, []


def _absent_heads(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the weights must have for the heads that they have and the model was built without."""
    make = getattr(model, "_absent_heads", None)
    if make is None:
        return {}
    with torch.device("meta"):
        heads: dict[str, nn.Module] = make()
    return {
        f"{name}.{key}": value
        for name, head in heads.items()
        if any(key.startswith(f"{name}.") for key in weights)
        for key, value in head.state_dict().items()
    }


def _needed(own: StateDict) -> set[str]:
    """The keys that weights must have; PyTorch before 0.4.1 did not count batches."""
    return {key for key in own if key.rpartition(".")[2] != _dialects.COUNTER}


def _differences(own: StateDict, weights: Mapping[str, Any]) -> list[str]:
    missing = _needed(own) - weights.keys()
    problems = [f"{key} is missing" for key in own if key in missing]
    problems += [f"{key} is unexpected" for key in weights if key not in own]
    for key, value in weights.items():
        if isinstance(value, Tensor) and key in own and own[key].shape != value.shape:
            wanted, got = list(own[key].shape), list(value.shape)
            problems.append(f"{key} must have shape {wanted}, got {got}")
    return problems


def _without_prefix(state: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What wrappers put before all keys, and the state_dict without it."""
    prefix, rest = "", dict(state)
    while found := [p for p in _PREFIXES if rest and all(key.startswith(p) for key in rest)]:
        prefix += found[0]
        rest = {key.removeprefix(found[0]): value for key, value in rest.items()}
    return prefix, rest


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
