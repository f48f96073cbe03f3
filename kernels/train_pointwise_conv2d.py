"""output = conv1x1(activation(input * scale + shift) * gate), and the moments of every output
channel. csrc/train.h says what this is for.

A program owns BLOCK_N output channels, all of them up to 256, of a part of the pixels, and goes
through it BLOCK_M pixels at a time: products, stores, and while they are in registers their mean
and squares, joined with those before. A second kernel joins the parts. With a gate no part crosses
the border of an image. Bytes moved: input and output once each, the weight from the L2 cache.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import dot, dot_precision, empty_map, in_parts, unit_of
from .train_maps import normalized
from .train_sums import MOST_PARTS, merged_moments, store_sums


class Config(NamedTuple):
    """Sizes of a tile: pixels, output channels, input channels at a time."""

    block_m: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int


def configs(pixels: int, c: int, k: int, dtype: torch.dtype) -> list[Config]:
    """Candidates for so many pixels in all, the best guess first."""
    widest = 128 if dtype is torch.float32 else 256
    block_n = min(widest, max(16, triton.next_power_of_2(k)))
    block_c = min(32 if dtype is torch.float32 else 64, max(16, triton.next_power_of_2(c)))
    stages = min(3, triton.cdiv(c, block_c) + 1)
    large = 1 << (12 if dtype is torch.float32 else 13)
    found = []
    for block_m, most_n, most_c in (
        (128 if block_n < 256 and pixels >= 1 << 15 else 64, block_n, block_c),
        (128, 64, 32),
        (64, 128, block_c),
        (32, 128, block_c),
    ):
        n = min(block_n, most_n)
        # Loads of rows that begin anywhere take more registers.
        is_large = block_m >= 128 or block_m * n >= large
        warps = 8 if is_large or unit_of(c) < 4 else 4
        found.append(Config(block_m, n, min(block_c, most_c), warps, stages))
    return list(dict.fromkeys(found))


def train_pointwise_conv2d(
    input: Tensor,
    affine: Tensor | None,
    gate: Tensor | None,
    activation: int,
    weight: Tensor,
    wants_moments: bool,
    config: Config,
) -> tuple[Tensor, Tensor | None]:
    """Launches the kernel.

    Args:
        input: dense channels_last, not empty
        affine: (2, C), scales and shifts, or None for neither them nor an activation
        gate: (N, C) or None
        weight: (K, C, 1, 1) of the input's dtype

    Returns:
        the output, and float32 (2, K), means and biased variances, if they are wanted
    """
    n, c, h, w = input.shape
    k = weight.shape[0]
    output = empty_map(input, n, k, h, w)
    groups, rows = (n, h * w) if gate is not None else (1, n * h * w)
    columns, blocks = triton.cdiv(k, config.block_n), triton.cdiv(rows, config.block_m)
    parts, partial = blocks, None
    if wants_moments:
        parts, _ = in_parts(blocks, MOST_PARTS // groups)
        partial = torch.empty((groups * parts, 3, k), dtype=torch.float32, device=input.device)
    unit_c, unit_k = unit_of(c), unit_of(k)
    _kernel[(groups * parts * columns,)](
        input,
        weight,
        affine,
        gate,
        output,
        partial,
        rows,
        parts,
        triton.cdiv(blocks, parts),
        c // unit_c,
        k // unit_k,
        UNIT_C=unit_c,
        UNIT_K=unit_k,
        ACTIVATION=activation,
        PRECISION=dot_precision(input),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_C=config.block_c,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return output, None if partial is None else merged_moments(partial)


@triton.jit(do_not_specialize=["rows", "parts", "blocks"])
def _kernel(
    input,  # [N, pixels, C]
    weight,  # [K, C]
    affine,  # [2, C] or None
    gate,  # [N, C] or None
    output,  # [N, pixels, K]
    partial,  # [P, 3, K] or None: counts, means, sums of squared differences from them
    rows,  # pixels of an image, or of all
    parts,  # of these
    blocks,  # of a part
    c_units,
    k_units,
    UNIT_C: tl.constexpr,
    UNIT_K: tl.constexpr,
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
    part = program // columns
    k = program % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    is_k = k < out_channels
    image = (part // parts).to(tl.int64)
    first = (part % parts).to(tl.int64) * blocks * BLOCK_M
    end = tl.minimum(first + blocks * BLOCK_M, rows)
    b_pointers = weight + k[None, :] * channels  # [1, N]

    mean = tl.zeros((BLOCK_N,), tl.float32)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(first, end, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M).to(tl.int64)
        is_row = row < rows
        pixel = image * rows + row
        a_pointers = input + pixel[:, None] * channels  # [M, 1]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for begin in range(0, channels, BLOCK_C):
            c = begin + tl.arange(0, BLOCK_C)
            is_c = c < channels
            a = tl.load(a_pointers + c[None, :], is_row[:, None] & is_c[None, :], 0.0)
            b = tl.load(b_pointers + c[:, None], is_c[:, None] & is_k[None, :], 0.0)
            if affine is not None or gate is not None:
                x = a.to(tl.float32)
                a = normalized(x, affine, gate, image, c, is_c, channels, ACTIVATION).to(b.dtype)
            total = dot(a, b, total, PRECISION)
        rounded = total.to(output.dtype.element_ty)
        place = pixel[:, None] * out_channels + k[None, :]
        tl.store(output + place, rounded, is_row[:, None] & is_k[None, :])
        if partial is not None:
            x = rounded.to(tl.float32)
            before = (start - first).to(tl.float32)
            count = tl.minimum(end - start, BLOCK_M).to(tl.float32)
            here = tl.sum(tl.where(is_row[:, None], x, 0.0), 0) / count
            difference = tl.where(is_row[:, None], x - here[None, :], 0.0)
            step = here - mean
            share = count / (before + count)
            mean += step * share
            squares += tl.sum(difference * difference, 0) + step * step * (before * share)
    if partial is not None:
        count = tl.zeros((BLOCK_N,), tl.float32) + (end - first).to(tl.float32)
        store_sums(partial, 3 * part, k, is_k, out_channels, count)
        store_sums(partial, 3 * part + 1, k, is_k, out_channels, mean)
        store_sums(partial, 3 * part + 2, k, is_k, out_channels, squares)
