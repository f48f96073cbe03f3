"""Which dtypes the kernels take, and which they compute a call in.

On the CPU maps are float32, or bfloat16 where the CPU has instructions for it; maps of bfloat16 on
other CPUs, and of float16, are converted to float32 and back. On a GPU all three are as they are.
Sums are float32 always.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from . import backend

DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))

# Of the calls for which weights are being packed; None: that of each weight.
_wanted: ContextVar[torch.dtype | None] = ContextVar("wanted", default=None)


def computed_in(dtype: torch.dtype, device: str = "cpu") -> torch.dtype:
    """The dtype of the maps inside kernels for maps of a dtype outside."""
    own = device == "cuda" or (dtype is torch.bfloat16 and backend.has_bfloat16)
    return dtype if own else torch.float32


def autocast_dtype(device: str = "cpu") -> torch.dtype | None:
    """The dtype that autocast asks for on a type of device; None where it is off."""
    if not torch._C._is_any_autocast_enabled() or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def result_dtype(input: Tensor) -> torch.dtype:
    """The dtype of a call's result."""
    return autocast_dtype(input.device.type) or input.dtype


def casting(input: Tensor) -> torch.dtype | None:
    """The same; None for float32 outside of autocast, where nothing is cast."""
    wanted = autocast_dtype(input.device.type)
    if wanted is None and input.dtype is not torch.float32:
        return input.dtype
    return wanted


def is_cast(input: Tensor | None) -> bool:
    """Whether a call on this input is computed in another dtype than it comes in."""
    if input is None:
        return False
    device = input.device.type
    if autocast_dtype(device) is not None:
        return True
    return computed_in(input.dtype, device) is not input.dtype


@contextmanager
def packing_for(dtype: torch.dtype) -> Iterator[None]:
    """Inside, weights of any dtype are packed for calls with results of this one."""
    token = _wanted.set(dtype)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> torch.dtype | None:
    """What :func:`packing_for` asks for, None outside of it."""
    return _wanted.get()


def type_code(weight: Tensor | None) -> int:
    """The number that the native packing ops have for the maps of this weight."""
    dtype = torch.float32 if weight is None else weight.dtype
    return int(computed_in(wanted() or dtype) is torch.bfloat16)
