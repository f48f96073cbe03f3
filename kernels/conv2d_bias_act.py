"""output = activation(conv2d(input) + bias), for few input channels: a network's first layer.

A product of matrices, whose left one is read out of the image as it is needed: a program owns
BLOCK_M output pixels and BLOCK_N output channels, and goes through the C * KH * KW taps BLOCK_T at
a time. The input is read with its own strides, channels_last or not. Bytes moved: input and output
once each; neighbouring windows share what they read through the L1 cache.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .launch import dot, dot_precision, empty_map, unit_of, window_size


class Config(NamedTuple):
    """Sizes of a tile: output pixels, output channels, taps at a time."""

    block_m: int
    block_n: int
    block_t: int
    num_warps: int
    num_stages: int


def configs(
    pixels: int, c: int, k: int, kernel: tuple[int, int], dtype: torch.dtype
) -> list[Config]:
    """Candidates for this many output pixels in all, the best guess first."""
    block_n = min(128, max(16, triton.next_power_of_2(k)))
    block_t = min(64, max(16, triton.next_power_of_2(c * kernel[0] * kernel[1])))
    found = [
        Config(128, block_n, block_t, 4, 2),
        Config(64, block_n, block_t, 4, 2),
        Config(256, min(64, block_n), min(32, block_t), 8, 2),
    ]
    return list(dict.fromkeys(found))


def conv2d_bias_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    activation: int,
    config: Config,
) -> Tensor:
    """Launches the kernel.

    Args:
        input: of any strides
        weight: (K, C, KH, KW), dense
        padding: top, bottom, left, right
    """
    n, c, h, w = input.shape
    k, _, kh, kw = weight.shape
    oh, ow = window_size(input, (kh, kw), stride, padding)
    output = empty_map(input, n, k, oh, ow)
    blocks = triton.cdiv(oh * ow, config.block_m) * triton.cdiv(k, config.block_n)
    if n * blocks > 0:
        unit = unit_of(k)
        _kernel[(n * blocks,)](
            input,
            weight,
            bias,
            output,
            *input.stride(),
            c * kh * kw,
            h,
            w,
            oh,
            ow,
            k // unit,
            padding[0],
            padding[2],
            KH=kh,
            KW=kw,
            STRIDE_H=stride[0],
            STRIDE_W=stride[1],
            UNIT=unit,
            ACTIVATION=activation,
            PRECISION=dot_precision(input),
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_T=config.block_t,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return output


@triton.jit
def _kernel(
    input,  # [N, C, H, W], by its strides
    weight,  # [K, C, KH, KW]
    bias,  # [K] or None
    output,  # [N, OH, OW, K]
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    taps,
    height,
    width,
    out_height,
    out_width,
    k_units,
    pad_top,
    pad_left,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    out_channels = k_units * UNIT
    columns = tl.cdiv(out_channels, BLOCK_N)
    row_blocks = tl.cdiv(out_height * out_width, BLOCK_M)
    program = tl.program_id(0)
    k = program % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    is_k = k < out_channels
    row = program // columns % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < out_height * out_width
    image = (program // columns // row_blocks).to(tl.int64)
    input += image * image_stride
    top = row // out_width * STRIDE_H - pad_top
    left = row % out_width * STRIDE_W - pad_left

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, taps, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        is_t = t < taps
        y = top[:, None] + (t // KW % KH)[None, :]
        x = left[:, None] + (t % KW)[None, :]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = (t // (KH * KW)).to(tl.int64)[None, :] * channel_stride
        place += y.to(tl.int64) * row_stride + x.to(tl.int64) * column_stride
        a = tl.load(input + place, inside & is_row[:, None] & is_t[None, :], 0.0)
        b = tl.load(weight + k[None, :] * taps + t[:, None], is_t[:, None] & is_k[None, :], 0.0)
        total = dot(a, b, total, PRECISION)

    if bias is not None:
        total += tl.load(bias + k, is_k, 0.0)[None, :]
    place = (image * (out_height * out_width) + row)[:, None] * out_channels + k[None, :]
    total = activate(total, ACTIVATION).to(output.dtype.element_ty)
    tl.store(output + place, total, is_row[:, None] & is_k[None, :])
