"""Whether a method does nothing but to call its module's children one after the other.

The children are replaced by stubs in a copy of the module; each returns numbers of its own, so what
it is given tells where that came from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .nn._units import is_identity

_MAP, _VECTOR = (2, 8, 3, 5), (2, 8)


class _Stub(nn.Module):
    def __init__(self, name: str, calls: list[tuple[str, Tensor, Tensor]]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, input: Tensor) -> Tensor:
        output = torch.randn(_VECTOR if input.dim() == 2 else _MAP)
        self.calls.append((self.name, input, output.clone()))
        return output


def call_order(module: nn.Module, method: Callable[..., Any]) -> tuple[str, ...] | None:
    """The names of the children in the order in which the method calls them, each once, with what
    the one before it returned; "" stands for a mean over H and W between them.

    None if it does something else, or leaves a child out that would do something. Whether there is
    a pooling module does not matter: it runs as it is.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []
    children: dict[str, nn.Module | None] = {}
    stubs: set[str] = set()
    for name, child in module._modules.items():
        children[name] = child
        if child is not None and not is_identity(child) and not _is_pooling(child):
            children[name] = _Stub(name, calls)
            stubs.add(name)
    try:
        probe = copy.copy(module)
        state = probe.__dict__
        state.update({n: v.copy() for n, v in state.items() if type(v) in (list, dict, set)})
        state.update(_modules=children, training=False)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            input = torch.randn(2, 3, 32, 32)
            output = method(probe, input)
    except Exception:  # whatever a stranger's forward raises: its order is not known then
        return None
    if not isinstance(output, Tensor) or sorted(name for name, *_ in calls) != sorted(stubs):
        return None
    return _order(calls, input, output)


def _order(
    calls: list[tuple[str, Tensor, Tensor]], input: Tensor, output: Tensor
) -> tuple[str, ...] | None:
    order: list[str] = []
    before = input
    for name, given, returned in calls:
        if _is_mean(given, before):
            order.append("")
        elif not _is_same(given, before):
            return None
        order.append(name)
        before = returned
    if _is_mean(output, before):
        order.append("")
    elif not _is_same(output, before):
        return None
    return tuple(order)


def _is_pooling(module: nn.Module) -> bool:
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return True
    return type(module).__name__ == "SelectAdaptivePool2d" or type(module) is nn.Flatten


def _is_same(given: Tensor, before: Tensor) -> bool:
    return given.shape == before.shape and torch.equal(given, before)


def _is_mean(given: Tensor, before: Tensor) -> bool:
    if before.dim() != 4 or given.shape != before.shape[:2]:
        return False
    return torch.allclose(given, before.mean((2, 3)), atol=1e-6)
