"""The gradient of a 1x1 convolution's weight, and of a bias, from that of its raw output, which is
made on the way (train_maps.py): with dY [M, K] the latter and u [M, C] the input, normalized on the
way too, dY^T u. csrc/train.h says what this is for.

A program owns BLOCK_K x BLOCK_N weights and one of some splits of the pixels, of all images one
after the other; a second kernel adds up the splits. Bytes moved: grad, raw and input once each, and
again for every further block of weights, then from the L2 cache.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import dot, dot_precision, in_parts, unit_of
from .train_maps import Gradient, Source, normalized, tile_gradient
from .train_sums import added

_MOST_PARTIAL = 8 << 20  # floats of the splits' weights
_MULTIPROCESSORS = 132  # of large GPUs


class Config(NamedTuple):
    """Sizes of a tile: pixels at a time, channels of the gradient and of the input; and into how
    many splits the pixels go."""

    block_m: int
    block_k: int
    block_c: int
    num_warps: int
    num_stages: int
    splits: int


def configs(pixels: int, c: int, k: int, dtype: torch.dtype) -> list[Config]:
    """Candidates for so many pixels in all, the best guess first."""
    wide_k, wide_c = (min(128, max(16, triton.next_power_of_2(x))) for x in (k, c))
    if wide_k * wide_c > 1 << 13:
        wide_k = 64
    found = []
    for block_m, most_k, most_c, programs in (
        (32, 128, 128, 4),  # for each multiprocessor
        (32 if dtype is torch.float32 else 64, 64, 64, 4),
        (32, 128, 128, 2),
        (32, 32, 128, 4),
    ):
        block_k, block_c = min(wide_k, most_k), min(wide_c, most_c)
        tiles = triton.cdiv(k, block_k) * triton.cdiv(c, block_c)
        most = min(programs * _MULTIPROCESSORS // tiles, _MOST_PARTIAL // (k * c))
        splits = max(1, min(most, triton.cdiv(pixels, block_m)))
        warps = 8 if block_k * block_c >= 1 << 13 else 4
        found.append(Config(block_m, block_k, block_c, warps, 2, splits))
    return list(dict.fromkeys(found))


def weight_gradient(
    gradient: Gradient, source: Source, k: int, wants_bias: bool, config: Config
) -> tuple[Tensor, Tensor | None]:
    """Launches the kernel, on maps that are not empty: float32 (K, C, 1, 1), and (K,) where
    that of the bias is wanted."""
    n, c, h, w = source.input.shape
    by_image = gradient.by_image or source.gate is not None
    groups, rows = (n, h * w) if by_image else (1, n * h * w)
    every = groups * triton.cdiv(rows, config.block_m)
    splits, blocks = in_parts(every, config.splits)
    columns = triton.cdiv(c, config.block_c)
    floats = {"dtype": torch.float32, "device": source.input.device}
    weights = torch.empty((splits, k, c), **floats)  # type: ignore[call-overload]
    biases = torch.empty((splits, k), **floats) if wants_bias else None  # type: ignore[call-overload]
    unit_c, unit_k = unit_of(c), unit_of(k)
    _kernel[(splits * triton.cdiv(k, config.block_k) * columns,)](
        gradient.grad,
        gradient.raw,
        gradient.affine,
        gradient.gate,
        gradient.offset,
        gradient.coefficients,
        source.input,
        source.affine,
        source.gate,
        weights,
        biases,
        rows,
        every,
        blocks,
        c // unit_c,
        k // unit_k,
        UNIT_C=unit_c,
        UNIT_K=unit_k,
        RAW_ACTIVATION=gradient.activation,
        ACTIVATION=source.activation,
        PRECISION=dot_precision(source.input),
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
        BLOCK_N=config.block_c,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    bias = None if biases is None else added(biases[None]).view(k)
    return added(weights.view(1, splits, k * c)).view(k, c, 1, 1), bias


@triton.jit(do_not_specialize=["rows", "every", "blocks"])
def _kernel(
    grad,  # [N, pixels, K]
    raw,  # [N, pixels, K], or None, as all that belongs to it
    raw_affine,  # [2, K]
    raw_gate,  # [N, K]
    offset,  # [N, K]
    coefficients,  # [4, K]
    input,  # [N, pixels, C]
    affine,  # [2, C] or None
    gate,  # [N, C] or None
    weights,  # [splits, K, C]
    biases,  # [splits, K] or None
    rows,  # pixels of an image, or of all
    every,  # blocks of all images
    blocks,  # of a split
    c_units,
    k_units,
    UNIT_C: tl.constexpr,
    UNIT_K: tl.constexpr,
    RAW_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    channels = c_units * UNIT_C
    out_channels = k_units * UNIT_K
    columns = tl.cdiv(channels, BLOCK_N)
    k_blocks = tl.cdiv(out_channels, BLOCK_K)
    program = tl.program_id(0)
    split = (program // columns // k_blocks).to(tl.int64)
    k = program // columns % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    c = program % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    is_k, is_c = k < out_channels, c < channels
    image_blocks = tl.cdiv(rows, BLOCK_M)

    total = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    bias = tl.zeros((BLOCK_K,), tl.float32)
    for block in range(split * blocks, tl.minimum((split + 1) * blocks, every)):
        image = block // image_blocks
        row = block % image_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
        is_row = row < rows
        pixel = image * rows + row
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
        a = tl.where(is_row[:, None], a, 0.0)
        if biases is not None:
            bias += tl.sum(a, 0)
        b = tl.load(
            input + pixel[:, None] * channels + c[None, :], is_row[:, None] & is_c[None, :], 0.0
        )
        a = tl.trans(a.to(b.dtype))
        if affine is not None or gate is not None:
            x = b.to(tl.float32)
            b = normalized(x, affine, gate, image, c, is_c, channels, ACTIVATION).to(b.dtype)
        total = dot(a, b, total, PRECISION)
    place = (split * out_channels + k)[:, None] * channels + c[None, :]
    tl.store(weights + place, total, is_k[:, None] & is_c[None, :])
    if biases is not None:  # the first column's programs write it
        tl.store(biases + split * out_channels + k, bias, is_k & (program % columns == 0))
