"""Native forms that read more maps than the one before: residuals, branches side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..folding import pack_pointwise
from ..ops._sequential import Step, StepKind
from ..ops.pointwise_conv2d import OPS as POINTWISE
from ._chain import row_of_steps
from ._fused import FusedModule, Native
from ._parts import Padding4, native_convolution, read_stage, two

INPUT = 0  # the map that a graph reads


class _Node(NamedTuple):
    run: Callable[..., Tensor]  # of the map that it reads, and the residual if there is one
    steps: tuple[Step, ...] | None
    packed: Tensor | None
    source: int
    residual: int | None
    joins: int | None


class Graph:
    """Native forms in the order in which they run, each on a map of those before.

    Example:
        >>> graph = Graph(pack=True)
        >>> joint = graph.add(convolution, INPUT)  # a Native
        >>> graph.add(other, INPUT, joins=joint)
        >>> native = graph.native()  # both outputs, one behind the other
    """

    def __init__(self, pack: bool) -> None:
        self._pack = pack
        self._nodes: list[_Node] = []
        self._complete = True

    def add(self, native: Native | None, source: int, joins: int | None = None) -> int:
        """One more.

        Args:
            native: None, for what has no native form, makes the whole graph None
            source: the map that it reads: INPUT, or what add returned
            joins: the map behind whose channels it writes, not read until then; None for one of
                its own

        Returns: the map that it writes
        """
        if native is None:
            self._complete = False
            return INPUT
        return self._append(_Node(native.run(), native.steps, native.packed, source, None, joins))

    def add_residual(
        self,
        convolution: nn.Module,
        norm: nn.Module,
        activation: nn.Module,
        source: int,
        residual: int,
    ) -> int:
        """One more: activation(norm(convolution(source)) + residual). Returns what it writes."""
        stage = read_stage(convolution, norm, activation)
        if stage is None:
            self._complete = False
            return INPUT
        if stage.is_pointwise:
            weight, bias = stage.operands(self._pack)
            packed = pack_pointwise(stage.weight, stage.bias) if self._pack else None
            stride, code = stage.stride, stage.activation
            op = POINTWISE.inference(self._pack)

            def run(input: Tensor, residual: Tensor) -> Tensor:
                return cast(Tensor, op(input, weight, bias, stride, code, residual, None, packed))

            steps = stage.steps(StepKind.POINTWISE)
            return self._append(_Node(run, steps, packed, source, residual, None))
        native = native_convolution(read_stage(convolution, norm), self._pack)
        if native is None:
            self._complete = False
            return INPUT
        bare = native.run()
        steps = native.steps
        if steps is not None:
            dense = steps[-1].kind is StepKind.CONV2D_BIAS_ACT
            last = steps[-1]._replace(out_activation=stage.activation)
            steps = (*steps[:-1], last) if dense else None

        def run_and_add(input: Tensor, residual: Tensor) -> Tensor:
            output: Tensor = activation(bare(input).add_(residual))
            return output

        return self._append(_Node(run_and_add, steps, native.packed, source, residual, None))

    def native(self) -> Native | None:
        """All of it as one native form, one call if that is possible."""
        if not self._complete:
            return None
        steps = self._steps()
        packed = [node.packed for node in self._nodes if node.packed is not None]
        if self._pack and steps is not None and len(packed) == len(self._nodes):
            return row_of_steps(steps, torch.cat(packed))
        return Native(lambda _, x: self._run(x), None, steps)

    def _append(self, node: _Node) -> int:
        self._nodes.append(node)
        return len(self._nodes)

    def _steps(self) -> tuple[Step, ...] | None:
        found: list[Step] = []
        for index, node in enumerate(self._nodes):
            if node.steps is None or len(node.steps) != 1:
                return None
            found.append(
                node.steps[0]._replace(
                    source=index - node.source,
                    residual=0 if node.residual is None else index - node.residual + 1,
                    joins=0 if node.joins is None else index + 1 - node.joins,
                )
            )
        return tuple(found)

    def _run(self, input: Tensor) -> Tensor:
        """The nodes one by one."""
        maps: list[list[Tensor]] = [[input]]  # of a joint map its parts
        for node in self._nodes:
            operands = [node.source] if node.residual is None else [node.source, node.residual]
            output = node.run(*(_joint(maps, map) for map in operands))
            if node.joins is None:
                maps.append([output])
            else:
                maps[node.joins].append(output)
                maps.append(maps[node.joins])
        return _joint(maps, len(maps) - 1)


def _joint(maps: list[list[Tensor]], map: int) -> Tensor:
    parts = maps[map]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def native_module(module: nn.Module, pack: bool) -> Native | None:
    """The native form of a layer, made anew."""
    if isinstance(module, FusedModule):
        return module.form(pack)
    if type(module) is nn.MaxPool2d:
        return native_max_pool(module, pack)
    if type(module) is nn.AvgPool2d:
        return native_average_pool(module, pack)
    if isinstance(module, nn.Conv2d):
        return native_convolution(read_stage(module), pack)
    return None


def native_max_pool(module: nn.MaxPool2d, pack: bool) -> Native | None:
    """Max pooling, which is a step only."""
    kernel, padding, dilation = two(module.kernel_size), two(module.padding), two(module.dilation)
    stride = two(module.stride)
    if dilation != (1, 1) or module.return_indices:
        return None
    # PyTorch's ceil_mode drops windows that begin behind the map; there are none of these.
    if module.ceil_mode and any(padding[i] > kernel[i] - stride[i] for i in (0, 1)):
        return None
    if any(2 * padding[i] > kernel[i] for i in (0, 1)):
        return None  # an error of PyTorch's
    more = [stride[i] - 1 if module.ceil_mode else 0 for i in (0, 1)]
    padding4 = (padding[0], padding[0] + more[0], padding[1], padding[1] + more[1])
    return _native_pool(StepKind.MAX_POOL, kernel, stride, padding4, pack, module)


def native_average_pool(module: nn.AvgPool2d, pack: bool) -> Native | None:
    """Average pooling, in which padding counts, which is a step only."""
    kernel, stride = two(module.kernel_size), two(module.stride)
    vertical, horizontal = two(module.padding)
    divides = module.count_include_pad and module.divisor_override is None
    if module.ceil_mode or not divides or 2 * vertical > kernel[0] or 2 * horizontal > kernel[1]:
        return None
    padding = (vertical, vertical, horizontal, horizontal)
    return _native_pool(StepKind.AVERAGE_POOL, kernel, stride, padding, pack, module)


def _native_pool(
    kind: StepKind,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding4,
    pack: bool,
    call: Callable[[Tensor], Tensor],
) -> Native:
    # As many channels as the map has: the chain puts the number in.
    step = Step(kind, 0, kernel=kernel, stride=stride, padding=padding)
    return Native(lambda _, x: call(x), torch.empty(0) if pack else None, (step,))
