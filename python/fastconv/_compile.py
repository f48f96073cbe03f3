"""``torch.compile(model, backend="fastconv")``: native ops in the graph, inductor for the rest."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from . import backend
from .activation import CODES
from .folding import fold_batch_norm
from .nn._parts import Stage, is_supported_shape
from .nn._units import native_stages

_ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu6",
    F.hardswish: "hardswish",
    F.silu: "silu",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    F.hardsigmoid: "hardsigmoid",
    F.tanh: "tanh",
    torch.tanh: "tanh",
}
_ADDITIONS = (operator.add, operator.iadd, torch.add)


class _Spec(NamedTuple):
    """What of a stage is no tensor; `norm_eps` is None without a norm."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    norm_eps: float | None
    activation: int


class _Found(NamedTuple):
    """A convolution with what follows it, in a graph."""

    spec: _Spec
    input: fx.Node
    tensors: tuple[fx.Node | None, ...]  # weight, bias; of the norm: mean, variance, weight, bias
    last: fx.Node


def fastconv(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """A backend of torch.compile, known by the name "fastconv" where fastconv is installed.

    Convolutions with their BatchNorms (in eval mode) and activations, and the blocks that they
    make, become native ops, where no gradient is wanted; the rest of the graph is inductor's.
    Weights are folded and packed in the graph, at each call. With
    ``torch._inductor.config.freezing = True`` that is done once, at compilation; later changes of
    the weights are then not seen.

    Example:
        >>> compiled = torch.compile(model.eval(), backend="fastconv")
        >>> with torch.no_grad():
        ...     compiled(images)
    """
    from torch._inductor.compile_fx import compile_fx

    wants_gradient = torch.is_grad_enabled() and any(
        isinstance(tensor, Tensor) and tensor.requires_grad for tensor in example_inputs
    )
    if not wants_gradient and backend.choose("torch.compile"):
        rewrite(graph)
    compiled: Any = compile_fx(graph, list(example_inputs))
    return compiled


def rewrite(graph: fx.GraphModule) -> int:
    """Puts native ops into a graph of torch.compile's, in place.

    Returns:
        the number of convolutions that became native
    """
    matched = [_match(node) for node in graph.graph.nodes]
    found = {one.last: one for one in matched if one is not None}
    for row in _rows(found):
        residual = _addition(row)
        tensors = [tensor for one in row for tensor in one.tensors]
        specs = tuple(one.spec for one in row)
        old = row[-1].last if residual is None else residual
        with graph.graph.inserting_after(old):
            arguments = (specs, residual is not None, row[0].input, *tensors)
            new = graph.graph.call_function(run_stages, arguments)
        new.meta = dict(old.meta)
        old.replace_all_uses_with(new)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return len(found)


def run_stages(
    specs: Sequence[_Spec], residual: bool, input: Tensor, *tensors: Tensor | None
) -> Tensor:
    """Stages one after the other, in as few ops as possible, and the input added if `residual`."""
    stages: list[Any] = []
    for index, spec in enumerate(specs):
        weight, bias, mean, variance, gamma, beta = tensors[6 * index : 6 * index + 6]
        assert weight is not None
        source = weight
        if spec.norm_eps is not None and mean is not None and variance is not None:
            weight, bias = fold_batch_norm(weight, bias, mean, variance, gamma, beta, spec.norm_eps)
        vertical, horizontal = spec.padding
        padding = (vertical, vertical, horizontal, horizontal)
        stages.append(
            Stage(
                weight,
                bias,
                spec.stride,
                padding,
                spec.dilation,
                spec.groups,
                spec.activation,
                source,
            )
        )
    native = native_stages(stages, residual, True)
    assert native is not None
    return native.run()(input)


def _match(node: fx.Node) -> _Found | None:
    """What begins with this node, if that is a convolution that a native op computes."""
    if node.target not in (torch.conv2d, F.conv2d):
        return None
    values: dict[str, Any] = dict(zip(_CONV2D, node.args, strict=False))
    values |= node.kwargs
    input, weight, bias = values["input"], values["weight"], values.get("bias")
    spec = _spec(values)
    if spec is None or not all(_is_native(tensor) for tensor in (input, weight, bias)):
        return None
    if input.meta["example_value"].dim() != 4 or _is_written_to(input, node):
        return None
    kernel = tuple(weight.meta["example_value"].shape)
    if not is_supported_shape(kernel, spec.groups, spec.dilation):
        return None
    tensors = [weight, bias, None, None, None, None]
    last = node
    norm = _only_user(last)
    if norm is not None and norm.target is F.batch_norm and norm.args[0] is last:
        norm_values: dict[str, Any] = dict(zip(_BATCH_NORM, norm.args, strict=False))
        norm_values |= norm.kwargs
        statistics = [norm_values.get(name) for name in _BATCH_NORM[1:5]]
        usable = None not in statistics[:2] and all(_is_native(tensor) for tensor in statistics)
        if usable and not norm_values.get("training", False):
            tensors[2:] = statistics
            spec = spec._replace(norm_eps=float(norm_values.get("eps", 1e-5)))
            last = norm
    activation = _only_user(last)
    name = None if activation is None else _activation(activation)
    if activation is not None and name is not None:
        spec = spec._replace(activation=CODES[name])
        last = activation
    return _Found(spec, input, tuple(tensors), last)


_CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_BATCH_NORM = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)


def _spec(values: dict[str, Any]) -> _Spec | None:
    numbers = [values.get("stride", 1), values.get("padding", 0), values.get("dilation", 1)]
    pairs = [(n, n) if isinstance(n, int) else n for n in numbers]
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        return None  # padding="same"
    stride, padding, dilation = ((int(pair[0]), int(pair[1])) for pair in pairs)
    return _Spec(stride, padding, dilation, int(values.get("groups", 1)), None, CODES["none"])


def _activation(node: fx.Node) -> str | None:
    if node.target is F.hardtanh:  # what torch.nn.ReLU6 calls
        values: dict[str, Any] = {"min_val": -1.0, "max_val": 1.0}
        values |= dict(zip(("input", "min_val", "max_val"), node.args, strict=False))
        values |= node.kwargs
        return "relu6" if (values["min_val"], values["max_val"]) == (0, 6) else None
    if node.target is F.gelu:
        return "gelu" if node.kwargs.get("approximate", "none") == "none" else None
    return _ACTIVATIONS.get(node.target)


def _is_native(node: Any) -> bool:
    if node is None:
        return True
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.is_cpu


def _is_written_to(node: fx.Node, reader: fx.Node) -> bool:
    """Whether others than `reader` may change this value in place: then it matters when it is
    read."""
    return any(
        (user.target in _IN_PLACE and user.args[0] is node)
        or user.kwargs.get("inplace") is True
        or any(value is True for value in user.args)
        or str(user.target).rstrip(">").endswith("_")
        for user in node.users
        if user is not reader
    )


_IN_PLACE = (operator.iadd, operator.imul, operator.isub, operator.itruediv, operator.setitem)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _rows(found: dict[fx.Node, _Found]) -> list[list[_Found]]:
    """Stages of which each is the only user of the one before."""
    rows: list[list[_Found]] = []
    ends: dict[fx.Node, list[_Found]] = {}
    for one in found.values():
        row = ends.pop(one.input, None) if len(one.input.users) == 1 else None
        if row is None:
            rows.append(row := [])
        row.append(one)
        ends[one.last] = row
    return rows


def _addition(row: Sequence[_Found]) -> fx.Node | None:
    """The node that adds a row's input to its output and is the only one to use that."""
    node = _only_user(row[-1].last)
    if node is None or node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
        return None
    if set(node.args) != {row[-1].last, row[0].input}:
        return None
    if node.target is operator.iadd and node.args[0] is not row[-1].last:
        return None  # which changes the input
    input, output = (n.meta.get("example_value") for n in (row[0].input, row[-1].last))
    if not isinstance(input, Tensor) or not isinstance(output, Tensor):
        return None
    return node if input.shape == output.shape else None
