"""output = activation(pointwise(depthwise_activation(depthwise(input))) + bias + residual), the map
between the two never stored.

A program owns BLOCK_H x BLOCK_W output pixels of one image and BLOCK_N output channels. It goes
through the channels BLOCK_C at a time: their depthwise tile, rounded as a stored map would be, is
at once multiplied into the sums of all output channels. Bytes moved: input and output once each,
the weights from the L2 cache by every program, which is why this pays for few output channels only.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .depthwise_conv2d import window_sum
from .launch import dot, dot_precision, empty_map, unit_of, window_size


class Config(NamedTuple):
    """Sizes of a tile: output rows, columns, output channels, channels at a time."""

    block_h: int
    block_w: int
    block_n: int
    block_c: int
    num_warps: int


def configs(
    batch: int,
    c: int,
    k: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dtype: torch.dtype,
) -> list[Config]:
    """Candidates for `batch` images of an output of this size, the best guess first."""
    # More output channels at a time, or larger tiles, need more registers than there are.
    block_n = min(128, max(16, triton.next_power_of_2(k)))
    block_w = min(8, triton.next_power_of_2(size[1]))
    block_h = max(16 // block_w, min(4, triton.next_power_of_2(size[0])))
    block_c = min(32, max(16, triton.next_power_of_2(c)))
    found = [
        Config(2 * block_h, block_w, block_n, 16, 8),
        Config(block_h, block_w, block_n, block_c, 8),
        Config(max(16 // block_w, block_h // 2), block_w, block_n, 16, 4),
    ]
    return list(dict.fromkeys(found))


def depthwise_separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    depthwise_activation: int,
    activation: int,
    residual: Tensor | None,
    config: Config,
) -> Tensor:
    """Launches the kernel.

    Args:
        input, residual: dense channels_last
        depthwise_weight: (C, 1, KH, KW), float32, in memory [KH, KW, C]
        pointwise_weight: (K, C, 1, 1), dense
        padding: top, bottom, left, right
    """
    n, c, h, w = input.shape
    k, (kh, kw) = pointwise_weight.shape[0], depthwise_weight.shape[2:]
    oh, ow = window_size(input, (kh, kw), stride, padding, dilation)
    output = empty_map(input, n, k, oh, ow)
    tiles = triton.cdiv(oh, config.block_h) * triton.cdiv(ow, config.block_w)
    programs = n * tiles * triton.cdiv(k, config.block_n)
    if programs > 0:
        unit_c, unit_k = unit_of(c), unit_of(k)
        _kernel[(programs,)](
            input,
            depthwise_weight,
            depthwise_bias,
            pointwise_weight,
            pointwise_bias,
            residual,
            output,
            h,
            w,
            oh,
            ow,
            c // unit_c,
            k // unit_k,
            padding[0],
            padding[2],
            KH=kh,
            KW=kw,
            STRIDE_H=stride[0],
            STRIDE_W=stride[1],
            DILATION_H=dilation[0],
            DILATION_W=dilation[1],
            UNIT_C=unit_c,
            UNIT_K=unit_k,
            DEPTHWISE_ACTIVATION=depthwise_activation,
            ACTIVATION=activation,
            PRECISION=dot_precision(input),
            BLOCK_H=config.block_h,
            BLOCK_W=config.block_w,
            BLOCK_N=config.block_n,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
            # Loads ahead of time would keep the tiles of all taps in shared memory.
            num_stages=1,
        )
    return output


@triton.jit
def _kernel(
    input,  # [N, H, W, C]
    depthwise_weight,  # [KH, KW, C]
    depthwise_bias,  # [C] or None
    pointwise_weight,  # [K, C]
    pointwise_bias,  # [K] or None
    residual,  # [N, OH, OW, K] or None
    output,  # [N, OH, OW, K]
    height,
    width,
    out_height,
    out_width,
    c_units,
    k_units,
    pad_top,
    pad_left,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_K: tl.constexpr,
    DEPTHWISE_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels, out_channels = c_units * UNIT_C, k_units * UNIT_K
    k_blocks = tl.cdiv(out_channels, BLOCK_N)
    columns = tl.cdiv(out_width, BLOCK_W)
    tiles = tl.cdiv(out_height, BLOCK_H) * columns
    program = tl.program_id(0)
    k = program % k_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    is_k = k < out_channels
    tile = program // k_blocks % tiles
    image = (program // k_blocks // tiles).to(tl.int64)
    p = tl.arange(0, BLOCK_H * BLOCK_W)
    y = tile // columns * BLOCK_H + p // BLOCK_W
    x = tile % columns * BLOCK_W + p % BLOCK_W
    input += image * height * width * channels

    total = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_N), tl.float32)
    for begin in range(0, channels, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        is_c = c < channels
        mid = window_sum(
            input,
            depthwise_weight,
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
        if depthwise_bias is not None:
            mid += tl.load(depthwise_bias + c, is_c, 0.0)[None, :]
        # Channels that do not exist meet weights of zero, but sigmoid(0) is none: still finite.
        mid = activate(mid, DEPTHWISE_ACTIVATION).to(output.dtype.element_ty)
        b = tl.load(
            pointwise_weight + k[None, :] * channels + c[:, None],
            is_c[:, None] & is_k[None, :],
            0.0,
        )
        total = dot(mid, b, total, PRECISION)

    if pointwise_bias is not None:
        total += tl.load(pointwise_bias + k, is_k, 0.0)[None, :]
    pixel = image * out_height * out_width + y * out_width + x
    place = pixel[:, None] * out_channels + k[None, :]
    mask = ((y < out_height) & (x < out_width))[:, None] & is_k[None, :]
    if residual is not None:
        total += tl.load(residual + place, mask, 0.0).to(tl.float32)
    tl.store(output + place, activate(total, ACTIVATION).to(output.dtype.element_ty), mask)
