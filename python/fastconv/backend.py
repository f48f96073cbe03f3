"""Which backend runs a call, and why not another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
        name: "auto", "native" (compiled CPU kernels) or "reference" (plain PyTorch). "triton" and
            "cuda" are known, but this version has no GPU kernels.

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


def choose(op: str, limit: str | None = None, wish: str = "auto") -> bool:
    """Whether the native kernels run this call; False means the reference does.

    Args:
        op: name for the message.
        limit: why the native kernels cannot run this call, None if they can.
        wish: the backend of this module, where none is active for all.
    """
    name = wish if _active == "auto" else _active
    if name == "reference":
        return False
    if name == "auto" or name == "native":
        limit = limit or NATIVE_MISSING or _surroundings()
        if limit is None:
            return True
        if name == "auto":
            return False
    else:
        limit = "this version has no GPU kernels"
    raise BackendError(f"{op}: backend {name!r} cannot run this call: {limit}")


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
