"""Activations: one code per name (the same as csrc/activation.h) and the plain PyTorch function."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CODES = {
    "none": 0,
    "relu": 1,
    "relu6": 2,
    "hardswish": 3,
    "silu": 4,
    "sigmoid": 5,
    "hardsigmoid": 6,
    "tanh": 7,
    "gelu": 8,
}
NAMES = tuple(CODES)
GATES = ("sigmoid", "hardsigmoid")

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "sigmoid": F.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}

_ATEN = torch.ops.aten
_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda g, x: g,
    "relu": lambda g, x: _ATEN.threshold_backward(g, x, 0),
    "relu6": lambda g, x: _ATEN.hardtanh_backward(g, x, 0.0, 6.0),
    "hardswish": lambda g, x: _ATEN.hardswish_backward(g, x),
    "silu": lambda g, x: _ATEN.silu_backward(g, x),
    "sigmoid": lambda g, x: _ATEN.sigmoid_backward(g, torch.sigmoid(x)),
    "hardsigmoid": lambda g, x: _ATEN.hardsigmoid_backward(g, x),
    "tanh": lambda g, x: _ATEN.tanh_backward(g, torch.tanh(x)),
    "gelu": lambda g, x: _ATEN.gelu_backward(g, x),
}

# Exact types only: a subclass may compute something else.
_MODULES: dict[type[nn.Module], str] = {
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
}


def module_of(activation: str) -> nn.Module:
    """A module of torch.nn that computes an activation."""
    return next(kind for kind, name in _MODULES.items() if name == activation)()


# The same in timm, where it has classes of its own.
_TIMM_MODULES = {
    "Swish": "silu",
    "Sigmoid": "sigmoid",
    "HardSwish": "hardswish",
    "HardSigmoid": "hardsigmoid",
    "Tanh": "tanh",
    "GELU": "gelu",
}


def activate(x: Tensor, activation: str | int) -> Tensor:
    """Applies an activation, given by name or by code, in plain PyTorch."""
    return _FUNCTIONS[activation if isinstance(activation, str) else NAMES[activation]](x)


def activate_backward(grad: Tensor, x: Tensor, activation: str | int) -> Tensor:
    """The gradient of x from that of :func:`activate`."""
    return _BACKWARD[activation if isinstance(activation, str) else NAMES[activation]](grad, x)


def of_module(module: nn.Module | None) -> str | None:
    """The activation's name of a module of torch.nn or timm ("none" for no module), or None if it
    has none."""
    if module is None:
        return "none"
    kind = type(module)
    if kind.__module__.startswith("timm.layers."):
        return _TIMM_MODULES.get(kind.__name__)
    if kind is nn.GELU and module.approximate != "none":
        return None
    return _MODULES.get(kind)
