"""From the modules inside a block, in the order in which they run, to native forms.

A unit is a convolution with its norm and activation, or a squeeze-and-excitation. Some rows of
units are one native op; the others run one after the other.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..activation import CODES, GATES, of_module
from ._chain import are_steps, composed, row_of_steps
from ._fused import Native, only_drops
from ._parts import Stage, is_convolution, is_norm, native_convolution, norm_activation, read_stage
from .depthwise_separable_conv2d import native_separable
from .inverted_residual import native_inverted_residual
from .squeeze_excite import Excite, native_excite, read_excite


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

    def read(self) -> Stage | Excite | None:
        if self.excite is not None:
            return read_excite(*self.excite)
        return read_stage(self.convolution, self.norm, self.activation)


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


class _Segment(NamedTuple):
    """Units that one native op computes: how many, and the op, which may take a residual."""

    units: int
    make: Callable[[bool, bool], Native | None]  # of residual and pack
    takes_residual: bool


def native_units(
    row: Sequence[Unit], residual: bool, pack: bool, end: str = "none"
) -> Native | None:
    """A row of units as one native form, with the input added to its output if `residual`.

    Args:
        end: an activation that is no module, behind the last unit
    """
    read = [unit.read() for unit in row]
    if end != "none":
        last = read[-1]
        if not isinstance(last, Stage) or last.activation != CODES["none"]:
            return None
        read[-1] = last._replace(activation=CODES[end])
    return native_stages(read, residual, pack)


def native_stages(read: list[Stage | Excite | None], residual: bool, pack: bool) -> Native | None:
    """The same for what the units were read as."""
    read = list(read)
    segments: list[_Segment] = []
    while read:
        segment = _first_segment(read)
        if segment is None:
            return None
        segments.append(segment)
        del read[: segment.units]
    if len(segments) == 1 and segments[0].takes_residual:
        return segments[0].make(residual, pack)
    made = [segment.make(False, pack) for segment in segments]
    natives = [native for native in made if native is not None]
    if len(natives) < len(made):
        return None
    if not residual:
        return in_a_row(natives, pack)
    run = composed([native.run() for native in natives])
    return Native(lambda _, x: run(x).add_(x), None, None)


def _first_segment(read: Sequence[Stage | Excite | None]) -> _Segment | None:
    first = read[0]
    if first is None:
        return None
    if isinstance(first, Excite):
        return _Segment(1, lambda residual, pack: native_excite(first, pack), False)
    return _block(read) or _Segment(
        1, lambda residual, pack: native_convolution(first, pack), False
    )


def _block(read: Sequence[Stage | Excite | None]) -> _Segment | None:
    """[expand,] depthwise, [squeeze-excite,] project."""
    rest = list(read)
    expand = rest.pop(0) if len(rest) > 2 and _is_depthwise(rest[1]) else None
    depthwise = rest.pop(0)
    excite = rest.pop(0) if len(rest) > 1 and isinstance(rest[0], Excite) else None
    project = rest.pop(0) if rest else None
    if not isinstance(depthwise, Stage) or not isinstance(project, Stage):
        return None
    if isinstance(expand, Excite) or isinstance(excite, Stage):
        return None

    def make(residual: bool, pack: bool) -> Native | None:
        if expand is None and excite is None:
            return native_separable(depthwise, project, residual, pack)
        return native_inverted_residual(expand, depthwise, excite, project, residual, pack)

    if make(False, False) is None:
        return None
    return _Segment(len(read) - len(rest), make, True)


def _is_depthwise(stage: Stage | Excite | None) -> bool:
    return isinstance(stage, Stage) and stage.is_depthwise


def in_a_row(natives: Sequence[Native], pack: bool) -> Native:
    """One native form that runs these one after the other, as one call if they are steps."""
    if len(natives) == 1:
        return natives[0]
    steps = tuple(step for native in natives for step in native.steps or ())
    packed = [native.packed for native in natives if native.packed is not None]
    complete = all(native.steps for native in natives) and are_steps(steps)
    if pack and complete and len(packed) == len(natives):
        return row_of_steps(steps, torch.cat(packed))
    run = composed([native.run() for native in natives])
    return Native(lambda _, x: run(x), None, steps if complete else None)
