"""output = activation(conv1x1(input * input_scale) + bias + residual): a tall matrix of pixels
times a small one of weights.

A program owns BLOCK_M pixels and BLOCK_N output channels, all of them up to 256: the input is read
once. Beyond that the programs of one row of pixels follow each other, so that it comes from the L2
cache. Bytes moved: input, weight, residual and output once each. With a scale or a stride no
program crosses the border of an image, so that the scale is one vector of channels.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .launch import dot, dot_precision, empty_map, unit_of


class Config(NamedTuple):
    """Sizes of a tile: pixels, output channels, input channels at a time."""

    block_m: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int


def configs(batch: int, pixels: int, c: int, k: int, dtype: torch.dtype) -> list[Config]:
    """Candidates for `batch` images of `pixels` output pixels, the best guess first."""
    block_n = min(256, max(16, triton.next_power_of_2(k)))
    block_c = min(32 if dtype is torch.float32 else 64, max(16, triton.next_power_of_2(c)))
    steps = triton.cdiv(c, block_c)
    stages = min(4, steps + 1)
    large = 128 if block_n < 256 and batch * pixels >= 1 << 15 else 64
    warps = 8 if large * block_n >= 1 << 14 else 4
    found = [Config(large, block_n, block_c, warps, stages)]
    if block_n >= 128:
        found.append(Config(128, 128, min(32, block_c), 8, 3))
        found.append(Config(64, block_n // 2, block_c, 4, stages))
    else:
        found.append(Config(256, block_n, min(32, block_c), 8, 2))
    found.append(Config(32 if large == 64 else 64, min(block_n, 128), block_c, 4, stages))
    return list(dict.fromkeys(found))


def pointwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    activation: int,
    residual: Tensor | None,
    input_scale: Tensor | None,
    config: Config,
) -> Tensor:
    """Launches the kernel; input and residual are dense channels_last, weight (K, C, 1, 1)."""
    n, c, h, w = input.shape
    k = weight.shape[0]
    oh, ow = (h - 1) // stride[0] + 1, (w - 1) // stride[1] + 1
    output = empty_map(input, n, k, oh, ow)
    strided = tuple(stride) != (1, 1)
    by_image = strided or input_scale is not None
    groups, rows = (n, oh * ow) if by_image else (1, n * oh * ow)
    blocks = triton.cdiv(rows, config.block_m) * triton.cdiv(k, config.block_n)
    if groups * blocks == 0:
        return output
    unit_c, unit_k = unit_of(c), unit_of(k)
    _kernel[(groups * blocks,)](
        input,
        weight,
        bias,
        residual,
        input_scale,
        output,
        rows,
        c // unit_c,
        k // unit_k,
        h * w,
        w,
        ow,
        STRIDE_H=stride[0],
        STRIDE_W=stride[1],
        UNIT_C=unit_c,
        UNIT_K=unit_k,
        BY_IMAGE=by_image,
        ACTIVATION=activation,
        PRECISION=dot_precision(input),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_C=config.block_c,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return output


@triton.jit(do_not_specialize=["rows"])
def _kernel(
    input,  # [N, H, W, C]
    weight,  # [K, C]
    bias,  # [K] or None
    residual,  # [N, OH, OW, K] or None
    scale,  # [N, C] or None
    output,  # [N, OH, OW, K]
    rows,  # output pixels of an image, or of all
    c_units,
    k_units,
    in_pixels,
    width,
    out_width,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_K: tl.constexpr,
    BY_IMAGE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # Written as a multiple of a constant, so that the compiler knows how far loads are aligned.
    channels = c_units * UNIT_C
    out_channels = k_units * UNIT_K
    columns = tl.cdiv(out_channels, BLOCK_N)
    program = tl.program_id(0)
    row_blocks = tl.cdiv(rows, BLOCK_M)
    image = (program // (columns * row_blocks)).to(tl.int64)
    row = (program // columns % row_blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = program % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_k = row < rows, k < out_channels

    pixel = row
    if STRIDE_H != 1 or STRIDE_W != 1:
        in_image = row.to(tl.int32)
        y, x = in_image // out_width, in_image % out_width
        pixel = (y * STRIDE_H * width + x * STRIDE_W).to(tl.int64)
    if BY_IMAGE:
        pixel += image * in_pixels
        row += image * rows

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    a_pointers = input + pixel[:, None] * channels  # [M, 1]
    b_pointers = weight + k[None, :] * channels  # [1, N]
    for begin in range(0, channels, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        is_c = c < channels
        a = tl.load(a_pointers + c[None, :], is_row[:, None] & is_c[None, :], 0.0)
        b = tl.load(b_pointers + c[:, None], is_c[:, None] & is_k[None, :], 0.0)
        if scale is not None:
            factor = tl.load(scale + image * channels + c, is_c, 0.0).to(tl.float32)
            a = (a.to(tl.float32) * factor[None, :]).to(b.dtype)
        total = dot(a, b, total, PRECISION)

    if bias is not None:
        total += tl.load(bias + k, is_k, 0.0).to(tl.float32)[None, :]
    place = row[:, None] * out_channels + k[None, :]
    mask = is_row[:, None] & is_k[None, :]
    if residual is not None:
        total += tl.load(residual + place, mask, 0.0).to(tl.float32)
    tl.store(output + place, activate(total, ACTIVATION).to(output.dtype.element_ty), mask)
