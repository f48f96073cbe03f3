"""Modules that run one after the other, in as few native calls as possible."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from .activation import CODES, activate, of_module
from .nn._chain import native_chain
from .nn._fused import FusedModule, Native, original_class
from .nn._graph import native_average_pool, native_max_pool
from .nn._parts import is_supported
from .nn._unit import Unit, first_unit, is_identity
from .nn._units import in_a_row, native_units
from .nn.linear import native_linear
from .ops._sequential import Step, StepKind


class Pool:
    """In a row of modules: the mean over H and W, (N, C, H, W) -> (N, C)."""


Part = nn.Module | Pool


class Item(NamedTuple):
    """A row of units, or a module; perhaps with a global pooling behind it.

    Args:
        units: with native ops; empty for a module
        module: what else is called
        pooled: whether the mean over H and W is next
        flat: whether the input is (N, C)
        activation: next, after a fully connected layer
    """

    units: tuple[Unit, ...] = ()
    module: nn.Module | None = None
    pooled: bool = False
    flat: bool = False
    activation: str = "none"

    def native(self, pack: bool) -> Native | None:
        """The native form, if there is one."""
        if self.units:
            native = native_units(self.units, False, pack)
        elif isinstance(self.module, FusedModule):
            dims = 2 if self.flat else 4
            make = self.module.packed_native if pack else self.module.unpacked_native
            native = make("forward", dims)
        elif not self.flat and type(self.module) is nn.MaxPool2d:
            native = native_max_pool(self.module, pack)
        elif not self.flat and type(self.module) is nn.AvgPool2d:
            native = native_average_pool(self.module, pack)
        elif self.flat and type(self.module) is nn.Linear:
            native = native_linear(self.module, pack)
        else:
            return None
        if native is None:
            return None
        native = _pooled(native) if self.pooled else native
        return native if self.activation == "none" else _activated(native, self.activation)

    def called(self) -> Native | None:
        """The module as it is, with what is next."""
        module = self.module
        if module is None:
            return None
        native = Native(lambda _, x: module(x), None, None)
        native = _pooled(native) if self.pooled else native
        return native if self.activation == "none" else _activated(native, self.activation)

    def takes_activation(self) -> bool:
        """Whether an activation behind it can be a part of it."""
        is_linear = isinstance(self.module, nn.Linear)
        return self.flat and is_linear and not self.pooled and self.activation == "none"

    def steps(self) -> tuple[Step, ...] | None:
        """Of the native form."""
        native = self.native(False)
        return None if native is None else native.steps

    def weights(self) -> list[Tensor]:
        """What the native form packs."""
        roots = [u.convolution for u in self.units] if self.module is None else [self.module]
        inside = [module for root in roots for module in root.modules()]
        return [m.weight for m in inside if isinstance(m, (nn.Conv2d, nn.Linear))]


def _pooled(native: Native) -> Native:
    steps = native.steps
    if steps:
        last = steps[-1]
        alone = last.residual == last.joins == 0
        if last.kind is StepKind.POINTWISE and last.stride == (1, 1) and alone:
            steps = (*steps[:-1], last._replace(kind=StepKind.POOL))
        else:
            steps = (*steps, Step(StepKind.MEAN, 0))
    call = native.call
    return native._replace(call=lambda packed, x: _mean(call(packed, x)), steps=steps)


def _mean(input: Tensor) -> Tensor:
    return input.mean((2, 3))


def _activated(native: Native, activation: str) -> Native:
    call, steps = native.call, native.steps
    if steps:
        steps = (*steps[:-1], steps[-1]._replace(out_activation=CODES[activation]))

    def call_and_activate(packed: Tensor | None, input: Tensor) -> Tensor:
        return activate(call(packed, input), activation)

    return native._replace(call=call_and_activate, steps=steps)


def is_sequential(module: nn.Module) -> bool:
    """Whether its forward calls its children one after the other."""
    if not isinstance(module, nn.Sequential):
        return False
    kind = original_class(module)
    sequential = nn.Sequential
    return kind.forward is sequential.forward and kind.__iter__ is sequential.__iter__


def children(module: nn.Module) -> list[nn.Module]:
    """All of them, also the same one twice."""
    return [child for child in module._modules.values() if child is not None]


def sequence_items(parts: Sequence[Part]) -> list[Item]:
    """Rows of units that have native ops, and the other modules, in their order."""
    items: list[Item] = []
    rest = expanded(parts)
    flat = False
    while rest:
        part = rest[0]
        if isinstance(part, Pool):
            del rest[0]
            flat = True
            if items and not items[-1].flat:
                items[-1] = items[-1]._replace(pooled=True)
            continue
        unit, taken = None, 0
        if not flat and is_supported(part):
            row = itertools.takewhile(lambda part: isinstance(part, nn.Module), rest)
            unit, taken = first_unit([module for module in row if isinstance(module, nn.Module)])
        if unit is None:
            del rest[0]
            activation = of_module(part)
            if activation is not None and items and items[-1].takes_activation():
                items[-1] = items[-1]._replace(activation=activation)
            else:
                items.append(Item(module=part, flat=flat))
            continue
        del rest[:taken]
        if items and items[-1].units:
            items[-1] = items[-1]._replace(units=(*items[-1].units, unit))
        else:
            items.append(Item(units=(unit,)))
    return items


def expanded(parts: Sequence[Part]) -> list[Part]:
    """What sequences inside consist of, without what does nothing in eval mode."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, Pool):
            found.append(part)
        elif is_identity(part):
            continue
        elif is_sequential(part):
            found += expanded(children(part))
        else:
            found.append(part)
    return found


def is_worth_joining(items: Sequence[Item]) -> bool:
    """Whether two neighbours can be steps of one native call."""
    are_steps = [bool(item.steps()) for item in items]
    return any(first and second for first, second in itertools.pairwise(are_steps))


def build_sequence(items: Sequence[Item], pack: bool) -> Native | None:
    """One native form for all: one call for neighbours that are steps."""
    groups: list[list[Item]] = []
    is_open = False
    for item in items:
        is_step = bool(item.steps())
        if is_open and is_step and _may_join(groups, item):
            groups[-1].append(item)
        else:
            groups.append([item])
        is_open = is_step
    natives = [_group(group, pack) for group in groups]
    parts = [native for native in natives if native is not None]
    # What could be packed as one is one group already.
    return in_a_row(parts, False) if len(parts) == len(natives) else None


def _may_join(groups: Sequence[Sequence[Item]], item: Item) -> bool:
    """Whether maps are followed by a layer of maps, and vectors by one of vectors."""
    return item.flat == (groups[-1][-1].pooled or groups[-1][-1].flat)


def _group(group: Sequence[Item], pack: bool) -> Native | None:
    weights = [weight for item in group for weight in item.weights()]
    if len(group) > 1 and pack and weights:
        return native_chain([partial(item.native, True) for item in group], weights)
    natives: list[Native] = []
    for item in group:
        native = item.native(pack) or item.called()
        if native is None:
            return None
        natives.append(native)
    return in_a_row(natives, False)
