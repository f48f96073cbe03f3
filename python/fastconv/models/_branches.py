"""Branches side by side: what the Inception networks are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._sequence import expanded
from ..nn._fused import FusedModule, Native
from ..nn._graph import INPUT, Graph, native_module

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
        for branch in self._branches():
            front, ends = _front_and_ends(branch)
            if len(ends) == 1:
                row = [part for part in expanded([*front, *ends]) if isinstance(part, nn.Module)]
                front, ends = row[:-1], (row[-1],)
            map = INPUT
            for module in front:
                map = graph.add(native_module(module, pack), map)
            for module in ends:
                written = graph.add(native_module(module, pack), map, joint)
                joint = written if joint is None else joint
        return graph.native()


def _front_and_ends(branch: Branch) -> tuple[list[nn.Module], tuple[nn.Module, ...]]:
    *front, last = branch
    modules = [module for module in front if isinstance(module, nn.Module)]
    return modules, last if isinstance(last, tuple) else (last,)
