"""Which backend runs a call, and why not another."""

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.autograd import forward_ad

from . import _library

NAMES = ("auto", "native", "reference", "triton", "cuda")

# Why the compiled CPU ops are not there, or None. They are loaded once, at import.
NATIVE_MISSING: str | None = None
if not _library.is_loaded():
    NATIVE_MISSING = f"the compiled ops are missing: {_library.load_error()}"

# Grows with every change of the instruction set: packed weights belong to one of them.
isa_generation = 0


# Whether this instruction set has kernels for maps of bfloat16.
has_bfloat16 = NATIVE_MISSING is None and bool(torch.ops.fastconv.has_kernels(1))


class BackendError(RuntimeError):
    """The backend that was asked for cannot run this call; the message says why."""


def checked(name: str, where: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{where} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


_active = checked(os.environ.get("FASTCONV_BACKEND") or "auto", "FASTCONV_BACKEND")


def active_backend() -> str:
    """The backend that calls are now asked to run on."""
    return _active


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Chooses the backend of all calls inside a ``with`` block, in every thread of the process.

    ``"auto"`` takes the first that can run a call, and plain PyTorch where none can. With any other
    name a call that this backend cannot run raises :class:`BackendError` with the reason.
    The environment variable ``FASTCONV_BACKEND`` sets the backend outside of such blocks.

    Args:
        name: "auto", "native" (compiled CPU kernels), "triton" or "cuda" (kernels for a GPU in
            Triton and in CUDA C++) or "reference" (plain PyTorch)

    Example:
        >>> with fastconv.use_backend("reference"):
        ...     expected = model(image)
    """
    global _active
    previous, _active = _active, checked(name, "use_backend: name")
    try:
        yield
    finally:
        _active = previous


def choose(
    op: str, limit: str | None = None, wish: str = "auto", device: torch.device | None = None
) -> bool:
    """Whether fastconv's kernels run this call; False means the reference does.

    Args:
        op: name for the message.
        limit: why the kernels cannot run this call, None if they can.
        wish: the backend of this module, where none is active for all.
        device: of the tensors; None for the CPU.
    """
    name = wish if _active == "auto" else _active
    if name == "reference":
        return False
    limit = limit or NATIVE_MISSING or _surroundings() or misfit(wish, device)
    if limit is None:
        return True
    if name == "auto":
        return False
    raise BackendError(f"{op}: backend {name!r} cannot run this call: {limit}")


def misfit(wish: str, device: torch.device | None) -> str | None:
    """Why the active backend, or the one wished for, has nothing for a device; None if it has."""
    name = wish if _active == "auto" else _active
    if device is None or device.type != "cuda":
        if name in ("auto", "native") or (name == "triton" and interprets()):
            return None
        return "the input is on the CPU, and the kernels are for a GPU"
    if name == "native":
        return "the input is on a GPU, and the kernels are for the CPU"
    reasons = {"triton": triton_missing(), "cuda": _library.cuda_load_error()}
    missing = [reason for kind, reason in reasons.items() if name in ("auto", kind)]
    return None if None in missing else "; ".join(map(str, missing))


@functools.cache
def triton_missing() -> str | None:
    """Why Triton's kernels cannot be used, None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    return None


def interprets() -> bool:
    """Whether Triton's kernels run on the CPU, in its interpreter, because TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET") == "1" and triton_missing() is None


# What a module asks for, for the calls that it makes.
_module_wish: ContextVar[str] = ContextVar("module_wish", default="auto")


def wish() -> str:
    """The backend that the calls of ops are asked to run on, here."""
    if _active != "auto" or _is_compiling():  # in graphs, modules do not use `wishing`
        return _active
    return _module_wish.get()


@contextmanager
def wishing(name: str) -> Iterator[None]:
    """Inside, calls run on the backend that a module asks for, where none is active for all."""
    token = _module_wish.set(name)
    try:
        yield
    finally:
        _module_wish.reset(token)


def is_ordinary() -> bool:
    """Whether a call here wants no gradient and has nothing around it that must be looked at: with
    plain tensors on the CPU the native kernels run it."""
    return (
        (_active == "auto" or _active == "native")
        and not _is_compiling()
        and not _is_grad_enabled()
        and not _is_any_autocast_enabled()
        and not _is_tracing()
        and _peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and NATIVE_MISSING is None
    )


_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_is_tracing = torch._C._is_tracing
_peek_interpreter_stack = torch._C._functorch.peek_interpreter_stack


def _surroundings() -> str | None:
    """Why an opaque op does not fit where the call happens, None if it does."""
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return "an exported program has PyTorch's own ops only"
        return None
    if torch._C._is_tracing():
        return "a traced program has PyTorch's own ops only"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms see through PyTorch's own ops only"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives exist for PyTorch's own ops only"
    return None


@contextmanager
def use_isa(level: int) -> Iterator[None]:
    """Runs the native ops at an instruction set: 0 scalar, 1 AVX2, 2 AVX-512, 3 NEON. For tests.

    The setting is the process's. Cached packed weights are dropped, because they belong to the
    instruction set that packed them.
    """
    previous = torch.ops.fastconv.isa(-1)
    _set_isa(level)
    try:
        yield
    finally:
        _set_isa(previous)


def _set_isa(level: int) -> None:
    global isa_generation, has_bfloat16
    isa_generation += 1
    torch.ops.fastconv.isa(level)
    has_bfloat16 = bool(torch.ops.fastconv.has_kernels(1))
