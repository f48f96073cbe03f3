"""output = activation(depthwise(input) + bias), every channel with a filter of its own.

A program owns BLOCK_H x BLOCK_W pixels of one image times BLOCK_C channels, and loads the tile once
for each tap of the filter: the first time from memory, then from the L1 cache, whose bandwidth is
the limit of large filters. Bytes moved: input and output once each, weight from the L2 cache. On
request the program also writes the sums of its pixels, for squeeze-and-excitation.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .launch import empty_map, unit_of, window_size


class Config(NamedTuple):
    """Sizes of a tile: output rows, columns, channels."""

    block_h: int
    block_w: int
    block_c: int
    num_warps: int


def configs(
    batch: int,
    c: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dtype: torch.dtype,
) -> list[Config]:
    """Candidates for `batch` images of an output of this size, the best guess first."""
    block_w = min(8, triton.next_power_of_2(size[1]))
    block_h = min(4, triton.next_power_of_2(size[0]))
    block_c = min(64, max(8, triton.next_power_of_2(c)))
    narrow = max(8, block_c // 2)
    found = [
        Config(block_h, block_w, block_c, 4),
        Config(min(2, block_h), block_w, block_c, 4),
        Config(block_h, 2 * block_w, narrow, 4),
        Config(block_h, block_w, narrow, 2),
    ]
    return list(dict.fromkeys(found))


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    activation: int,
    config: Config,
    pool: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Launches the kernel.

    Args:
        input: dense channels_last
        weight: (C, 1, KH, KW), float32, in memory [KH, KW, C]
        padding: top, bottom, left, right
        pool: also returns float32 (N, P, C), the sums of P parts of the output's pixels
    """
    n, c, h, w = input.shape
    kh, kw = weight.shape[2:]
    oh, ow = window_size(input, (kh, kw), stride, padding, dilation)
    output = empty_map(input, n, c, oh, ow)
    tiles = triton.cdiv(oh, config.block_h) * triton.cdiv(ow, config.block_w)
    sums = None
    if pool:
        sums = torch.empty((n, tiles, c), dtype=torch.float32, device=input.device)
    programs = n * tiles * triton.cdiv(c, config.block_c)
    if programs > 0:
        unit = unit_of(c)
        _kernel[(programs,)](
            input,
            weight,
            bias,
            output,
            sums,
            h,
            w,
            oh,
            ow,
            c // unit,
            padding[0],
            padding[2],
            KH=kh,
            KW=kw,
            STRIDE_H=stride[0],
            STRIDE_W=stride[1],
            DILATION_H=dilation[0],
            DILATION_W=dilation[1],
            UNIT=unit,
            ACTIVATION=activation,
            BLOCK_H=config.block_h,
            BLOCK_W=config.block_w,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
        )
    return output if sums is None else (output, sums)


@triton.jit
def window_sum(
    input,  # of this image
    weight,
    y,  # [P] row and column of every output pixel
    x,
    c,  # [C]
    is_c,
    height,
    width,
    channels,
    pad_top,
    pad_left,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The depthwise convolution of [P] pixels and [C] channels, float32 [P, C]."""
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    top, left = y * STRIDE_H - pad_top, x * STRIDE_W - pad_left
    # Filters of usual sizes are unrolled.
    if KH * KW <= 49:
        for tap in tl.static_range(KH * KW):
            in_y, in_x = top + tap // KW * DILATION_H, left + tap % KW * DILATION_W
            value = _pixels(input, in_y, in_x, c, is_c, height, width, channels)
            total += value * tl.load(weight + tap * channels + c, is_c, 0.0)[None, :]
    else:
        for tap in range(KH * KW):
            in_y, in_x = top + tap // KW * DILATION_H, left + tap % KW * DILATION_W
            value = _pixels(input, in_y, in_x, c, is_c, height, width, channels)
            total += value * tl.load(weight + tap * channels + c, is_c, 0.0)[None, :]
    return total


@triton.jit
def _pixels(input, y, x, c, is_c, height, width, channels):
    """[P, C] of an image as float32, zero outside of it."""
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    place = (y * width + x).to(tl.int64)[:, None] * channels + c[None, :]
    return tl.load(input + place, inside[:, None] & is_c[None, :], 0.0).to(tl.float32)


@triton.jit
def _kernel(
    input,  # [N, H, W, C]
    weight,  # [KH, KW, C]
    bias,  # [C] or None
    output,  # [N, OH, OW, C]
    sums,  # [N, tiles, C] or None
    height,
    width,
    out_height,
    out_width,
    c_units,
    pad_top,
    pad_left,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels = c_units * UNIT
    c_blocks = tl.cdiv(channels, BLOCK_C)
    columns = tl.cdiv(out_width, BLOCK_W)
    tiles = tl.cdiv(out_height, BLOCK_H) * columns
    program = tl.program_id(0)
    c = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    is_c = c < channels
    tile = program // c_blocks % tiles
    image = (program // c_blocks // tiles).to(tl.int64)
    p = tl.arange(0, BLOCK_H * BLOCK_W)
    y = tile // columns * BLOCK_H + p // BLOCK_W
    x = tile % columns * BLOCK_W + p % BLOCK_W
    input += image * height * width * channels
    output += image * out_height * out_width * channels

    total = window_sum(
        input,
        weight,
        y,
        x,
        c,
        is_c,
        height,
        width,
        channels,
        pad_top,
        pad_left,
        KH,
        KW,
        STRIDE_H,
        STRIDE_W,
        DILATION_H,
        DILATION_W,
        BLOCK_H * BLOCK_W,
        BLOCK_C,
    )
    if bias is not None:
        total += tl.load(bias + c, is_c, 0.0)[None, :]
    total = activate(total, ACTIVATION)
    is_pixel = (y < out_height) & (x < out_width)
    place = (y * out_width + x).to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(output + place, total.to(output.dtype.element_ty), is_pixel[:, None] & is_c[None, :])
    if sums is not None:
        part = tl.sum(tl.where(is_pixel[:, None], total, 0.0), 0)
        tl.store(sums + (image * tiles + tile) * channels + c, part, is_c)
