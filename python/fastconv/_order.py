"""Whether a method does nothing but to call its module's children one after the other.

The children are replaced by stubs in a copy of the module; each returns numbers of its own, so what
it is given tells where that came from. Everything else that the method does to a tensor is seen,
and but for a pooling and a flatten nothing is allowed: also no look at a shape, which could decide
something for other sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nn._unit import is_identity

_MAP, _VECTOR = (2, 8, 3, 5), (2, 8)


class Watched(Tensor):
    """A tensor that notes every function that is called with it, also for its attributes."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _called.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


_called: list[Any] = []


@contextmanager
def noting() -> Iterator[list[Any]]:
    """The functions that are called with :class:`Watched` tensors meanwhile."""
    _called.clear()
    try:
        yield _called
    finally:
        _called.clear()


# Of a row of children: what may happen between them in eval mode.
_BETWEEN = (
    F.adaptive_avg_pool2d,
    F.dropout,
    torch.dropout,
    torch.flatten,
    Tensor.flatten,
    torch.mean,
    Tensor.mean,
)
# What modules of PyTorch ask that does not depend on sizes.
QUESTIONS = (Tensor.dim, Tensor.ndim.__get__, Tensor.as_subclass)  # type: ignore[attr-defined]


class _Stub(nn.Module):
    def __init__(self, name: str, note: Callable[[tuple[str, Tensor, Tensor]], None]) -> None:
        super().__init__()
        self.name, self.note = name, note

    def forward(self, input: Tensor) -> Tensor:
        plain = input.as_subclass(Tensor)
        output = torch.randn(_VECTOR if plain.dim() == 2 else _MAP)
        self.note((self.name, plain, output.clone()))
        return output.as_subclass(Watched)


def call_order(module: nn.Module, method: Callable[..., Any]) -> tuple[str, ...] | None:
    """The names of the children in the order in which the method calls them, each once, with what
    the one before it returned; "" stands for a mean over H and W between them.

    None if it does something else. Whether there is a pooling module does not matter: it runs as
    it is.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []
    children: dict[str, nn.Module | None] = {}
    for name, child in module._modules.items():
        children[name] = child
        if child is not None and not is_identity(child) and not _is_pooling(child):
            children[name] = _Stub(name, calls.append)
    try:
        probe = copy.copy(module)
        state = probe.__dict__
        state.update({n: v.copy() for n, v in state.items() if type(v) in (list, dict, set)})
        state.update(_modules=children, training=False)
        before = fingerprint(probe)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), noting() as called:
            torch.default_generator.manual_seed(0)
            input = torch.randn(2, 3, 32, 32)
            output = method(probe, input.as_subclass(Watched))
            strange = [f for f in called if f not in _BETWEEN and f not in QUESTIONS]
    except Exception:  # whatever a stranger's forward raises: its order is not known then
        return None
    if strange or not isinstance(output, Tensor) or fingerprint(probe) != before:
        return None
    names = [name for name, *_ in calls]
    if len(set(names)) != len(names):
        return None
    return _order(calls, input, output.as_subclass(Tensor))


def fingerprint(module: nn.Module) -> list[tuple[Any, ...]]:
    """What changes when a module notes something in itself: the objects in its attributes, and how
    many there are in its containers."""
    found: list[tuple[Any, ...]] = []
    for name, part in module.named_modules():
        for key, value in part.__dict__.items():
            size = len(value) if isinstance(value, (list, dict, set)) else -1
            found.append((name, key, id(value), size))
        found += [(name, key, id(value), -1) for key, value in part._buffers.items()]
    return found


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
    if type(module) in (nn.AdaptiveAvgPool2d, nn.Flatten):
        return True
    kind = type(module)
    return kind.__name__ == "SelectAdaptivePool2d" and kind.__module__.startswith("timm.")


def _is_same(given: Tensor, before: Tensor) -> bool:
    return given.shape == before.shape and torch.equal(given, before)


def _is_mean(given: Tensor, before: Tensor) -> bool:
    if before.dim() != 4 or given.shape != before.shape[:2]:
        return False
    return torch.allclose(given, before.mean((2, 3)), atol=1e-6)
