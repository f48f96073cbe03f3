"""Finds and loads the compiled op libraries that lie beside the package, once, at import."""

from __future__ import annotations

import ctypes
import warnings
from pathlib import Path

import torch

try:
    from . import _C as _C
except ImportError:  # not built, or built for another Python: everything works without it
    _C = None  # type: ignore[assignment]

_DIRECTORY = Path(__file__).parent


def _load(name: str) -> str | None:
    """Loads one op library; returns why it cannot be used, or None."""
    path = _DIRECTORY / name
    if not path.exists():
        return f"{path} does not exist: fastconv was installed without its compiled part"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return str(error.__cause__ or error)  # the cause is the loader's own message
    return None


def is_loaded() -> bool:
    """Whether the CPU ops (``torch.ops.fastconv.*``) are there."""
    return _cpu_error is None


def load_error() -> str | None:
    """Why the CPU ops are not there; None if they are."""
    return _cpu_error


def library_path() -> Path | None:
    """The loaded CPU library."""
    return _DIRECTORY / _CPU if is_loaded() else None


def cuda_is_loaded() -> bool:
    """Whether the CUDA library is there; asking does not initialize CUDA."""
    return _cuda_error is None


def cuda_path() -> Path | None:
    """The loaded CUDA library."""
    return _DIRECTORY / _CUDA if cuda_is_loaded() else None


def cuda_load_error() -> str | None:
    """Why the CUDA library is not there; None if it is."""
    return _cuda_error


def cuda_build_info() -> str | None:
    """Toolkit and architectures of the loaded CUDA library."""
    if not cuda_is_loaded():
        return None
    function = ctypes.CDLL(str(_DIRECTORY / _CUDA)).fastconv_cuda_build_info
    function.restype = ctypes.c_char_p
    return function().decode()


_CPU = "libfastconv_cpu.so"
_CUDA = "libfastconv_cuda.so"

if _C is not None:
    _C.isa()  # raises now if FASTCONV_ISA names what this CPU cannot run

_cpu_error = _load(_CPU)
if _cpu_error is not None:
    warnings.warn(
        f"fastconv falls back to plain PyTorch, its compiled ops are missing: {_cpu_error}",
        RuntimeWarning,
        stacklevel=2,
    )

if torch.version.cuda is None:
    _cuda_error: str | None = "this PyTorch is built without CUDA"
elif _cpu_error is not None:
    _cuda_error = "the CPU library, which declares the ops, is not loaded"
else:
    _cuda_error = _load(_CUDA)
