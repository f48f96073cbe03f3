"""What each convolution of a network computes and moves, found without computing anything."""

from __future__ import annotations

import contextlib
import io
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import backend, cost
from ._table import print_table
from .nn._fused import FusedModule, _is_hooked

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)
_HEADER = ("<layer", "<type", "<output", ">parameters", ">M MACs", ">MB", ">FLOP/byte", "<runs on")


@dataclass(frozen=True)
class Row:
    """One call of a layer, or of a block of several layers that fastconv knows.

    Args:
        name: of the module in the model
        type: the name of its class
        depth: the number of blocks that it is in
        is_block: whether the rows of its layers follow, with a greater depth
        output_shape: e.g. (N, K, OH, OW)
        parameters: of the module, with all inside
        macs: multiply-accumulate operations of its convolutions and linear layers
        bytes: of input, output, and the weights and biases of its layers, each once
        runs_on: "fastconv native" or "PyTorch", in eval mode where no gradient is wanted
    """

    name: str
    type: str
    depth: int
    is_block: bool
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    bytes: int
    runs_on: str

    @property
    def intensity(self) -> float:
        """FLOP per byte; a multiply-accumulate is two FLOP."""
        return 2 * self.macs / max(1, self.bytes)


@dataclass(frozen=True)
class Summary:
    """The rows of a model, in the order in which they run. Prints as a table.

    Args:
        model: the name of its class
        input_size: (N, C, H, W)
        dtype: of input and output
        rows: the layers and blocks
        total_parameters: of the whole model, also those of norms; shared ones count once
    """

    model: str
    input_size: tuple[int, ...]
    dtype: str
    rows: tuple[Row, ...]
    total_parameters: int

    @property
    def total_macs(self) -> int:
        return sum(row.macs for row in self.rows if not row.is_block)

    def to_dict(self) -> dict[str, Any]:
        """Of numbers, strings and lists, for JSON."""
        rows = [
            asdict(row) | {"output_shape": list(row.output_shape), "intensity": row.intensity}
            for row in self.rows
        ]
        return asdict(self) | {
            "input_size": list(self.input_size),
            "total_macs": self.total_macs,
            "rows": rows,
        }

    def show(self) -> None:
        """Print the table: on a terminal by rich, if that is installed."""
        size = " x ".join(map(str, self.input_size))
        print_table(
            f"{self.model}, {size}, {self.dtype}: {self.total_macs / 1e6:,.1f} M MACs, "
            f"{self.total_parameters:,} parameters",
            _HEADER,
            [_cells(row) for row in self.rows],
        )

    def __str__(self) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            self.show()
        return text.getvalue().strip("\n")


def _cells(row: Row) -> list[str]:
    return [
        "  " * row.depth + (row.name or "(the model)"),
        row.type,
        " x ".join(map(str, row.output_shape)),
        f"{row.parameters:,}",
        f"{row.macs / 1e6:,.2f}",
        f"{row.bytes / 1e6:,.2f}",
        f"{row.intensity:,.1f}",
        row.runs_on,
    ]


def summary(model: nn.Module, input_size: Sequence[int]) -> Summary:
    """Lists what each convolution and linear layer of a model computes, moves, and runs on.

    The model's forward runs once in eval mode on a tensor without data: nothing is computed, and
    the model is unchanged. Layers that run twice are listed twice; those that the forward does not
    call as modules are not seen.

    Args:
        model: any module whose forward takes one tensor
        input_size: (N, C, H, W), or (C, H, W) for one image

    Returns:
        a Summary, with ``rows``, ``total_macs``, ``total_parameters`` and ``to_dict()``

    Raises:
        TypeError: if the model is not a torch.nn.Module.
        ValueError: if `input_size` is not 3 or 4 positive integers, or the model cannot run on it.

    Example:
        >>> summary = fastconv.summary(fastconv.models.mobilenet_v2(), (3, 224, 224))
        >>> print(f"{summary.total_macs / 1e6:.1f} M MACs")
        300.8 M MACs
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"summary: model must be a torch.nn.Module, got {type(model).__name__}")
    size = _checked_size(input_size)
    if any(nn.parameter.is_lazy(p) for p in [*model.parameters(), *model.buffers()]):
        raise ValueError(
            f"summary: model must have run once, got a {type(model).__name__} with lazy layers"
        )
    example = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    with unchanged(model):
        for module in _in_python(model):
            module.training = False
        with unchanged(model):
            drop_hooks(model)
            calls = _calls(model, size, example)
        with torch.no_grad():
            rows = tuple(call.row() for call in calls if call.is_listed)
    total = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(example.dtype).removeprefix("torch.")
    return Summary(type(model).__name__, size, dtype, rows, total)


def input_channels(model: nn.Module) -> int:
    """Of the images that a model takes, told by its first convolution; 3 if it has none."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def _checked_size(size: Any) -> tuple[int, ...]:
    numbers = tuple(size) if isinstance(size, Sequence) else ()
    if len(numbers) not in (3, 4) or not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError(
            "summary: input_size must be (N, C, H, W) or (C, H, W), positive integers, got "
            f"{size!r}"
        )
    return numbers if len(numbers) == 4 else (1, *numbers)


class _Call:
    """One call of a module, and those in which it happened."""

    def __init__(self, name: str, module: nn.Module, outer: list[_Call], input: list[Tensor]):
        self.name, self.module, self.outer = name, module, outer
        self.input_dims = input[0].dim() if input else 0
        self.is_layer = isinstance(module, _LAYERS)
        self.input, self.output = _bytes(input), 0
        self.input_shape = tuple(input[0].shape) if input else ()
        self.layers, self.macs, self.weights = 0, 0, 0
        self.output_shape: tuple[int, ...] = ()

    def finish(self, output: list[Tensor]) -> None:
        self.output = _bytes(output)
        self.output_shape = tuple(output[0].shape) if output else ()
        if self.is_layer:
            weight, bias = self.module.weight, self.module.bias
            assert isinstance(weight, Tensor)
            macs = _macs(self.module, weight, self.input_shape, self.output_shape)
            weights = _bytes([weight, *([bias] if isinstance(bias, Tensor) else [])])
            for call in (self, *self.outer):
                call.layers, call.macs, call.weights = (
                    call.layers + 1,
                    call.macs + macs,
                    call.weights + weights,
                )

    @property
    def is_block(self) -> bool:
        return not self.is_layer and self.layers > 1 and self.name != ""

    @property
    def is_listed(self) -> bool:
        return self.is_layer or self.is_block

    def row(self) -> Row:
        around = (self, *reversed(self.outer))
        native = any(_runs_natively(call.module, call.input_dims) for call in around)
        return Row(
            name=self.name,
            type=type(self.module).__name__,
            depth=sum(call.is_block for call in self.outer),
            is_block=self.is_block,
            output_shape=self.output_shape,
            parameters=sum(parameter.numel() for parameter in self.module.parameters()),
            macs=self.macs,
            bytes=self.input + self.output + self.weights,
            runs_on="fastconv native" if native else "PyTorch",
        )


def _macs(layer: nn.Module, weight: Tensor, input: tuple[int, ...], output: tuple[int, ...]) -> int:
    """Of a layer on all images, from the shapes of what it was called with and of what came out."""
    if 0 in (*weight.shape, *input, *output):
        return 0
    outs, ins, *kernel = weight.shape
    if not kernel:
        return cost.linear(ins, outs).multiplications * (math.prod(output) // outs)
    if isinstance(layer, _TRANSPOSED):  # the convolution that goes the other way, from its output
        input, output = output, input
    dims, groups = len(kernel), layer.groups
    assert isinstance(groups, int)
    one = cost.convolution(
        ins * groups, outs, kernel, input[-dims:], output_size=output[-dims:], groups=groups
    )
    return one.multiplications * (math.prod(output) // (outs * math.prod(output[-dims:])))


def _runs_natively(module: nn.Module, input_dims: int) -> bool:
    """Whether a call of this module, in the mode that it is in, would be one native op."""
    if not isinstance(module, FusedModule) or module._input_dims != input_dims:
        return False
    try:
        chosen = backend.choose(type(module).__name__, wish=module._backend)
    except backend.BackendError:
        return False
    return chosen and not _is_hooked(module) and module.unpacked("forward") is not None


class _QuickNorms(TorchDispatchMode):
    """Knows what batch normalization returns: to find that out takes PyTorch several ms a layer."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # In inference mode PyTorch shows the op as it is called, not what it consists of.
        whole = function is torch.ops.aten.batch_norm.default
        if whole or function is torch.ops.aten.native_batch_norm.default:
            input, *parameters, training = args[:6]
            sizes = {p.numel() for p in parameters if p is not None}
            if not training and input.dim() > 1 and sizes == {input.shape[1]}:
                output = torch.empty_like(input)
                return output if whole else (output, input.new_empty(0), input.new_empty(0))
        return function(*args, **(kwargs or {}))


def _calls(model: nn.Module, size: tuple[int, ...], example: Tensor) -> list[_Call]:
    """Runs the model without data and notes the calls of its layers and blocks, outer ones first.

    A hook in a block makes that block run module by module, so the layers inside are seen.
    """
    calls: list[_Call] = []
    running: list[_Call] = []
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            calls.append(_Call(name, module, list(running), _tensors((args, kwargs))))
            running.append(calls[-1])

        def after(_: nn.Module, args: Any, output: Any) -> None:
            running.pop().finish(_tensors(output))

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    for name, module in model.named_modules():
        if isinstance(module, (*_LAYERS, FusedModule)):
            watch(name, module)
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode, _QuickNorms(), torch.no_grad(), backend.use_backend("reference"):
            model(torch.empty(size, dtype=example.dtype, device=example.device))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"summary: model must run at input_size {size}, got: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _in_python(model: nn.Module) -> list[nn.Module]:
    """The modules whose attributes are Python's: not of scripted ones."""
    return [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]


def drop_hooks(model: nn.Module) -> None:
    """The user's own are not called with tensors without data."""
    for module in _in_python(model):
        for name in [name for name in module.__dict__ if name.startswith("_forward_")]:
            if isinstance(module.__dict__[name], dict):
                module.__dict__[name] = OrderedDict()


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the attributes that it had before: also those that its forward
    or a hook has set, which would now be tensors without data."""
    modules = _in_python(model)
    owners = [module.__dict__ for module in modules]
    for name in ("_parameters", "_buffers", "_modules"):
        owners += [module.__dict__[name] for module in modules]
    saved = [(owner, dict(owner)) for owner in owners]
    try:
        yield
    finally:
        for owner, before in saved:
            for name in [name for name in owner if name not in before]:
                del owner[name]
            # Only what differs is written: caches notice that a dict was written to.
            for name, value in before.items():
                if owner.get(name, ...) is not value:
                    owner[name] = value


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
