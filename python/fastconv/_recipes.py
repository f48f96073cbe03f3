"""What a module could be run as, read from its structure: from the kinds, the shapes and the order
of the modules inside it, whatever its class is called.

The structure does not say all: whether the input is added, or that a ReLU is a function call.
Where it leaves a doubt there are several recipes, and :mod:`fastconv._swapped` takes the one that
computes what the module does, or none.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ._sequence import (
    Part,
    build_sequence,
    children,
    is_sequential,
    is_worth_joining,
    sequence_items,
)
from .activation import CODES, activate, module_of, of_module
from .nn._fused import Native
from .nn._parts import Stage, is_supported, native_convolution
from .nn._unit import (
    TrainRow,
    Unit,
    excite_parts,
    is_identity,
    leaves,
    row_of_units,
    train_row,
    units,
)
from .nn._units import native_units, read_unit
from .ops.pointwise_conv2d import OPS as POINTWISE

_MOST_CONVOLUTIONS = 4  # in a block that is read as a whole


class Recipe(NamedTuple):
    """One way to run a module.

    Args:
        name: for the report
        units: whose convolutions this runs
        channels: of the input
        build: the native form, of whether to pack
        certain: whether the structure leaves no doubt
        row: the same in training, if it is one; what drops whole images is not yet in it
    """

    name: str
    units: tuple[Unit, ...]
    channels: int
    build: Callable[[bool], Native | None]
    certain: bool = False
    row: TrainRow | None = None


def recipes(module: nn.Module) -> Iterator[Recipe]:
    """All recipes for a module, the likeliest first."""
    if isinstance(module, nn.Conv2d):
        if is_supported(module):
            yield _units_recipe([Unit(module)], certain=True)
    elif is_sequential(module):
        recipe = sequence_recipe(children(module))
        if recipe is not None:
            yield recipe._replace(row=train_row(module.children()))
    else:
        yield from _residual_branch(module)
        yield from _block(module)


def sequence_recipe(parts: Sequence[Part]) -> Recipe | None:
    """What runs one after the other, in as few calls as possible; None if it is as well left."""
    items = sequence_items(parts)
    own = tuple(unit for item in items for unit in item.units)
    if not own and not is_worth_joining(items):
        return None
    name = _name(own) if len(items) == 1 and own else "sequential"
    channels = _channels(own) if own else 0
    return Recipe(name, own, channels, partial(build_sequence, items), True)


def _channels(row: Sequence[Unit]) -> int:
    first = row[0].convolution if row[0].excite is None else row[0].excite[0]
    return int(first.in_channels)  # type: ignore[arg-type]


def _units_recipe(
    row: Sequence[Unit], residual: bool = False, end: str = "none", certain: bool = False
) -> Recipe:
    build = partial(native_units, tuple(row), residual, end=end)
    ends = list(row)
    if end != "none":
        ends[-1] = row[-1]._replace(activation=module_of(end))
    train = row_of_units(ends, residual)
    return Recipe(_name(row), tuple(row), _channels(row), build, certain, train)


def _name(row: Sequence[Unit]) -> str:
    kinds = [_kind(unit) for unit in row]
    plain = [kind for kind in kinds if kind != "squeeze_excite"]
    if plain == ["pointwise_conv2d", "depthwise_conv2d", "pointwise_conv2d"]:
        return "inverted_residual"
    if plain == ["depthwise_conv2d", "pointwise_conv2d"]:
        return "depthwise_separable_conv2d" if len(plain) == len(kinds) else "inverted_residual"
    return " + ".join(kinds)


def _kind(unit: Unit) -> str:
    convolution = unit.convolution
    if unit.excite is not None or not isinstance(convolution, nn.Conv2d):
        return "squeeze_excite"
    if convolution.groups == convolution.in_channels > 1:
        return "depthwise_conv2d"
    if convolution.groups == 1 and convolution.kernel_size == (1, 1):
        return "pointwise_conv2d"
    return "conv2d_bias_act"


def _block(module: nn.Module) -> Iterator[Recipe]:
    """Blocks that run what is in them in the order in which it was registered."""
    parts = excite_parts(module)
    if parts is not None:
        yield _units_recipe([Unit(module, excite=parts)])
    inside = leaves(module)
    row = units(inside) if inside else None
    if not row or sum(unit.excite is None for unit in row) > _MOST_CONVOLUTIONS:
        return
    if not all(unit.excite or is_supported(unit.convolution) for unit in row):
        return
    yield _units_recipe(row)
    if _keeps_shape(row):
        yield _units_recipe(row, residual=True)
    if len(row) == 1 and not row[0].has_activation:
        yield _units_recipe(row, end="relu")


def _keeps_shape(row: Sequence[Unit]) -> bool:
    convolutions = [u.convolution for u in row if isinstance(u.convolution, nn.Conv2d)]
    if not convolutions or any(set(c.stride) != {1} for c in convolutions):
        return False
    return convolutions[-1].out_channels == _channels(row)


def _residual_branch(module: nn.Module) -> Iterator[Recipe]:
    """ResNet's blocks: conv1, bn1 and so on, an optional downsample, one activation at the end."""
    parts = module._modules
    names = [str(n) for n in (1, 2, 3) if f"conv{n}" in parts and f"bn{n}" in parts]
    if len(names) < 2 or not hasattr(module, "downsample"):
        return
    special = {"relu", "downsample", *(f"{k}{n}" for n in names for k in ("conv", "bn", "act"))}
    others = [m for name, m in parts.items() if name not in special and m is not None]
    if not all(is_identity(other) for other in others):
        return
    acts = [parts.get(f"act{n}", parts.get("relu")) for n in names]
    end = of_module(acts[-1])
    if end is None or any(act is None for act in acts):
        return
    row = [
        Unit(_part(parts, f"conv{n}"), parts[f"bn{n}"], act)
        for n, act in zip(names, acts, strict=True)
    ]
    row[-1] = row[-1]._replace(activation=None)
    if not all(is_supported(unit.convolution) for unit in row):
        return
    build = partial(_build_residual, tuple(row), parts.get("downsample"), end)
    yield Recipe(_name(row) + " + residual", tuple(row), _channels(row), build)


def _part(parts: dict[str, nn.Module | None], name: str) -> nn.Module:
    module = parts[name]
    assert module is not None
    return module


def _build_residual(
    row: tuple[Unit, ...], downsample: nn.Module | None, end: str, pack: bool
) -> Native | None:
    body, last = native_units(row[:-1], False, pack), read_unit(row[-1])
    if body is None or not isinstance(last, Stage):
        return None
    branch = body.run()
    with_residual = _pointwise_with_residual if last.is_pointwise else _convolution_with_residual
    project = with_residual(last, end, pack)
    if project is None:
        return None

    def call(_: Tensor | None, input: Tensor) -> Tensor:
        shortcut = input if downsample is None else downsample(input)
        return project(branch(input), shortcut)

    return Native(call, None, None)


def _pointwise_with_residual(
    stage: Stage, end: str, pack: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    native = native_convolution(stage, pack)
    packed = None if native is None else native.packed
    weight, bias = stage.operands(pack)
    stride, code = stage.stride, CODES[end]
    op = POINTWISE.inference(pack)
    return lambda x, shortcut: op(x, weight, bias, stride, code, shortcut, None, packed)


def _convolution_with_residual(
    stage: Stage, end: str, pack: bool
) -> Callable[[Tensor, Tensor], Tensor] | None:
    native = native_convolution(stage, pack)
    if native is None:
        return None
    run = native.run()
    if end == "relu":
        return lambda x, shortcut: F.relu_(run(x).add_(shortcut))
    return lambda x, shortcut: activate(run(x).add_(shortcut), end)
