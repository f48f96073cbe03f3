"""output[n, k] = mean over H, W of activation(conv1x1(input) + bias), the map never stored.

A program owns one image and BLOCK_N output channels, and goes through the pixels BLOCK_M at a time,
always in the same order. Bytes moved: the input once for each block of channels, from the L2 cache
after the first; the weight once for each image, likewise.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .launch import dot, dot_precision, unit_of


class Config(NamedTuple):
    """Sizes of a tile: pixels, output channels, input channels at a time."""

    block_m: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int


def configs(batch: int, pixels: int, c: int, k: int, dtype: torch.dtype) -> list[Config]:
    """Candidates for `batch` images of this many pixels, the best guess first."""
    block_m = min(64, max(16, triton.next_power_of_2(pixels)))
    block_n = min(128, max(16, triton.next_power_of_2(k)))
    block_c = min(32 if dtype is torch.float32 else 64, max(16, triton.next_power_of_2(c)))
    # Of float32 half as much fits into registers.
    warps = 8 if block_n > 64 or dtype is torch.float32 else 4
    found = [
        Config(block_m, block_n, block_c, warps, 3),
        Config(block_m, min(64, block_n), block_c, warps, 4),
        Config(block_m, min(32, block_n), block_c, 4, 4),
    ]
    return list(dict.fromkeys(found))


def pointwise_conv2d_pool(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: int, config: Config
) -> Tensor:
    """Launches the kernel; input is dense channels_last, weight (K, C, 1, 1)."""
    n, c, h, w = input.shape
    k = weight.shape[0]
    output = torch.empty((n, k), dtype=input.dtype, device=input.device)
    programs = n * triton.cdiv(k, config.block_n)
    if programs > 0:
        unit = unit_of(c)
        _kernel[(programs,)](
            input,
            weight,
            bias,
            output,
            h * w,
            c // unit,
            k,
            UNIT=unit,
            ACTIVATION=activation,
            PRECISION=dot_precision(input),
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return output


@triton.jit
def _kernel(
    input,  # [N, pixels, C]
    weight,  # [K, C]
    bias,  # [K] or None
    output,  # [N, K]
    pixels,
    c_units,
    out_channels,
    UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels = c_units * UNIT
    columns = tl.cdiv(out_channels, BLOCK_N)
    program = tl.program_id(0)
    image = (program // columns).to(tl.int64)
    k = program % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    is_k = k < out_channels
    input += image * pixels * channels
    shift = tl.zeros((BLOCK_N,), tl.float32)
    if bias is not None:
        shift = tl.load(bias + k, is_k, 0.0)

    sums = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, pixels, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        is_row = row < pixels
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for begin in range(0, channels, BLOCK_C):
            c = begin + tl.arange(0, BLOCK_C)
            is_c = c < channels
            place = row.to(tl.int64)[:, None] * channels + c[None, :]
            a = tl.load(input + place, is_row[:, None] & is_c[None, :], 0.0)
            b = tl.load(
                weight + k[None, :] * channels + c[:, None], is_c[:, None] & is_k[None, :], 0.0
            )
            total = dot(a, b, total, PRECISION)
        total = activate(total + shift[None, :], ACTIVATION)
        sums += tl.sum(tl.where(is_row[:, None], total, 0.0), 0)
    tl.store(output + image * out_channels + k, (sums / pixels).to(output.dtype.element_ty), is_k)
