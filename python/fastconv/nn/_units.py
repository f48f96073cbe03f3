"""From rows of units to native forms: some rows are one native op, the others run one after the
other."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..activation import CODES
from ._chain import composed, row_of_steps
from ._fused import Native
from ._parts import Stage, native_convolution, read_stage
from ._unit import Unit
from .depthwise_separable_conv2d import native_separable
from .inverted_residual import native_inverted_residual
from .squeeze_excite import Excite, native_excite, read_excite


def read_unit(unit: Unit) -> Stage | Excite | None:
    """What the native ops take of a unit."""
    if unit.excite is not None:
        return read_excite(*unit.excite)
    return read_stage(unit.convolution, unit.norm, unit.activation)


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
    read = [read_unit(unit) for unit in row]
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
    complete = all(native.steps for native in natives)
    if pack and complete and len(packed) == len(natives):
        return row_of_steps(steps, torch.cat(packed))
    run = composed([native.run() for native in natives])
    return Native(lambda _, x: run(x), None, steps if complete else None)
