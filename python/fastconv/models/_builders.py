"""Networks by name."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ._features import FeatureNetwork
from ._weights import Weights
from .alexnet import alexnet
from .efficientnet import (
    efficientnet_b0,
    efficientnet_b1,
    efficientnet_b2,
    efficientnet_b3,
    efficientnet_b4,
    efficientnet_b5,
    efficientnet_b6,
    efficientnet_b7,
)
from .efficientnet_v2 import efficientnet_v2_l, efficientnet_v2_m, efficientnet_v2_s
from .googlenet import googlenet
from .inception_v3 import inception_v3
from .lenet import lenet5
from .mobilenet_v1 import mobilenet_v1
from .mobilenet_v2 import mobilenet_v2
from .mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from .nin import nin
from .resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from .vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (
        mobilenet_v1,
        mobilenet_v2,
        mobilenet_v3_large,
        mobilenet_v3_small,
        efficientnet_b0,
        efficientnet_b1,
        efficientnet_b2,
        efficientnet_b3,
        efficientnet_b4,
        efficientnet_b5,
        efficientnet_b6,
        efficientnet_b7,
        efficientnet_v2_s,
        efficientnet_v2_m,
        efficientnet_v2_l,
        lenet5,
        alexnet,
        nin,
        vgg11,
        vgg11_bn,
        vgg13,
        vgg13_bn,
        vgg16,
        vgg16_bn,
        vgg19,
        vgg19_bn,
        googlenet,
        inception_v3,
        resnet18,
        resnet34,
        resnet50,
        resnet101,
        resnet152,
    )
}


# Of the images that torchvision's weights are evaluated on; 224 for the others.
_SIZES = {
    "efficientnet_b1": 240,
    "efficientnet_b2": 288,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
    "efficientnet_b5": 456,
    "efficientnet_b6": 528,
    "efficientnet_b7": 600,
    "efficientnet_v2_s": 384,
    "efficientnet_v2_m": 480,
    "efficientnet_v2_l": 480,
    "inception_v3": 299,
    "lenet5": 32,
}


def list_models(pattern: str = "*") -> list[str]:
    """The names that :func:`create_model` knows, in alphabetical order.

    Example:
        >>> fastconv.models.list_models("mobilenet*")
        ['mobilenet_v1', 'mobilenet_v2', 'mobilenet_v3_large', 'mobilenet_v3_small']
    """
    return sorted(fnmatch.filter(_BUILDERS, pattern))


def image_size(name: str) -> int:
    """The height and width of the images that a network is made for; torchvision's crops.

    Args:
        name: one of :func:`list_models`

    Raises:
        ValueError: if there is no network of that name.

    Example:
        >>> fastconv.models.image_size("inception_v3")
        299
    """
    _check_name("image_size", name)
    return _SIZES.get(name, 224)


def _check_name(who: str, name: str) -> None:
    if name not in _BUILDERS:
        raise ValueError(f"{who}: name must be one of {', '.join(list_models())}, got {name!r}")


def create_model(
    name: str,
    *,
    weights: Weights = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Builds a network by name.

    Args:
        name: one of :func:`list_models`
        weights: as for the network's own function, e.g. :func:`mobilenet_v2`
        features_only: whether to leave the classifier out and return a list of the feature maps
            with 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's size, which MobileNets, EfficientNets,
            ResNets and VGG have; see :class:`FeatureNetwork`
        out_indices: which of these maps, such as (2, 3, 4); None for all
        kwargs: for the network's class, such as num_classes or in_chans

    Raises:
        ValueError: if there is no network of that name, no feature maps or not that one, or the
            weights do not fit.

    Example:
        >>> model = fastconv.models.create_model("mobilenet_v2", num_classes=10)
    """
    _check_name("create_model", name)
    if out_indices is not None and not features_only:
        raise ValueError(
            f"create_model: out_indices must be left out without features_only, got {out_indices!r}"
        )
    network = _BUILDERS[name](weights=weights, **kwargs)
    return FeatureNetwork(network, out_indices) if features_only else network
