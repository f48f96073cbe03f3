"""What all ops share: argument checks, and registration of fakes, derivatives and FLOP formulas."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import register_flop_formula

from .. import _precision, backend
from ..activation import CODES, NAMES
from ..folding import packed, packed_float32
from ..reference import Padding, Size2, resolve_padding
from ._derivatives import needs_output

_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_PLAIN_OR_NONE = _PLAIN | {type(None)}
_CPU_WISHES = ("auto", "native")
OutputShape = Callable[..., tuple[Any, ...]]  # from the arguments, which it checks
_MAPS = frozenset(("input", "residual", "input_scale"))  # the arguments that are no weights


def require(ok: Any, op: str, arg: str, rule: str, got: Any, *values: Any) -> None:
    """Raises "<op>: <arg> must <rule>, got <got>" unless ok; {} in the rule stand for values."""
    if type(ok) is bool or isinstance(ok, Tensor):  # a tensor where sizes are traced
        if not ok:
            raise ValueError(_message(op, arg, rule, got, values))
    else:  # a symbolic size of a fake tensor
        torch._check_value(ok, lambda: _message(op, arg, rule, got, values))


def _message(op: str, arg: str, rule: str, got: Any, values: Sequence[Any]) -> str:
    got = list(got) if isinstance(got, torch.Size) else got
    return f"{op}: {arg} must {rule.format(*values)}, got {got}"


def size2(op: str, arg: str, value: Size2, minimum: int) -> tuple[int, int]:
    """A checked pair from an int or a pair."""
    if type(value) is int:
        if value >= minimum:
            return value, value
    elif isinstance(value, (tuple, list)) and [type(n) for n in value] == [int, int]:
        first, second = value
        if first >= minimum and second >= minimum:
            return first, second
    raise ValueError(f"{op}: {arg} must be an int >= {minimum} or a pair of such, got {value!r}")


def padding4(
    op: str,
    padding: Padding,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    weight_name: str = "weight",
) -> tuple[int, int, int, int]:
    """A checked (top, bottom, left, right) from an int, a pair or "same"."""
    if isinstance(padding, str):
        if padding != "same":
            raise ValueError(f'{op}: padding must be an int, a pair or "same", got {padding!r}')
        size, kernel = dims(op, "input", input)[2:], dims(op, weight_name, weight)[2:]
        return resolve_padding("same", size, kernel, stride, dilation)
    vertical, horizontal = size2(op, "padding", padding, 0)
    return vertical, vertical, horizontal, horizontal


def activation_code(op: str, arg: str, name: str, allowed: Sequence[str] = NAMES) -> int:
    """The code of an activation's name."""
    if name not in allowed:
        raise ValueError(f"{op}: {arg} must be one of {', '.join(allowed)}, got {name!r}")
    return CODES[name]


def inspect(
    op: str, names: Sequence[str], tensors: Sequence[Tensor | None]
) -> tuple[str | None, bool]:
    """Checks types, dtypes and devices; the first tensor must be there.

    Args:
        names: of the tensors, and perhaps of others behind them

    Returns:
        why the kernels cannot take these tensors (None if they can), and whether a gradient is
        wanted.
    """
    plain, gradient, recording = True, False, torch.is_grad_enabled()
    first = tensors[0]
    if first is None:
        raise TypeError(f"{op}: {names[0]} must be a Tensor, got None")
    dtype, index = None, -1
    if type(first) in _PLAIN and (first.is_cpu or first.is_cuda):
        dtype, index = first.dtype, first.get_device()  # -1 for the CPU
    for tensor in tensors:
        if tensor is not None:
            known = type(tensor) in _PLAIN and tensor.dtype is dtype
            if known and tensor.get_device() == index and (tensor.is_cpu or tensor.is_cuda):
                if recording and tensor.requires_grad:
                    gradient = True
            else:
                plain = False
    if plain and dtype in _precision.DTYPES:
        return None, gradient
    return _inspect_closely(op, names, tensors), gradient


def _inspect_closely(op: str, names: Sequence[str], tensors: Sequence[Tensor | None]) -> str | None:
    present = [(n, t) for n, t in zip(names, tensors, strict=False) if t is not None]
    for name, tensor in present:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(tensor).__name__}")
    first_name, first = present[0]
    dtype, device = first.dtype, first.device
    require(first.is_floating_point(), op, first_name, "have a floating-point dtype", dtype)
    limit = None
    for name, tensor in present:
        if not torch._C._is_any_autocast_enabled():
            same = tensor.dtype == dtype
            require(same, op, name, "have {}'s dtype, {}", tensor.dtype, first_name, dtype)
        same = tensor.device == device
        require(same, op, name, "be on {}'s device, {}", tensor.device, first_name, device)
        if device.type not in ("cpu", "cuda"):
            limit = f"{name} is on {device}, and the kernels are for the CPU and CUDA"
        elif tensor.dtype not in _precision.DTYPES:
            limit = f"{name} is {tensor.dtype}, and the kernels have no such type"
        elif type(tensor) not in _PLAIN:
            limit = f"{name} is a {type(tensor).__name__}, and the kernels take plain tensors"
    return limit


def dims(op: str, name: str, tensor: Tensor | None, count: int = 4) -> tuple[Any, ...]:
    """The sizes of a tensor that must have `count` dimensions."""
    if not isinstance(tensor, Tensor):
        got = None if tensor is None else type(tensor).__name__
        raise TypeError(f"{op}: {name} must be a Tensor, got {got}")
    shape = tensor.shape
    if len(shape) != count:
        raise ValueError(f"{op}: {name} must have {count} dimensions, got shape {list(shape)}")
    return shape


def input_dims(op: str, input: Tensor) -> tuple[Any, Any, Any, Any]:
    """N, C, H, W of a batch of at least 0 images of at least 1 x 1."""
    n, c, h, w = dims(op, "input", input)
    rule = "have shape (N, C, H, W) with C, H, W at least 1"
    require(c > 0 and h > 0 and w > 0, op, "input", rule, input.shape)
    return n, c, h, w


def check_vector(op: str, name: str, tensor: Tensor | None, size: Any) -> None:
    """An optional (size,) tensor, such as a bias."""
    if tensor is not None:
        require(tensor.shape == (size,), op, name, "have shape ({},)", tensor.shape, size)


def check_pointwise_weight(op: str, name: str, weight: Tensor, channels: Any) -> Any:
    """(K, channels, 1, 1); returns K."""
    k, c, kh, kw = dims(op, name, weight)
    ok = c == channels and kh == 1 and kw == 1 and k > 0
    require(ok, op, name, "have shape (K, {}, 1, 1)", weight.shape, channels)
    return k


def check_depthwise_weight(
    op: str, name: str, weight: Tensor, channels: Any
) -> tuple[Any, tuple[Any, Any]]:
    """(channels * m, 1, KH, KW); returns channels * m and (KH, KW)."""
    k, c, kh, kw = dims(op, name, weight)
    ok = k % channels == 0 and k > 0 and c == 1 and kh > 0 and kw > 0
    require(ok, op, name, "have shape ({} * m, 1, KH, KW)", weight.shape, channels)
    return k, (kh, kw)


def check_residual(op: str, residual: Tensor | None, shape: tuple[Any, ...]) -> None:
    if residual is not None:
        require(
            residual.shape == shape, op, "residual", "have shape {}", residual.shape, list(shape)
        )


def window_size(
    op: str,
    size: Sequence[Any],
    kernel: Sequence[Any],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Any, Any]:
    """OH, OW of a convolution over H, W = size."""
    h, w = size
    spare_h = h + padding[0] + padding[1] - dilation[0] * (kernel[0] - 1) - 1
    spare_w = w + padding[2] + padding[3] - dilation[1] * (kernel[1] - 1) - 1
    rule = "be, with its padding, at least as large as the kernel"
    require(spare_h >= 0 and spare_w >= 0, op, "input", rule, f"{h} x {w}")
    return spare_h // stride[0] + 1, spare_w // stride[1] + 1


def multiplier_limit(args: tuple[Any, ...], output_shape: OutputShape) -> str | None:
    """Why the native kernels cannot run a depthwise convolution, args[1] being its weight; None if
    they can."""
    input, weight = args[:2]
    if input is not None and weight is not None and weight.shape[:1] == input.shape[1:2]:
        return None
    output_shape(*args)  # which may know better
    return "the kernels have one filter per channel, not several"


class Ops(NamedTuple):
    """One function of fastconv: a native op with derivatives, its twin without, and what is to be
    done where these cannot run. Both are None where the library is missing."""

    name: str
    tensors: tuple[str, ...]  # their names, in the order of call's, for messages
    arguments: tuple[str, ...]  # of output_shape and the reference
    output_shape: OutputShape
    reference: Callable[..., Tensor]
    limit: Callable[[tuple[Any, ...], OutputShape], str | None] | None
    differentiable: Any
    infer: Any

    def inference(self, pack: bool) -> Any:
        """The one without derivatives. With packed weights, that is, outside of graphs, without
        OpOverload's layer of Python."""
        return self.infer._op if pack and self.infer is not None else self.infer


def _is_on_cpu(tensor: Tensor | None) -> bool:
    return tensor is None or tensor.is_cpu


def call(
    ops: Ops,
    args: tuple[Any, ...],
    tensors: tuple[Tensor | None, ...],
    pack: Callable[..., Tensor | None],
    *weights: Tensor | None,
) -> Tensor:
    """Runs a function of fastconv on its kernels, or else on its reference.

    Args:
        args: of the native op, all but the packed weights
        tensors: all of them in args, in the order of ops.tensors; the first must be there
        weights: those that `pack` takes
    """
    if backend.is_ordinary() and backend.wish() in _CPU_WISHES:
        # Nearly all calls, and here time is counted in microseconds. Whatever else there is to say
        # of the arguments, the native op says too, and then it is said below as a ValueError. (Of a
        # tensor on another device it says nothing: the dispatcher takes another op.)
        input = args[0]
        is_plain = input is not None and _PLAIN_OR_NONE.issuperset(map(type, tensors))
        if is_plain and input.dtype is torch.float32 and all(map(_is_on_cpu, tensors)):
            ready = packed_float32(pack, weights)
            if ready is not None:
                try:
                    return cast(Tensor, ops.infer._op(*args, ready))
                except RuntimeError:
                    pass
    return _checked_call(ops, args, tensors, pack, *weights)


def _checked_call(
    ops: Ops,
    args: tuple[Any, ...],
    tensors: tuple[Tensor | None, ...],
    pack: Callable[..., Tensor | None],
    *weights: Tensor | None,
) -> Tensor:
    """The same with every check."""
    limit, gradient = inspect(ops.name, ops.tensors, tensors)
    if limit is None and ops.limit is not None:
        limit = ops.limit(args, ops.output_shape)
    if not backend.choose(ops.name, limit, device=args[0].device):
        ops.output_shape(*args)
        return ops.reference(**dict(zip(ops.arguments, args, strict=True)))
    if gradient:
        return _run(ops.differentiable, ops.output_shape, args)
    return _run(ops.infer, ops.output_shape, args, pack, *weights)


def _run(
    op: Any,
    output_shape: OutputShape,
    args: tuple[Any, ...],
    pack: Callable[..., Tensor | None] | None = None,
    *weights: Tensor | None,
) -> Tensor:
    """Calls a native op, with remembered packed weights where `pack` is given.

    The op checks its arguments anyway, so output_shape does only what it is faster without: it says
    the same as a ValueError or TypeError, but after the op has refused.
    """
    if args[0].is_cuda or backend.wish() == "triton":
        return _run_on_gpu(op, output_shape, args, pack is not None)
    if _precision.is_cast(args[0]):
        dtype = _precision.result_dtype(args[0])
        return _run_casting(dtype, op, output_shape, args, pack, *weights)
    if torch.compiler.is_compiling():
        output_shape(*args)
        return cast(Tensor, op(*args))
    call = op._op  # without OpOverload's layer of Python
    try:
        if pack is None:
            return cast(Tensor, call(*args))
        return cast(Tensor, call(*args, packed(pack, *weights)))
    except RuntimeError as error:
        refusal = error
    output_shape(*args)
    raise refusal


def _run_on_gpu(op: Any, output_shape: OutputShape, args: tuple[Any, ...], infers: bool) -> Tensor:
    """Calls the GPU's kernels, past the dispatcher where nothing else wants to see the call."""
    input = args[0]
    output_shape(*args)
    dtype = _precision.result_dtype(input)
    if dtype is not input.dtype or _precision.autocast_dtype(input.device.type) is not None:
        args = _converted(op, args, dtype, all_tensors=not infers)
    if torch.compiler.is_compiling() or not infers:
        if input.is_cpu:
            name = op._opname
            raise backend.BackendError(
                f"{name}: backend 'triton' cannot run this call: on the CPU, in Triton's "
                "interpreter, there are neither derivatives nor graphs"
            )
        return cast(Tensor, op(*args))
    return gpu_kernel(op)(*args)


def gpu_kernel(op: Any) -> Callable[..., Tensor]:
    """The function that runs an op on a GPU."""
    from ..gpu import ops  # which has Triton's kernels, and these are not needed on a CPU

    return cast(Callable[..., Tensor], getattr(ops, op._opname.removesuffix("_infer")))


def _run_casting(
    dtype: torch.dtype,
    op: Any,
    output_shape: OutputShape,
    args: tuple[Any, ...],
    pack: Callable[..., Tensor | None] | None,
    *weights: Tensor | None,
) -> Tensor:
    """The same with a result of this dtype, maps inside as the kernels have them."""
    output_shape(*args)
    # Where there are gradients, the weights must have the dtype of the maps, too.
    args = _converted(op, args, _precision.computed_in(dtype), all_tensors=pack is None)
    if pack is None or torch.compiler.is_compiling():
        return cast(Tensor, op(*args)).to(dtype)
    with _precision.packing_for(dtype):
        packed_weights = packed(pack, *weights)
    return cast(Tensor, op._op(*args, packed_weights)).to(dtype)


def _converted(
    op: Any, args: tuple[Any, ...], dtype: torch.dtype, *, all_tensors: bool
) -> tuple[Any, ...]:
    """The arguments with the maps, or all tensors, of a dtype."""

    def converted(name: str, value: Any) -> Any:
        if isinstance(value, (tuple, list)) and len(value) > 0 and isinstance(value[0], Tensor):
            return [converted(name, tensor) for tensor in value]
        if isinstance(value, Tensor) and (all_tensors or name in _MAPS):
            return value.to(dtype)
        return value

    names = [argument.name for argument in op._schema.arguments]
    return tuple(converted(name, value) for name, value in zip(names, args, strict=False))


def _like(gradient: Any, source: Any) -> Any:
    """A gradient with the dtype of what it belongs to; lists likewise."""
    if isinstance(gradient, list):
        return [_like(one, other) for one, other in zip(gradient, source, strict=True)]
    return gradient.to(source.dtype) if isinstance(gradient, Tensor) else None


def register(
    name: str,
    tensors: tuple[str, ...],
    *,
    output_shape: OutputShape,
    reference: Callable[..., Tensor],
    flops: Callable[..., int],
    gradients: Callable[..., list[Any]] | None = None,
    activation: str | None = None,
    limit: Callable[[tuple[Any, ...], OutputShape], str | None] | None = None,
) -> Ops:
    """Gives the native ops `name` and `name`_infer what the C++ library cannot.

    All functions take the arguments of the op's schema without `packed`: output_shape, which checks
    them too, by position, flops by position with shapes in the place of tensors, reference by name,
    and gradients, one of _derivatives.py, as one tuple.

    Args:
        tensors: their names, as :func:`call` has them
        gradients: how the kernels differentiate the op; None for PyTorch, of the reference
        activation: the argument with the code of the activation that is last
        limit: why the kernels cannot run a call with such arguments, None if they can
    """
    ops = Ops(
        name, tensors, tuple(signature(output_shape).parameters), output_shape, reference, limit,
        differentiable=None, infer=None,
    )  # fmt: skip
    if backend.NATIVE_MISSING is not None:
        return ops
    packet, infer_packet = (getattr(torch.ops.fastconv, name + end) for end in ("", "_infer"))
    arguments = [argument.name for argument in packet.default._schema.arguments]
    count = len(arguments) - (arguments[-1] == "packed")
    types = [str(argument.type) for argument in packet.default._schema.arguments]
    tensor_lists = [kind == "List[Tensor]" for kind in types[:count]]

    def fake(*args: Any, **kwargs: Any) -> Tensor:
        args = args + tuple(kwargs[name] for name in arguments[len(args) :] if name in kwargs)
        for argument, tensor in zip(arguments[:count], args, strict=False):
            if isinstance(tensor, Tensor):
                rule = "be float32, bfloat16 or float16"
                require(tensor.dtype in _precision.DTYPES, name, argument, rule, tensor.dtype)
        shape = output_shape(*args[:count])
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        first = args[0]
        return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout)

    def count_flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        args = args + tuple(kwargs[name] for name in arguments[len(args) :] if name in kwargs)
        return flops(*args[:count])

    place = arguments.index(activation) if activation is not None else 0

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        leaves, ctx.structure = pytree.tree_flatten(inputs[:count])
        ctx.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        keeps = activation is not None and needs_output(inputs[place])
        ctx.save_for_backward(output if keeps else None, *[leaves[i] for i in ctx.positions])

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        output, *tensors = ctx.saved_tensors
        if gradients is not None and grad_output.is_cpu and not torch.is_grad_enabled():
            return by_kernels(ctx, gradients, output, tensors, grad_output)
        return by_reference(ctx, tensors, grad_output)

    def by_kernels(
        ctx: Any,
        gradients: Callable[..., list[Any]],
        output: Tensor | None,
        tensors: list[Tensor],
        grad_output: Tensor,
    ) -> tuple[Any, ...]:
        leaves = list(ctx.constants)
        wanted: list[Any] = [False] * len(leaves)
        for position, saved in zip(ctx.positions, tensors, strict=True):
            leaves[position], wanted[position] = saved, saved.requires_grad
        args = tuple(pytree.tree_unflatten(leaves, ctx.structure))
        wishes = pytree.tree_unflatten(wanted, ctx.structure)
        with torch.autocast("cpu", enabled=False):
            found = gradients(args, output, grad_output, wishes)
        typed = [_like(gradient, source) for gradient, source in zip(found, args, strict=True)]
        return (*typed, *(None,) * (len(ctx.needs_input_grad) - count))

    def by_reference(ctx: Any, tensors: list[Tensor], grad_output: Tensor) -> tuple[Any, ...]:
        # Recomputes the reference and lets PyTorch differentiate it, also twice. The aliases keep
        # one tensor in two places (input and residual) apart.
        leaves, wanted = list(ctx.constants), []
        with torch.enable_grad():
            for position, saved in zip(ctx.positions, tensors, strict=True):
                leaves[position] = saved.view_as(saved)
                if saved.requires_grad:
                    wanted.append(position)
            args = pytree.tree_unflatten(leaves, ctx.structure)
            output = reference(**dict(zip(arguments, args, strict=False)))
        sources = [leaves[position] for position in wanted]
        found = torch.autograd.grad(
            output, sources, grad_output, create_graph=torch.is_grad_enabled()
        )
        grads: list[Any] = [None] * len(leaves)
        for position, grad in zip(wanted, found, strict=True):
            grads[position] = grad
        results = pytree.tree_unflatten(grads, ctx.structure)
        return tuple(
            result if tensors or isinstance(result, Tensor) else None  # None for lists of int
            for result, tensors in zip(results, tensor_lists, strict=True)
        ) + (None,) * (len(ctx.needs_input_grad) - count)  # "packed", if it was given

    for op in (packet, infer_packet):
        torch.library.register_fake(op._qualified_op_name, fake)
        register_flop_formula(op)(count_flops)
    torch.library.register_autograd(
        packet._qualified_op_name, backward, setup_context=setup_context
    )
    return ops._replace(differentiable=packet.default, infer=infer_packet.default)
