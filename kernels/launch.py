"""What the launches share."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


def unit_of(channels: int) -> int:
    """The largest power of two up to 16 that divides a number of channels.

    Triton knows by itself whether an argument is a multiple of 16. Rows of 24 or 40 channels begin
    at multiples of 8 elements, which is enough for 16-byte loads, if the kernel is told.
    """
    return math.gcd(channels, 16)


def empty_map(input: Tensor, *sizes: int) -> Tensor:
    """An uninitialized channels_last map of the input's dtype, (N, C, H, W)."""
    return torch.empty(
        sizes, dtype=input.dtype, device=input.device, memory_format=torch.channels_last
    )


def in_parts(blocks: int, most: int) -> tuple[int, int]:
    """How many parts some blocks are shared out to, at most so many, and the blocks of each part;
    the last may have fewer, but none is empty."""
    per_part = triton.cdiv(blocks, max(1, min(blocks, most)))
    return triton.cdiv(blocks, per_part), per_part


def window_size(
    input: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """OH, OW; padding: top, bottom, left, right."""
    spare_h = input.shape[2] + padding[0] + padding[1] - dilation[0] * (kernel[0] - 1) - 1
    spare_w = input.shape[3] + padding[2] + padding[3] - dilation[1] * (kernel[1] - 1) - 1
    return spare_h // stride[0] + 1, spare_w // stride[1] + 1


def dot_precision(input: Tensor) -> str:
    """How :func:`dot` multiplies: float32 as TF32 only where PyTorch's convolutions may."""
    if input.dtype is torch.bfloat16 and triton.knobs.runtime.interpret:
        return "float32"
    allowed = torch.backends.cudnn.allow_tf32 or input.dtype is not torch.float32
    return "tf32" if allowed else "ieee"


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b, float32."""
    if PRECISION == "float32":  # the interpreter would multiply the bits of bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)
