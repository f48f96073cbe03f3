"""``fastconv summary --plot``: what each layer or block of a network takes when it runs alone."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from . import _timing
from ._timing import Contender, Timing
from .summary import Row

KINDS = ("dense", "grouped", "1x1", "depthwise", "block", "linear")

ROUNDS = 5

Call = Callable[[], object]


@dataclass(frozen=True)
class LayerTime:
    """The times of one call of a layer or block.

    Args:
        row: of the summary
        kind: one of KINDS
        timing: on the input that it has in the network
    """

    row: Row
    kind: str
    timing: Timing

    @property
    def macs_per_second(self) -> float:
        return self.row.macs / self.timing.median

    def to_dict(self) -> dict[str, Any]:
        """Of numbers and strings, for JSON."""
        return {
            "name": self.row.name,
            "kind": self.kind,
            "macs": self.row.macs,
            "ms": self.timing.median * 1e3,
            "iqr_ms": self.timing.iqr * 1e3,
        }


def time_layers(
    model: nn.Module,
    input: Tensor,
    rows: Sequence[Row],
    *,
    each_round: Callable[[], object],
) -> list[LayerTime]:
    """Times what a summary lists, each alone, in interleaved rounds.

    A block that runs as one native op counts as one; of other blocks the layers are timed. So every
    multiplication of the network is in one of the results.

    Args:
        model: in eval mode
        input: (N, C, H, W)
        rows: of the summary for such an input
        each_round: runs once at the start of each of the ROUNDS
    """
    units = list(_units(model, rows, _recorded(model, input, {row.name for row in rows})))
    contenders = [Contender(str(place), call, call) for place, (_, call) in enumerate(units)]
    with torch.inference_mode():
        timings = _timing.interleave(contenders, rounds=ROUNDS, each_round=each_round)
    return [
        LayerTime(row, _kind(row, model), timing)
        for (row, _), timing in zip(units, timings.values(), strict=True)
    ]


def _recorded(model: nn.Module, input: Tensor, names: set[str]) -> dict[str, list[Call]]:
    """The calls of these modules while the model runs once, to be made again, in their order.

    Hooks inside a block make it run module by module, so the calls there are seen too.
    """
    calls: dict[str, list[Call]] = defaultdict(list)

    def watch(name: str) -> Any:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls[name].append(functools.partial(module, *args, **kwargs))

        return model.get_submodule(name).register_forward_pre_hook(before, with_kwargs=True)

    handles = [watch(name) for name in names]
    try:
        with torch.inference_mode():
            model(input)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _units(
    model: nn.Module, rows: Sequence[Row], calls: dict[str, list[Call]]
) -> Iterator[tuple[Row, Call]]:
    """The rows to time, none of them inside another one."""
    inside: int | None = None  # the depth of the unit that the following rows may be in
    for row in rows:
        call = calls[row.name].pop(0)
        if inside is not None and row.depth > inside:
            continue
        inside = None
        if not row.is_block or _is_one_op(call):
            inside = row.depth
            yield row, call


class _Multiplying(TorchDispatchMode):
    """Notes the ops that have a FLOP formula."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in flop_registry:
            self.ops.append(func)
        return func(*args, **(kwargs or {}))


def _is_one_op(call: Call) -> bool:
    # Not inference_mode, where PyTorch's layers would be seen before they become such ops.
    with torch.no_grad(), _Multiplying() as noted:
        call()
    if len(noted.ops) != 1 or noted.ops[0].namespace != "fastconv":
        return False
    return noted.ops[0]._overloadpacket is not torch.ops.fastconv.sequential  # a chain of blocks


def _kind(row: Row, model: nn.Module) -> str:
    layer: Any = model.get_submodule(row.name)
    if row.is_block:
        return "block"
    if isinstance(layer, nn.Linear):
        return "linear"
    if layer.groups > 1:
        return "depthwise" if layer.groups == layer.in_channels else "grouped"
    return "1x1" if set(layer.kernel_size) == {1} else "dense"
