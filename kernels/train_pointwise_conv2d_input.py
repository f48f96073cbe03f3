"""The gradient of a 1x1 convolution's input, which was normalized on the way, from that of its raw
output, which is made on the way (train_maps.py): with dY [M, K] the latter and W [K, C], (dY W)
activation'(input * scale + shift), plus a residual. csrc/train.h says what this is for.

A program owns BLOCK_N of the input's channels of a part of the pixels, and goes through it BLOCK_M
pixels at a time. On request it writes the sums over its pixels that the norm before asks for, or
with a gate the gradient of that; a second kernel adds up the parts. Bytes moved: grad, raw and
input once each, residual and output too; grad and raw again for every further block of channels,
then from the L2 cache.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import NONE, activate, activation_slope
from .launch import dot, dot_precision, empty_map, in_parts, unit_of
from .train_maps import Gradient, Source, per_channel, scaled, tile_gradient
from .train_sums import MOST_PARTS, added, store_sums


class Config(NamedTuple):
    """Sizes of a tile: pixels, channels of the gradient at a time, channels of the input."""

    block_m: int
    block_k: int
    block_c: int
    num_warps: int
    num_stages: int


def configs(pixels: int, c: int, k: int, dtype: torch.dtype) -> list[Config]:
    """Candidates for so many pixels in all, the best guess first."""
    block_c = min(128, max(16, triton.next_power_of_2(c)))
    block_k = min(32 if dtype is torch.float32 else 64, max(16, triton.next_power_of_2(k)))
    large = 1 << (12 if dtype is torch.float32 else 13)
    found = []
    for block_m, most_k, most_c in (
        (128 if block_c <= 64 and pixels >= 1 << 15 else 64, 32 if block_c > 64 else 64, block_c),
        (64, 32, block_c),
        (64, 32, 64),
        (32, 32, block_c),
    ):
        n = min(block_c, most_c)
        # Loads of rows that begin anywhere take more registers.
        is_large = block_m >= 128 or block_m * n >= large
        warps = 8 if is_large or unit_of(c) < 4 else 4
        found.append(Config(block_m, min(block_k, most_k), n, warps, 3))
    return list(dict.fromkeys(found))


def input_gradient(
    gradient: Gradient,
    source: Source,
    weight: Tensor,
    residual: Tensor | None,
    wants_sums: bool,
    config: Config,
) -> tuple[Tensor, Tensor | None]:
    """Launches the kernel, on maps that are not empty.

    Args:
        weight: (K, C, 1, 1) of the maps' dtype
        residual: a map like the input, which is added, or None

    Returns:
        The gradient of the input; if sums are wanted float32 (2, C), those of it without the
        residual and of it times (input - mean); with a gate (N, C), its gradient.
    """
    n, c, h, w = source.input.shape
    k = weight.shape[0]
    output = empty_map(source.input, n, c, h, w)
    is_gated = source.gate is not None
    groups, rows = (n, h * w) if gradient.by_image or is_gated else (1, n * h * w)
    columns, blocks = triton.cdiv(c, config.block_c), triton.cdiv(rows, config.block_m)
    parts, partial = blocks, None
    if wants_sums:
        parts, _ = in_parts(blocks, MOST_PARTS // groups)
        sizes = (groups * parts, 1 if is_gated else 2, c)
        partial = torch.empty(sizes, dtype=torch.float32, device=output.device)
    unit_c, unit_k = unit_of(c), unit_of(k)
    _kernel[(groups * parts * columns,)](
        gradient.grad,
        gradient.raw,
        gradient.affine,
        gradient.gate,
        gradient.offset,
        gradient.coefficients,
        weight,
        source.input,
        source.affine,
        source.mean,
        residual,
        output,
        partial,
        rows,
        parts,
        triton.cdiv(blocks, parts),
        c // unit_c,
        k // unit_k,
        UNIT_C=unit_c,
        UNIT_K=unit_k,
        RAW_ACTIVATION=gradient.activation,
        ACTIVATION=source.activation,
        IS_GATED=is_gated,
        PRECISION=dot_precision(output),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_c,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if partial is None:
        return output, None
    if is_gated:
        return output, added(partial.view(n, parts, c))
    return output, added(partial.view(1, -1, 2 * c)).view(2, c)


@triton.jit(do_not_specialize=["rows", "parts", "blocks"])
def _kernel(
    grad,  # [N, pixels, K]
    raw,  # [N, pixels, K], or None, as all that belongs to it
    raw_affine,  # [2, K]
    raw_gate,  # [N, K]
    offset,  # [N, K]
    coefficients,  # [4, K]
    weight,  # [K, C]
    input,  # [N, pixels, C]
    affine,  # [2, C] or None
    mean,  # [C] or None
    residual,  # [N, pixels, C] or None
    output,  # [N, pixels, C]
    partial,  # [P, 2, C]; with a gate [N, P, C]; or None
    rows,  # pixels of an image, or of all
    parts,  # of these
    blocks,  # of a part
    c_units,
    k_units,
    UNIT_C: tl.constexpr,
    UNIT_K: tl.constexpr,
    RAW_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    channels = c_units * UNIT_C
    out_channels = k_units * UNIT_K
    columns = tl.cdiv(channels, BLOCK_N)
    program = tl.program_id(0)
    part = program // columns
    c = program % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    is_c = c < channels
    image = (part // parts).to(tl.int64)
    first = (part % parts).to(tl.int64) * blocks * BLOCK_M
    end = tl.minimum(first + blocks * BLOCK_M, rows)

    sums = tl.zeros((BLOCK_N,), tl.float32)
    products = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(first, end, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M).to(tl.int64)
        is_row = row < rows
        pixel = image * rows + row
        d = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for begin in range(0, out_channels, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            is_k = k < out_channels
            b = tl.load(
                weight + k[:, None] * channels + c[None, :], is_k[:, None] & is_c[None, :], 0.0
            )
            a = tile_gradient(
                grad,
                raw,
                raw_affine,
                raw_gate,
                offset,
                coefficients,
                image,
                pixel,
                is_row,
                k,
                is_k,
                out_channels,
                RAW_ACTIVATION,
            )
            d = dot(a.to(b.dtype), b, d, PRECISION)

        place = pixel[:, None] * channels + c[None, :]
        mask = is_row[:, None] & is_c[None, :]
        d = tl.where(mask, d, 0.0)
        if IS_GATED:
            if partial is not None:
                x = tl.load(input + place, mask, 0.0).to(tl.float32)
                if affine is not None:
                    x = activate(scaled(x, affine, c, is_c, channels), ACTIVATION)
                sums += tl.sum(d * x, 0)
        elif affine is not None and (ACTIVATION != NONE or partial is not None):
            x = tl.load(input + place, mask, 0.0).to(tl.float32)
            if ACTIVATION != NONE:
                d *= activation_slope(scaled(x, affine, c, is_c, channels), ACTIVATION)
            if partial is not None:
                sums += tl.sum(d, 0)
                products += tl.sum(d * (x - per_channel(mean, c, is_c)), 0)
        if residual is not None:
            d += tl.load(residual + place, mask, 0.0).to(tl.float32)
        tl.store(output + place, d.to(output.dtype.element_ty), mask)
    if partial is not None:
        if IS_GATED:
            store_sums(partial, part, c, is_c, channels, sums)
        else:
            store_sums(partial, 2 * part, c, is_c, channels, sums)
            store_sums(partial, 2 * part + 1, c, is_c, channels, products)
