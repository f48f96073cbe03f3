"""Sums of training over the pixels of a map: its moments, the mean of what it is normalized to, and
the sums of a gradient, alone and times (raw - mean). csrc/train.h says what these are for.

A program owns BLOCK_C channels of a part of the pixels and goes through it BLOCK_P pixels at a
time; a second kernel adds up the parts. There are no atomic additions, and what belongs to a part
depends on the shape alone, so a result is the same in every run. Bytes moved: every map once.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import in_parts, unit_of
from .train_maps import normalized, outer_gradient, per_channel

MOST_PARTS = 1056  # as many programs fill large GPUs evenly: eight for each of 132 multiprocessors


class Config(NamedTuple):
    """Sizes of a tile: pixels, channels."""

    block_p: int
    block_c: int
    num_warps: int


def configs(c: int, dtype: torch.dtype) -> list[Config]:
    """Candidates for maps of so many channels, the best guess first."""
    block_c = min(64, max(16, triton.next_power_of_2(c)))
    found = [
        Config(2048 // block_c, block_c, 4),
        Config(1024 // block_c, block_c, 4),
        Config(2048 // min(32, block_c), min(32, block_c), 8),
    ]
    return list(dict.fromkeys(found))


def moments(input: Tensor, config: Config) -> Tensor:
    """Means and biased variances, float32 (2, C), of a dense channels_last map that is not
    empty."""
    c = input.shape[1]
    grid, sizes, options = _shared_out(input, False, config)
    partial = _floats(input, grid[0], 3, c)
    _moments_kernel[grid](input, partial, *sizes, **options)
    return merged_moments(partial)


def normalized_mean(input: Tensor, affine: Tensor, activation: int, config: Config) -> Tensor:
    """The means of activation(input * scale + shift) in each image, float32 (N, C)."""
    n, c, h, w = input.shape
    grid, sizes, options = _shared_out(input, True, config)
    partial = _floats(input, grid[0], 1, c)
    _mean_kernel[grid](input, affine, partial, *sizes, ACTIVATION=activation, **options)
    return added(partial.view(n, -1, c), 1.0 / (h * w))


def gradient_sums(
    grad: Tensor,
    raw: Tensor,
    affine: Tensor | None,
    gate: Tensor | None,
    offset: Tensor | None,
    activation: int,
    mean: Tensor,
    config: Config,
) -> Tensor:
    """Float32 (2, C): the sums of G (see train_maps.py) and of G (raw - mean)."""
    c = grad.shape[1]
    by_image = gate is not None or offset is not None
    grid, sizes, options = _shared_out(grad, by_image, config)
    partial = _floats(grad, grid[0], 2, c)
    _gradient_sums_kernel[grid](
        *(grad, raw, affine, gate, offset, mean, partial, *sizes), ACTIVATION=activation, **options
    )
    return added(partial.view(1, -1, 2 * c)).view(2, c)


def merged_moments(partial: Tensor) -> Tensor:
    """Means and biased variances, (2, C), of parts: (P, 3, C) counts, means, and sums of squared
    differences from them."""
    parts, _, c = partial.shape
    results = torch.empty((2, c), dtype=torch.float32, device=partial.device)
    block_c = 8
    _merge_kernel[(triton.cdiv(c, block_c),)](
        partial, results, parts, c, BLOCK_P=128, BLOCK_C=block_c, num_warps=4
    )
    return results


def added(partial: Tensor, factor: float = 1.0) -> Tensor:
    """(N, S): the sums of (N, P, S) over P, times a factor."""
    n, parts, size = partial.shape
    results = torch.empty((n, size), dtype=torch.float32, device=partial.device)
    block_p, block_s = (64, 16) if n * size < 1 << 14 else (8, 256)
    _add_kernel[(n * triton.cdiv(size, block_s),)](
        partial, results, parts, size, factor, BLOCK_P=block_p, BLOCK_S=block_s, num_warps=4
    )
    return results


def _floats(like: Tensor, *sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=torch.float32, device=like.device)


def _shared_out(
    map: Tensor, by_image: bool, config: Config
) -> tuple[tuple[int, int], tuple[int, int, int, int], dict[str, int]]:
    """The grid of parts and blocks of channels, then rows, parts of an image or of all, blocks of a
    part, and channels; and what is known when the kernels are compiled."""
    n, c, h, w = map.shape
    groups, rows = (n, h * w) if by_image else (1, n * h * w)
    columns, unit = triton.cdiv(c, config.block_c), unit_of(c)
    most = MOST_PARTS // (groups * columns)
    parts, blocks = in_parts(triton.cdiv(rows, config.block_p), most)
    options = {"UNIT": unit, "BLOCK_P": config.block_p, "BLOCK_C": config.block_c}
    options["num_warps"] = config.num_warps
    return (groups * parts, columns), (rows, parts, blocks, c // unit), options


@triton.jit
def _part(rows, parts, blocks, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Image, first and last row and channels of a program."""
    program = tl.program_id(0)
    image = (program // parts).to(tl.int64)
    begin = (program % parts).to(tl.int64) * blocks * BLOCK_P
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return image, begin, tl.minimum(begin + blocks * BLOCK_P, rows), c


@triton.jit
def _place(image, row, c, rows, channels):
    """Where [P, C] of a map is, and the mask of what exists."""
    place = (image * rows + row)[:, None] * channels + c[None, :]
    return place, (row < rows)[:, None] & (c < channels)[None, :]


@triton.jit
def store_sums(partial, index, c, is_c, channels, sums):
    """Writes [C] to a row of partial sums."""
    tl.store(partial + index.to(tl.int64) * channels + c, sums, is_c)


@triton.jit(do_not_specialize=["rows", "parts", "blocks"])
def _moments_kernel(
    input,  # [N, pixels, C]
    partial,  # [P, 3, C]: counts, means, sums of squared differences from them
    rows,
    parts,
    blocks,
    c_units,
    UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels = c_units * UNIT
    image, begin, end, c = _part(rows, parts, blocks, channels, BLOCK_P, BLOCK_C)
    p = tl.arange(0, BLOCK_P).to(tl.int64)
    # Sums of differences from the mean of the first pixels keep their digits.
    place, mask = _place(image, begin + p, c, rows, channels)
    first = tl.sum(tl.load(input + place, mask, 0.0).to(tl.float32), 0)
    first /= tl.minimum(end - begin, BLOCK_P).to(tl.float32)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for row in range(begin, end, BLOCK_P):
        place, mask = _place(image, row + p, c, rows, channels)
        x = tl.load(input + place, mask, 0.0).to(tl.float32) - first[None, :]
        x = tl.where(mask, x, 0.0)
        total += x
        squares += x * x
    count = (end - begin).to(tl.float32)
    sums = tl.sum(total, 0)
    rest = tl.sum(squares, 0) - sums * (sums / count)
    is_c, row = c < channels, 3 * tl.program_id(0)
    store_sums(partial, row, c, is_c, channels, tl.zeros((BLOCK_C,), tl.float32) + count)
    store_sums(partial, row + 1, c, is_c, channels, first + sums / count)
    store_sums(partial, row + 2, c, is_c, channels, rest)


@triton.jit(do_not_specialize=["rows", "parts", "blocks"])
def _mean_kernel(
    input,  # [N, pixels, C]
    affine,  # [2, C]
    partial,  # [N, P, C]
    rows,
    parts,
    blocks,
    c_units,
    UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels = c_units * UNIT
    image, begin, end, c = _part(rows, parts, blocks, channels, BLOCK_P, BLOCK_C)
    p, is_c = tl.arange(0, BLOCK_P).to(tl.int64), c < channels
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for row in range(begin, end, BLOCK_P):
        place, mask = _place(image, row + p, c, rows, channels)
        x = tl.load(input + place, mask, 0.0).to(tl.float32)
        x = normalized(x, affine, None, image, c, is_c, channels, ACTIVATION)
        total += tl.where(mask, x, 0.0)
    store_sums(partial, tl.program_id(0), c, is_c, channels, tl.sum(total, 0))


@triton.jit(do_not_specialize=["rows", "parts", "blocks"])
def _gradient_sums_kernel(
    grad,  # [N, pixels, C]
    raw,
    affine,  # [2, C] or None
    gate,  # [N, C] or None
    offset,  # [N, C] or None
    mean,  # [C]
    partial,  # [P, 2, C]
    rows,
    parts,
    blocks,
    c_units,
    UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels = c_units * UNIT
    image, begin, end, c = _part(rows, parts, blocks, channels, BLOCK_P, BLOCK_C)
    p, is_c = tl.arange(0, BLOCK_P).to(tl.int64), c < channels
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    products = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for row in range(begin, end, BLOCK_P):
        place, mask = _place(image, row + p, c, rows, channels)
        g = tl.load(grad + place, mask, 0.0).to(tl.float32)
        x = tl.load(raw + place, mask, 0.0).to(tl.float32)
        g = outer_gradient(g, x, affine, gate, offset, image, c, is_c, channels, ACTIVATION)
        g = tl.where(mask, g, 0.0)
        total += g
        products += g * (x - per_channel(mean, c, is_c))
    row = 2 * tl.program_id(0)
    store_sums(partial, row, c, is_c, channels, tl.sum(total, 0))
    store_sums(partial, row + 1, c, is_c, channels, tl.sum(products, 0))


@triton.jit(do_not_specialize=["parts"])
def _merge_kernel(
    partial,  # [P, 3, C]
    results,  # [2, C]
    parts,
    channels,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # Chan, Golub and LeVeque, https://doi.org/10.1007/978-3-642-51461-6_3, of all parts at once.
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_c = c < channels
    p = tl.arange(0, BLOCK_P).to(tl.int64)
    shift = per_channel(partial + channels, c, is_c)
    counts = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for begin in range(0, parts, BLOCK_P):
        place = 3 * (begin + p)[:, None] * channels + c[None, :]
        mask = (begin + p < parts)[:, None] & is_c[None, :]
        count = tl.load(partial + place, mask, 0.0)
        counts += count
        sums += count * (tl.load(partial + place + channels, mask, 0.0) - shift)
    count_of_all = tl.maximum(tl.sum(counts, 0), 1.0)  # of channels that are not there it is 0
    mean = shift + (tl.sum(sums, 0) / count_of_all)[None, :]
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for begin in range(0, parts, BLOCK_P):
        place = 3 * (begin + p)[:, None] * channels + c[None, :]
        mask = (begin + p < parts)[:, None] & is_c[None, :]
        difference = tl.load(partial + place + channels, mask, 0.0) - mean
        squares += tl.load(partial + place, mask, 0.0) * difference * difference
        squares += tl.load(partial + place + 2 * channels, mask, 0.0)
    variance = tl.maximum(tl.sum(squares, 0) / count_of_all, 0.0, tl.PropagateNan.ALL)
    tl.store(results + c, tl.sum(mean, 0), is_c)
    tl.store(results + channels + c, variance, is_c)


@triton.jit(do_not_specialize=["parts"])
def _add_kernel(
    partial,  # [N, P, S]
    results,  # [N, S]
    parts,
    size,
    factor,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    blocks = tl.cdiv(size, BLOCK_S)
    program = tl.program_id(0)
    n = (program // blocks).to(tl.int64)
    s = program % blocks * BLOCK_S + tl.arange(0, BLOCK_S)
    p = tl.arange(0, BLOCK_P).to(tl.int64)
    total = tl.zeros((BLOCK_P, BLOCK_S), tl.float32)
    for begin in range(0, parts, BLOCK_P):
        place = (n * parts + begin + p)[:, None] * size + s[None, :]
        mask = (begin + p < parts)[:, None] & (s < size)[None, :]
        total += tl.load(partial + place, mask, 0.0)
    tl.store(results + n * size + s, tl.sum(total, 0) * factor, s < size)
