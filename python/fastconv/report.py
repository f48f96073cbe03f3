"""What of a model runs natively, and why the rest does not."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from . import backend as backends
from ._swapped import Swapped, evaluating
from ._table import print_table
from .gpu.weights import choices_for
from .nn._fused import FusedModule, _is_hooked, has_global_hooks
from .nn._parts import are_native, is_convolution, is_supported
from .nn._train import train_limit
from .nn._unit import TrainRow
from .summary import input_channels, summary

_HEADER = (
    "<convolution",
    "<shape",
    ">M MACs",
    "<runs as",
    "<in",
    ">error",
    "<why not",
    "<trains in",
    "<why not",
)
_CHOSEN = "<chosen on the GPU"  # one more column, where there is something in it


@dataclass(frozen=True)
class Row:
    """One convolution.

    Args:
        name: in the model
        shape: input and output channels, kernel, stride, groups
        macs: multiply-accumulates for one input; None if the model did not run on it
        runs_as: the native op that computes it in eval mode, "" for PyTorch's convolution
        owner: the name of the module that was swapped for it
        error: the largest difference to the module's own forward, relative to the largest output,
            where ``swap(..., verify=True)`` measured it
        reason: why it runs as PyTorch's convolution
        chosen: on a GPU, after a call: which kernels run the ops that begin with this convolution,
            and why, such as "pointwise_conv2d: triton ..., measured: ..."
        trains_in: the name of the module that runs it natively in train mode, "" for PyTorch; "."
            for the model itself
        train_reason: why it is PyTorch's in train mode
    """

    name: str
    shape: str
    macs: int | None
    runs_as: str
    owner: str
    error: float | None
    reason: str
    chosen: tuple[str, ...] = ()
    trains_in: str = ""
    train_reason: str = ""


@dataclass(frozen=True)
class Report:
    """All convolutions of a model, in the order of its modules. Prints as a table.

    Args:
        model: the name of its class
        input_size: that the multiply-accumulates are for
        rows: the convolutions
        note: what is true of the whole model
    """

    model: str
    input_size: tuple[int, ...]
    rows: tuple[Row, ...]
    note: str

    @property
    def swapped(self) -> tuple[Row, ...]:
        """The convolutions that run natively."""
        return tuple(row for row in self.rows if row.runs_as)

    @property
    def skipped(self) -> tuple[Row, ...]:
        """The convolutions that run as PyTorch's; each has a reason."""
        return tuple(row for row in self.rows if not row.runs_as)

    @property
    def coverage(self) -> float:
        """The share of the convolutions that run natively, 0 to 1; 0 if there are none."""
        return len(self.swapped) / max(1, len(self.rows))

    @property
    def mac_coverage(self) -> float | None:
        """The share of their multiply-accumulates that run natively; None if these are unknown."""
        if any(row.macs is None for row in self.rows):
            return None
        total = sum(row.macs or 0 for row in self.rows)
        return sum(row.macs or 0 for row in self.swapped) / max(1, total)

    def to_dict(self) -> dict[str, Any]:
        """Of numbers, strings and lists, for JSON."""
        shares = {"coverage": self.coverage, "mac_coverage": self.mac_coverage}
        return asdict(self) | {"input_size": list(self.input_size)} | shares

    def show(self) -> None:
        """Print the table: on a terminal by rich, if that is installed."""
        cells = [_cells(row) for row in self.rows]
        if any(row.chosen for row in self.rows):
            chosen = ["; ".join(row.chosen) for row in self.rows]
            cells = [[*own, text] for own, text in zip(cells, chosen, strict=True)]
            print_table(self._title(), (*_HEADER, _CHOSEN), cells)
        else:
            print_table(self._title(), _HEADER, cells)

    def _title(self) -> str:
        macs = self.mac_coverage
        share = "unknown" if macs is None else f"{100 * macs:.1f} %"
        size = " x ".join(map(str, self.input_size))
        title = (
            f"{self.model}: {len(self.swapped)} of {len(self.rows)} convolutions run natively in "
            f"eval mode, {share} of their multiply-accumulates at {size}"
        )
        return f"{title}\n{self.note}" if self.note else title

    def __str__(self) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            self.show()
        return text.getvalue().strip("\n")


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        row.shape,
        "" if row.macs is None else f"{row.macs / 1e6:,.2f}",
        row.runs_as or "PyTorch",
        row.owner,
        "" if row.error is None else f"{row.error:.0e}",
        row.reason,
        row.trains_in,
        row.train_reason,
    ]


def report(model: nn.Module, input_size: Sequence[int] | None = None) -> Report:
    """Lists every convolution of a model: which native op runs it in eval mode, or why none does.

    On a GPU it also says which kernels the calls so far have chosen, and by which measured times.
    It says what is true now: after :func:`swap`, a change of dtype, a new hook or another
    submodule, the next report says so. Nothing is computed, and the model is unchanged.

    Args:
        model: swapped or not, or one of fastconv's own
        input_size: (N, C, H, W) or (C, H, W), for the multiply-accumulates; by default what timm's
            networks say, else 224 x 224

    Returns:
        a Report, with ``coverage``, ``mac_coverage``, ``swapped``, ``skipped`` and ``to_dict()``

    Raises:
        TypeError: if the model is not a torch.nn.Module.

    Example:
        >>> model = fastconv.swap(torchvision.models.mobilenet_v2().eval())
        >>> fastconv.report(model).coverage
        1.0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"report: model must be a torch.nn.Module, got {type(model).__name__}")
    size = _default_size(model) if input_size is None else tuple(input_size)
    macs = _macs(model, size)
    with evaluating(model):
        owners, trainers = _owners(model), _trainers(model)
        rows = [
            _row(name, module, owners.get(id(module)), None if macs is None else macs.get(name, 0))
            for name, module in model.named_modules()
            if isinstance(module, _ConvNd)
        ]
    modules = dict(model.named_modules())
    rows = [
        replace(row, trains_in=name, train_reason=reason)
        for row in rows
        for name, reason in (trainers.get(id(modules[row.name]), ("", _NO_ROW)),)
    ]
    return Report(type(model).__name__, size, tuple(rows), _note(model, rows))


def _default_size(model: nn.Module) -> tuple[int, ...]:
    config = getattr(model, "default_cfg", None)
    if isinstance(config, dict) and len(config.get("input_size", ())) == 3:
        return 1, *config["input_size"]
    return 1, input_channels(model), 224, 224


def _macs(model: nn.Module, size: tuple[int, ...]) -> dict[str, int] | None:
    """By the convolution's name; None where the model does not run on one tensor of this size."""
    try:
        rows = summary(model, size).rows
    except ValueError:
        return None
    macs: dict[str, int] = {}
    for row in rows:
        if not row.is_block:
            macs[row.name] = macs.get(row.name, 0) + row.macs
    return macs


class _Owner:
    """The swapped module, or layer of fastconv's own, that computes a convolution."""

    def __init__(self, name: str, module: FusedModule, method: str, runs_as: str) -> None:
        self.name, self.module, self.runs_as = name, module, runs_as
        self.reason = _why_not_now(module, method)


def _owners(model: nn.Module) -> dict[int, _Owner]:
    """By the convolution's id: the outermost module whose native form computes it."""
    found: dict[int, _Owner] = {}
    for name, module in model.named_modules():
        if isinstance(module, Swapped):
            for method, recipe in module.forms().items():
                owner = _Owner(name, module, method, recipe.name)
                _give(found, owner, [c for unit in recipe.units for c in unit.convolutions])
        elif isinstance(module, FusedModule) and _is_native(module):
            owner = _Owner(name, module, "forward", type(module).__name__)
            _give(found, owner, module.modules())
    return found


def _give(found: dict[int, _Owner], owner: _Owner, convolutions: Iterable[nn.Module]) -> None:
    for convolution in convolutions:
        known = found.get(id(convolution))
        if known is None or (known.reason and not owner.reason):
            found[id(convolution)] = owner


def _is_native(module: FusedModule) -> bool:
    return module.unpacked_native("forward", module._input_dims) is not None


def _why_not_now(module: FusedModule, method: str) -> str:
    """Why a module that has a native form runs its own forward nevertheless; "" if it does not."""
    if backends.NATIVE_MISSING is not None:
        return backends.NATIVE_MISSING
    if backends.active_backend() == "reference" or module._backend == "reference":
        return "the reference backend was asked for"
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    if not are_native(*tensors):
        kinds = {f"{t.dtype}".removeprefix("torch.") + f" on {t.device}" for t in tensors}
        own = "float32, bfloat16 and float16 on cpu and cuda"
        return f"its parameters are {', '.join(sorted(kinds))}; the kernels take {own}"
    misfit = backends.misfit(module._backend, tensors[0].device if tensors else None)
    if misfit is not None:
        return misfit
    if "forward" in module.__dict__ or has_global_hooks():
        return "a hook for all modules, or another forward put on this one"
    if _is_hooked(module):
        return f"a hook inside: the {type(module).__name__} runs its own forward"
    if isinstance(module, Swapped) and module.unpacked(method) is None:
        return f"the {type(module).__name__} is in train mode or has changed since"
    return ""


_NO_ROW = "in no row of layers with norms that swap has read: swap again after changes"


def _trainers(model: nn.Module) -> dict[int, tuple[str, str]]:
    """By the convolution's id: the name of the module that trains it, or why none does."""
    found: dict[int, tuple[str, str]] = {}
    for name, module in model.named_modules():
        row = module._train_row() if isinstance(module, FusedModule) else None
        if row is None or not isinstance(module, FusedModule):
            continue
        reason = _why_not_trained(module, row)
        for convolution in [c for unit in row.units for c in unit.convolutions]:
            known = found.get(id(convolution))
            if known is None or (known[1] and not reason):
                found[id(convolution)] = ("" if reason else name or ".", reason)
    return found


def _why_not_trained(module: FusedModule, row: TrainRow) -> str:
    if backends.NATIVE_MISSING is not None:
        return backends.NATIVE_MISSING
    if "reference" in (backends.active_backend(), module._backend):
        return "the reference backend was asked for"
    if _is_hooked(module) or "forward" in module.__dict__:
        return f"a hook inside: the {type(module).__name__} runs its own forward"
    weight = next(p for p in module.parameters() if p.is_floating_point())
    return train_limit(module, row, weight, in_train_mode=True) or ""


def _row(name: str, module: _ConvNd, owner: _Owner | None, macs: int | None) -> Row:
    if owner is None:
        return Row(name, _shape(module), macs, "", "", None, _why_never(module))
    error = owner.module.__dict__.get("_fastconv_error")
    runs_as = "" if owner.reason else owner.runs_as
    choices = {} if owner.reason else choices_for(module.weight)
    chosen = tuple(f"{op}: {choice.name}, {choice.reason}" for op, choice in choices.items())
    return Row(name, _shape(module), macs, runs_as, owner.name, error, owner.reason, chosen)


def _shape(module: _ConvNd) -> str:
    kernel = "x".join(map(str, module.kernel_size))
    text = f"{module.in_channels} to {module.out_channels}, {kernel}"
    if set(module.stride) != {1}:
        text += f", stride {'x'.join(map(str, module.stride))}"
    if module.groups > 1:
        text += f", {module.groups} groups"
    return text


def _why_never(module: _ConvNd) -> str:
    kind = type(module).__name__
    if not isinstance(module, nn.Conv2d):
        return f"a {kind}: the kernels are for Conv2d"
    if module.padding_mode != "zeros":
        return f"padding_mode={module.padding_mode!r}: the kernels pad with zeros"
    if not is_convolution(module):
        return f"a {kind}: a class of its own may compute something else"
    if is_supported(module):
        return "not swapped: swap was not called, or filter_fn said no"
    if module.groups == 1:
        return "dense with dilation: no kernel"
    if module.groups == module.in_channels:
        return "several filters for each channel: no kernel"
    return "groups of several channels: no kernel"


def _note(model: nn.Module, rows: Sequence[Row]) -> str:
    notes = []
    if not rows:
        notes.append("It has no convolutions.")
    elif not any(row.runs_as for row in rows):
        notes.append("Nothing of it runs on fastconv: it is as fast as it was.")
    if any(module.training for module in model.modules()):
        notes.append("It is in train mode; the columns before the last two are for eval().")
    if any(p.requires_grad for p in model.parameters()):
        notes.append("These also need torch.no_grad() or torch.inference_mode().")
    return " ".join(notes)
