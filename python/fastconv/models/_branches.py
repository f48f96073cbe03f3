"""Branches side by side: what the Inception networks are made of."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._sequence import expanded
from ..nn._fused import FusedModule, Native
from ..nn._graph import INPUT, Graph, native_module
from ..ops._sequential import StepKind

Branch = Sequence[nn.Module | tuple[nn.Module, ...]]


class Branches(FusedModule):
    """Rows of modules on the same input; their outputs are joined along the channels."""

    def _branches(self) -> Sequence[Branch]:
        """The rows. At the end of one can be a tuple of modules, each with an output of its own."""
        raise NotImplementedError

    def _plain_forward(self, input: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for branch in self._branches():
            front, ends = _front_and_ends(branch)
            output = input
            for module in front:
                output = module(output)
            outputs += [module(output) for module in ends]
        return torch.cat(outputs, 1)

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        graph = Graph(pack)
        joint: int | None = None
        # 1x1 convolutions of the input come first, one behind the other: they read it together.
        rows: list[_Row] = []
        for branch in self._branches():
            row = _native_row(branch, pack)
            if _is_pointwise(row.front):
                row = _Row(row.front[1:], row.ends, graph.add(row.front[0], INPUT))
            elif not rows and not row.front and _is_pointwise(row.ends):
                joint = graph.add(row.ends[0], INPUT)
                row = _Row([], row.ends[1:], INPUT)
            rows.append(row)
        for front, ends, map in rows:
            for native in front:
                map = graph.add(native, map)
            for native in ends:
                written = graph.add(native, map, joint)
                joint = written if joint is None else joint
        return graph.native()


class _Row(NamedTuple):
    """Native forms of a branch that are still to be added to a graph."""

    front: list[Native | None]
    ends: list[Native | None]
    map: int  # what the first of them reads


def _native_row(branch: Branch, pack: bool) -> _Row:
    front, ends = _front_and_ends(branch)
    if len(ends) == 1:
        parts = [part for part in expanded([*front, *ends]) if isinstance(part, nn.Module)]
        front, ends = parts[:-1], (parts[-1],)
    return _Row(
        [native_module(module, pack) for module in front],
        [native_module(module, pack) for module in ends],
        INPUT,
    )


def _is_pointwise(natives: list[Native | None]) -> bool:
    """Whether the first of them is a 1x1 convolution."""
    steps = natives[0].steps if natives and natives[0] is not None else None
    return steps is not None and len(steps) == 1 and steps[0].kind is StepKind.POINTWISE


def _front_and_ends(branch: Branch) -> tuple[list[nn.Module], tuple[nn.Module, ...]]:
    *front, last = branch
    modules = [module for module in front if isinstance(module, nn.Module)]
    return modules, last if isinstance(last, tuple) else (last,)
