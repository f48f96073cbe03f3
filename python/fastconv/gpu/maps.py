"""What the ops on a GPU share: layouts, sizes, weights in the forms that kernels read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import _library, backend
from .choice import Candidate, choose
from .device import Gpu, gpu_of
from .weights import in_form, record

Pair = Sequence[int]


class Call(Protocol):
    """The arguments of an op."""

    @property
    def input(self) -> Tensor: ...


def channels_last(input: Tensor) -> Tensor:
    """The same, dense in channels_last memory."""
    return input.contiguous(memory_format=torch.channels_last)


def channels_last_or_none(input: Tensor | None) -> Tensor | None:
    return None if input is None else channels_last(input)


def bucket(count: int) -> int:
    """Batches of similar size share one choice: the next power of two."""
    return 1 << (count - 1).bit_length()


def empty(input: Tensor, *sizes: int) -> Tensor:
    """An uninitialized map, or matrix, of the input's dtype."""
    layout = torch.channels_last if len(sizes) == 4 else torch.contiguous_format
    return torch.empty(sizes, dtype=input.dtype, device=input.device, memory_format=layout)


def floats_like(map: Tensor, *sizes: int) -> Tensor:
    """Uninitialized float32 values, where a map is."""
    return torch.empty(sizes, dtype=torch.float32, device=map.device)


def zeros(map: Tensor, *sizes: int) -> Tensor:
    """The same, zero."""
    return torch.zeros(sizes, dtype=torch.float32, device=map.device)


def empty_gradients(
    input: Tensor, weight: Tensor, wanted: Sequence[bool], rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of a convolution in training whose maps have no pixels; rows: of the sums."""
    sizes = (tuple(weight.shape), (weight.shape[0],), (rows, input.shape[1]))
    grad_weight, grad_bias, sums = (
        zeros(input, *(size if wish else (0,)))
        for size, wish in zip(sizes, wanted[1:], strict=True)
    )
    grad_input = empty(input, *input.shape) if wanted[0] else zeros(input, 0)
    return grad_input, grad_weight, grad_bias, sums


def has_triton(gpu: Gpu) -> bool:
    """Whether Triton's kernels run there."""
    return gpu.has_triton and backend.triton_missing() is None


def has_cuda(input: Tensor) -> bool:
    """Whether the CUDA library's kernels run where this tensor is."""
    return input.is_cuda and _library.cuda_is_loaded()


def in_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight or bias, dense and of a dtype."""
    if weight.dtype is dtype and weight.is_contiguous():
        return weight
    return in_form(now_in_dtype, weight, dtype)


def like(weight: Tensor, input: Tensor) -> Tensor:
    """The same, of the input's dtype."""
    return in_dtype(weight, input.dtype)


def like_or_none(bias: Tensor | None, input: Tensor) -> Tensor | None:
    return None if bias is None else in_dtype(bias, input.dtype)


def floats(bias: Tensor | None) -> Tensor | None:
    """A bias as dense float32."""
    return None if bias is None else in_dtype(bias, torch.float32)


def channels_innermost(weight: Tensor) -> Tensor:
    """Depthwise filters (C, 1, KH, KW), float32, as a [KH, KW, C] array in memory."""
    return in_form(now_innermost, weight)


def now_in_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The same, made anew: for a weight that changes in every step."""
    return weight.detach().to(dtype).contiguous()


def now_innermost(weight: Tensor) -> Tensor:
    """The same, made anew."""
    filters = weight.detach().float().permute(2, 3, 1, 0).contiguous()
    return filters.permute(3, 2, 0, 1)


def output_size(
    size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)
) -> tuple[int, int]:
    """OH, OW of checked arguments."""
    height, width = (
        (size[i] + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (kernel[i] - 1) - 1)
        // stride[i]
        + 1
        for i in (0, 1)
    )
    return height, width


def run(
    op: str,
    call: Call,
    key: tuple[Any, ...],
    candidates: Callable[[Gpu], Sequence[Candidate]],
    weight: Tensor,
) -> Any:
    """Runs a call on the kernel that is chosen for it, and notes the choice beside the weight.

    Args:
        key: all that the speed depends on beside the GPU and the dtype
        candidates: made at the first call of this key
        weight: the op's first
    """
    gpu = gpu_of(call.input.device)
    key = (str(call.input.dtype).removeprefix("torch."), *key)
    chosen = choose(op, gpu, key, lambda: candidates(gpu), call)
    kept = record(weight)
    if kept is not None:
        kept.choices[op] = chosen
    if not call.input.is_cuda:
        return chosen.run(call)
    with torch.cuda.device(call.input.device):
        return chosen.run(call)
