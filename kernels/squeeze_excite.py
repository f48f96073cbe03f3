"""Squeeze-and-excitation in three launches: sums of every channel, gates, scaled map.

channel_sums: a program owns some rows of pixels of one image times BLOCK_C channels; the map is
read once. gates: a program owns an image; both small weights come from the L2 cache, the gates are
float32. scale: a program owns a tile of pixels times channels; the map is read and written once.
Inside a block the sums come from the depthwise convolution, and the gates go into the projection:
then only the second launch remains.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .launch import empty_map, unit_of

_LARGEST_TILE = 4096  # of a weight in the gates, in elements


class Config(NamedTuple):
    """Sizes of a tile: pixels, channels, and pixels of one sum."""

    block_p: int
    block_c: int
    part: int
    num_warps: int


def configs(batch: int, c: int, pixels: int, dtype: torch.dtype) -> list[Config]:
    """Candidates for `batch` images of this many pixels, the best guess first."""
    block_c = min(64, max(16, triton.next_power_of_2(c)))
    block_p = min(64, triton.next_power_of_2(pixels))
    # Some hundred programs should be there to fill a GPU.
    parts = max(1, 256 // max(1, batch * triton.cdiv(c, block_c)))
    part = triton.cdiv(triton.cdiv(pixels, parts), block_p) * block_p
    return list(
        dict.fromkeys([Config(block_p, block_c, part, 4), Config(block_p, block_c, block_p, 4)])
    )


def channel_sums(input: Tensor, config: Config) -> Tensor:
    """The sums of parts of the pixels, float32 (N, P, C), of a dense channels_last input."""
    n, c, h, w = input.shape
    parts = triton.cdiv(h * w, config.part)
    sums = torch.empty((n, parts, c), dtype=torch.float32, device=input.device)
    programs = n * parts * triton.cdiv(c, config.block_c)
    if programs > 0:
        unit = unit_of(c)
        _sums_kernel[(programs,)](
            input,
            sums,
            h * w,
            c // unit,
            UNIT=unit,
            PART=config.part,
            BLOCK_P=config.block_p,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
        )
    return sums


def gates(
    sums: Tensor,
    pixels: int,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    activation: int,
    gate: int,
) -> Tensor:
    """gate(expand(activation(reduce(sums / pixels)))), float32 (N, C), from (N, P, C) sums."""
    n, parts, c = sums.shape
    r = reduce_weight.shape[0]
    output = torch.empty((n, c), dtype=torch.float32, device=sums.device)
    block_r = max(2, triton.next_power_of_2(r))
    block_c = max(2, min(triton.next_power_of_2(c), _LARGEST_TILE // block_r, 256))
    if n > 0:
        _gates_kernel[(n,)](
            sums,
            reduce_weight,
            reduce_bias,
            expand_weight,
            expand_bias,
            output,
            parts,
            c,
            r,
            1.0 / pixels,
            ACTIVATION=activation,
            GATE=gate,
            BLOCK_C=block_c,
            BLOCK_R=block_r,
            num_warps=4,
        )
    return output


def scale(input: Tensor, gates: Tensor, config: Config) -> Tensor:
    """input * gates[:, :, None, None], of the input's dtype, dense channels_last."""
    n, c, h, w = input.shape
    output = empty_map(input, n, c, h, w)
    blocks = triton.cdiv(h * w, config.block_p) * triton.cdiv(c, config.block_c)
    if n * blocks > 0:
        unit = unit_of(c)
        _scale_kernel[(n * blocks,)](
            input,
            gates,
            output,
            h * w,
            c // unit,
            UNIT=unit,
            BLOCK_P=config.block_p,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
        )
    return output


@triton.jit
def _sums_kernel(
    input,  # [N, pixels, C]
    sums,  # [N, parts, C]
    pixels,
    c_units,
    UNIT: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels = c_units * UNIT
    c_blocks = tl.cdiv(channels, BLOCK_C)
    parts = tl.cdiv(pixels, PART)
    program = tl.program_id(0)
    c = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    is_c = c < channels
    part = program // c_blocks % parts
    image = (program // c_blocks // parts).to(tl.int64)
    input += image * pixels * channels
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for begin in range(0, PART, BLOCK_P):
        p = part * PART + begin + tl.arange(0, BLOCK_P)
        place = p.to(tl.int64)[:, None] * channels + c[None, :]
        mask = (p < pixels)[:, None] & is_c[None, :]
        total += tl.load(input + place, mask, 0.0).to(tl.float32)
    tl.store(sums + (image * parts + part) * channels + c, tl.sum(total, 0), is_c)


@triton.jit
def _gates_kernel(
    sums,  # [N, parts, C]
    reduce_weight,  # [R, C]
    reduce_bias,  # [R] or None
    expand_weight,  # [C, R]
    expand_bias,  # [C] or None
    output,  # [N, C]
    parts,
    channels,
    reduced,
    factor,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    is_r = r < reduced
    total = tl.zeros((BLOCK_R,), tl.float32)
    for begin in range(0, channels, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        is_c = c < channels
        mean = tl.zeros((BLOCK_C,), tl.float32)
        for part in range(0, parts):
            mean += tl.load(sums + (image * parts + part) * channels + c, is_c, 0.0)
        weight = tl.load(
            reduce_weight + r[:, None] * channels + c[None, :], is_r[:, None] & is_c[None, :], 0.0
        )
        total += tl.sum(weight.to(tl.float32) * (mean * factor)[None, :], 1)
    if reduce_bias is not None:
        total += tl.load(reduce_bias + r, is_r, 0.0)
    total = tl.where(is_r, activate(total, ACTIVATION), 0.0)
    for begin in range(0, channels, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        is_c = c < channels
        weight = tl.load(
            expand_weight + c[:, None] * reduced + r[None, :], is_c[:, None] & is_r[None, :], 0.0
        )
        result = tl.sum(weight.to(tl.float32) * total[None, :], 1)
        if expand_bias is not None:
            result += tl.load(expand_bias + c, is_c, 0.0)
        tl.store(output + image * channels + c, activate(result, GATE), is_c)


@triton.jit
def _scale_kernel(
    input,  # [N, pixels, C]
    gates,  # [N, C]
    output,
    pixels,
    c_units,
    UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels = c_units * UNIT
    c_blocks, p_blocks = tl.cdiv(channels, BLOCK_C), tl.cdiv(pixels, BLOCK_P)
    program = tl.program_id(0)
    c = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    is_c = c < channels
    p = program // c_blocks % p_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    image = (program // c_blocks // p_blocks).to(tl.int64)
    factor = tl.load(gates + image * channels + c, is_c, 0.0)
    place = (image * pixels + p)[:, None] * channels + c[None, :]
    mask = (p < pixels)[:, None] & is_c[None, :]
    value = tl.load(input + place, mask, 0.0).to(tl.float32) * factor[None, :]
    tl.store(output + place, value.to(output.dtype.element_ty), mask)
