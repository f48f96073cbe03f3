"""The modules inside a block, in the order in which they run, as units.

A unit is a convolution with its norm and activation, or a squeeze-and-excitation.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

from ..activation import GATES, of_module
from ._fused import only_drops, original_class
from ._parts import is_convolution, is_norm, norm_activation


class Unit(NamedTuple):
    """A convolution with what follows it; or a squeeze-and-excitation, then `excite` is set."""

    convolution: nn.Module
    norm: nn.Module | None = None
    activation: nn.Module | None = None
    excite: tuple[nn.Module, nn.Module, nn.Module, nn.Module] | None = None

    @property
    def convolutions(self) -> tuple[nn.Module, ...]:
        return (self.convolution,) if self.excite is None else (self.excite[0], self.excite[2])

    @property
    def has_activation(self) -> bool:
        inner = norm_activation(self.norm)
        return any(of_module(m) not in ("none", None) for m in (self.activation, inner))


class TrainRow(NamedTuple):
    """What a module computes in training.

    Args:
        units: one after the other; a squeeze-and-excitation belongs to the unit before it
        residual: whether the input is added to the output
        drop: a module that drops images of the branch, before the input is added; it does nothing
            where that is not added
    """

    units: tuple[Unit, ...]
    residual: bool = False
    drop: nn.Module | None = None


def train_row(
    modules: Iterable[nn.Module], residual: bool = False, drop: nn.Module | None = None
) -> TrainRow | None:
    """A row of modules that run one after the other, as far as they are read here."""
    inside: list[nn.Module] = []
    for module in modules:
        found = _flat(module)
        if found is None:
            return None
        inside += found
    return row_of_units(units(inside), residual, drop)


def row_of_units(
    row: Sequence[Unit] | None, residual: bool = False, drop: nn.Module | None = None
) -> TrainRow | None:
    """The row of these units; None for a convolution alone, which is PyTorch's in training."""
    if not row or (len(row) == 1 and row[0].norm is None):
        return None
    return TrainRow(tuple(row), residual, drop)


def _flat(module: nn.Module) -> list[nn.Module] | None:
    """The leaves of rows of modules; None where something else is in them."""
    from .squeeze_excite import SqueezeExcite  # which is itself made of units

    known = is_convolution(module) or is_norm(module) or of_module(module) is not None
    if known or original_class(module) is SqueezeExcite:
        return [module]
    if is_identity(module):
        return []
    if not isinstance(module, nn.Sequential):
        return None
    kind = original_class(module)
    own = kind.__module__.startswith("fastconv.") and hasattr(kind, "_plain_forward")
    if kind.forward is not nn.Sequential.forward and not own:
        return None
    found: list[nn.Module] = []
    for child in module.children():
        inner = _flat(child)
        if inner is None:
            return None
        found += inner
    return found


def drops(module: nn.Module) -> bool:
    """Whether a dropout is at work in this module."""
    rates = [getattr(module, name, None) for name in ("p", "drop_prob")]
    return only_drops(module) and module.training and any(rates)


def is_identity(module: nn.Module) -> bool:
    """Whether this does nothing in eval mode."""
    if type(module) is nn.Identity or only_drops(module):
        return True
    return type(module) is nn.Sequential and len(module) == 0


def leaves(module: nn.Module, most: int = 24) -> list[nn.Module] | None:
    """The convolutions, norms, activations and squeeze-excites inside, in the order in which they
    were registered; None if there is anything else, or more than `most`."""
    found: list[nn.Module] = []
    for child in module._modules.values():
        if child is None or is_identity(child):
            continue
        if (
            is_convolution(child)
            or is_norm(child)
            or of_module(child) is not None
            or excite_parts(child) is not None
        ):
            found.append(child)
        elif len(child._modules) > 0:
            inner = leaves(child, most)
            if inner is None:
                return None
            found += inner
        else:
            return None
        if len(found) > most:
            return None
    return found


def excite_parts(
    module: nn.Module,
) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module] | None:
    """Reducing convolution, activation, expanding convolution and gate of a squeeze-and-excitation,
    as far as that can be seen from its parts."""
    convolutions: list[nn.Conv2d] = []
    activations: list[nn.Module] = []
    for child in module._modules.values():
        if isinstance(child, nn.Conv2d) and is_convolution(child):
            convolutions.append(child)
        elif child is None or is_identity(child) or type(child) is nn.AdaptiveAvgPool2d:
            continue
        elif of_module(child) is not None:
            activations.append(child)
        else:
            return None
    if len(convolutions) != 2 or len(activations) != 2 or of_module(activations[1]) not in GATES:
        return None
    reduce, expand = convolutions
    if (reduce.in_channels, reduce.out_channels) != (expand.out_channels, expand.in_channels):
        return None
    return reduce, activations[0], expand, activations[1]


def units(modules: Iterable[nn.Module]) -> list[Unit] | None:
    """Convolutions with the norms and activations behind them; None where one stands alone."""
    found: list[Unit] = []
    rest = list(modules)
    while rest:
        unit, taken = first_unit(rest)
        if unit is None:
            return None
        found.append(unit)
        del rest[:taken]
    return found


def first_unit(modules: Sequence[nn.Module]) -> tuple[Unit | None, int]:
    """The unit that a row of modules begins with, and how many of them it takes."""
    convolution, *rest = modules
    if not is_convolution(convolution):
        parts = excite_parts(convolution)
        return (None, 0) if parts is None else (Unit(convolution, excite=parts), 1)
    taken, norm, activation = 1, None, None
    if taken <= len(rest) and is_norm(rest[taken - 1]):
        norm = rest[taken - 1]
        taken += 1
    bare = norm_activation(norm) is None and taken <= len(rest)
    if bare and of_module(rest[taken - 1]) is not None:
        activation = rest[taken - 1]
        taken += 1
    return Unit(convolution, norm, activation), taken
