"""What it means for an op to be right. The bodies of the tests that every op has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import fastconv
from fastconv import reference

from .cases import CASES, Case, tensors_of

# The one tolerance: no error may be twice that of PyTorch in the same dtype, but for last bits.
FACTOR = 2
LAST_BITS = 16


def assert_as_accurate(ours: Tensor, theirs: Tensor, truth: Tensor, what: str = "output") -> None:
    """Our error is at most twice PyTorch's, against the truth in float64, wherever they are."""
    ours, theirs, truth = (tensor.cpu() for tensor in (ours, theirs, truth))
    assert ours.shape == truth.shape, what
    assert ours.dtype == theirs.dtype, what
    if truth.numel() == 0:
        return
    assert not ours.isnan().any(), f"{what}: NaN, so some of it was never written"
    scale = truth.abs().max().clamp(min=1).item()
    allowed = FACTOR * (theirs.double() - truth).abs().max().item()
    allowed += LAST_BITS * torch.finfo(ours.dtype).eps * scale
    error = (ours.double() - truth).abs().max().item()
    assert error <= allowed, (
        f"{what}: error {error:.3g} of values up to {scale:.3g}, {allowed=:.3g}"
    )


def assert_forward(case: Case, layout: str, dtype: torch.dtype = torch.float32) -> None:
    arguments = case.arguments(dtype, layout)
    with torch.no_grad():
        output = run(case, arguments)
        again = run(case, arguments)  # from the cache, where there is one
        theirs, truth = _expected(case, layout == "expanded", dtype)
    assert_as_accurate(output, theirs, truth)
    assert torch.equal(output, again)
    if output.dim() == 4:
        assert output.is_contiguous(memory_format=torch.channels_last)


def assert_backward(case: Case, dtype: torch.dtype = torch.float32) -> None:
    ours, theirs = (case.arguments(dtype, grad=True) for _ in range(2))
    truth = case.arguments(torch.float64, grad=True, device="cpu")
    named = tensors_of(ours)
    output = run(case, ours)
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    grad_output = grad_output.to(dtype)
    gradients = torch.autograd.grad(output, list(named.values()), grad_output.to(output.device))
    expected = []
    for arguments in (theirs, truth):
        output = getattr(reference, case.op)(**arguments)
        sources = list(tensors_of(arguments).values())
        expected.append(torch.autograd.grad(output, sources, grad_output.to(output)))
    for name, gradient, pytorch_s, float64 in zip(named, gradients, *expected, strict=True):
        assert_as_accurate(gradient, pytorch_s, float64, f"gradient of {name}")


def assert_partial_backward(case: Case) -> None:
    """Where only one argument wants a gradient, only it gets one."""
    for name in case.shapes:
        arguments = case.arguments()
        tensor = tensors_of(arguments)[name].requires_grad_()
        run(case, arguments).sum().backward()
        assert tensor.grad is not None, name
        assert all(t.grad is None for n, t in tensors_of(arguments).items() if n != name)


def assert_gradcheck(case: Case) -> None:
    arguments = case.arguments(torch.float64, grad=True)
    named = tensors_of(arguments)

    def function(*tensors: Tensor) -> Tensor:
        return run(case, case.gathered(dict(zip(named, tensors, strict=True))))

    assert torch.autograd.gradcheck(function, list(named.values()))


def assert_opcheck(case: Case, layout: str, grad: bool) -> None:
    """PyTorch's own checks of schema, fake and derivatives, on what the function really calls."""
    with _Calls() as calls, torch.set_grad_enabled(grad):
        run(case, case.arguments(layout=layout, grad=grad))
    ops = [(op, args) for op, args in calls.made if op.namespace == "fastconv"]
    assert ops
    for op, args in ops:
        wanted = grad and not op._opname.startswith("pack")
        opcheck(op, tuple(_leaf(value, wanted) for value in args))


def assert_compiles(case: Case, backend: str = "aot_eager") -> None:
    """One graph for all sizes, with the results of the eager call, and of its gradients."""
    torch._dynamo.reset()
    compiled = torch.compile(
        getattr(fastconv, case.op), fullgraph=True, dynamic=True, backend=backend
    )
    with torch.no_grad():
        arguments = case.arguments()
        torch.testing.assert_close(compiled(**arguments), run(case, arguments))
    ours, theirs = case.arguments(grad=True), case.arguments(grad=True)
    compiled(**ours).square().sum().backward()
    run(case, theirs).square().sum().backward()
    for (name, a), b in zip(tensors_of(ours).items(), tensors_of(theirs).values(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")


def assert_rejects(op: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    """The op's first case with some arguments changed; a callable changes the argument it had."""
    arguments = CASES[op][0].arguments()
    device = arguments["input"].device
    for name, change in changes.items():
        new = change(arguments[name]) if callable(change) else _moved(change, device)
        arguments[name] = new
    message = message.replace("device, cpu,", f"device, {device},")
    with pytest.raises(error, match=f"^{op}: {message}"):
        getattr(fastconv, op)(**arguments)


def run(case: Case, arguments: dict[str, Any]) -> Tensor:
    function: Callable[..., Tensor] = getattr(fastconv, case.op)
    if case.native:
        return function(**arguments)
    with fastconv.use_backend("auto"):
        return function(**arguments)


_results: dict[tuple[int, bool, torch.dtype], tuple[Tensor, Tensor]] = {}


def _expected(case: Case, expanded: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """PyTorch's result and the truth, of the CPU: it takes most of the time, so once for all."""
    key = (id(case), expanded, dtype)
    if key not in _results:
        arguments = case.arguments(dtype, "expanded" if expanded else "contiguous")
        function = getattr(reference, case.op)
        exactly = _moved(arguments, "cpu", torch.float64)
        _results[key] = function(**arguments).cpu(), function(**exactly)
    return _results[key]


def _moved(value: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """All tensors of nested arguments on a device, and in a dtype if one is given."""
    if isinstance(value, Tensor):
        return value.to(device, dtype or value.dtype)
    if isinstance(value, dict):
        return {key: _moved(inner, device, dtype) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(inner, device, dtype) for inner in value)
    return value


def _leaf(value: Any, grad: bool) -> Any:
    if isinstance(value, (list, tuple)):
        return [_leaf(inner, grad) for inner in value]
    return value.detach().requires_grad_(grad) if isinstance(value, Tensor) else value


class _Calls(TorchDispatchMode):
    """Records the ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made.append((func, args))
        return func(*args, **(kwargs or {}))
