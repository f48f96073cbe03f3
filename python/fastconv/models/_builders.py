"""Networks by name."""

import fnmatch
from collections.abc import Callable
from typing import Any

from torch import nn

from ._weights import Weights
from .mobilenet_v2 import mobilenet_v2

_BUILDERS: dict[str, Callable[..., nn.Module]] = {"mobilenet_v2": mobilenet_v2}


def list_models(pattern: str = "*") -> list[str]:
    """The names that :func:`create_model` knows, in alphabetical order.

    Example:
        >>> fastconv.models.list_models("mobilenet*")
        ['mobilenet_v2']
    """
    return sorted(fnmatch.filter(_BUILDERS, pattern))


def create_model(name: str, *, weights: Weights = None, **kwargs: Any) -> nn.Module:
    """Builds a network by name.

    Args:
        name: one of :func:`list_models`
        weights: as for the network's own function, e.g. :func:`mobilenet_v2`
        kwargs: for the network's class, such as num_classes

    Raises:
        ValueError: if there is no network of that name, or the weights do not fit.

    Example:
        >>> model = fastconv.models.create_model("mobilenet_v2", num_classes=10)
    """
    if name not in _BUILDERS:
        raise ValueError(
            f"create_model: name must be one of {', '.join(list_models())}, got {name!r}"
        )
    return _BUILDERS[name](weights=weights, **kwargs)
