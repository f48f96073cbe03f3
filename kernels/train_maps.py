"""Maps of training: output = activation(input * scale + shift) * gate + residual, and the gradient
of a raw map, c0 G + c1 (raw - c2) + c3 with G = (grad * gate + offset) * activation'(raw * scale +
shift). csrc/train.h says what these are for.

A program owns a tile of pixels times channels; where a factor belongs to an image, all of one.
Bytes moved: every map once. Whatever is no map is float32 and comes from the caches.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import NONE, activate, activation_slope
from .launch import empty_map, unit_of


class Gradient(NamedTuple):
    """A gradient of a raw map (csrc/train.h): dense channels_last maps, all else float32."""

    grad: Tensor
    raw: Tensor | None
    affine: Tensor | None  # (2, K)
    gate: Tensor | None  # (N, K)
    offset: Tensor | None  # (N, K)
    activation: int
    coefficients: Tensor | None  # (4, K)

    @property
    def by_image(self) -> bool:
        """Whether something of it belongs to an image."""
        return self.gate is not None or self.offset is not None


class Source(NamedTuple):
    """What the convolution read, and the mean (C,) from which its sums count."""

    input: Tensor
    affine: Tensor | None  # (2, C)
    gate: Tensor | None  # (N, C)
    activation: int
    mean: Tensor | None


class Config(NamedTuple):
    """Sizes of a tile: pixels, channels."""

    block_p: int
    block_c: int
    num_warps: int


def configs(c: int, dtype: torch.dtype) -> list[Config]:
    """Candidates for maps of so many channels, the best guess first."""
    block_c = min(128, max(16, triton.next_power_of_2(c)))
    values = 2048 if dtype is torch.float32 else 4096
    found = [
        Config(values // block_c, block_c, 4),
        Config(values // 2 // block_c, block_c, 4),
        Config(values // min(64, block_c), min(64, block_c), 8),
    ]
    return list(dict.fromkeys(found))


def normalize(
    input: Tensor,
    affine: Tensor,
    gate: Tensor | None,
    activation: int,
    residual: Tensor | None,
    config: Config,
) -> Tensor:
    """Launches the first kernel; maps are dense channels_last, affine (2, C), gate (N, C)."""
    n, c, h, w = input.shape
    output = empty_map(input, n, c, h, w)
    groups, rows = (n, h * w) if gate is not None else (1, n * h * w)
    programs = groups * triton.cdiv(rows, config.block_p) * triton.cdiv(c, config.block_c)
    if programs > 0:
        unit = unit_of(c)
        _normalize_kernel[(programs,)](
            input,
            affine,
            gate,
            residual,
            output,
            rows,
            c // unit,
            UNIT=unit,
            ACTIVATION=activation,
            BLOCK_P=config.block_p,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
        )
    return output


def gradient(
    grad: Tensor,
    raw: Tensor,
    affine: Tensor | None,
    gate: Tensor | None,
    offset: Tensor | None,
    activation: int,
    coefficients: Tensor | None,
    config: Config,
) -> Tensor:
    """Launches the second kernel; offset is (N, C), coefficients (4, C), the others as above."""
    n, c, h, w = grad.shape
    output = empty_map(grad, n, c, h, w)
    by_image = gate is not None or offset is not None
    groups, rows = (n, h * w) if by_image else (1, n * h * w)
    programs = groups * triton.cdiv(rows, config.block_p) * triton.cdiv(c, config.block_c)
    if programs > 0:
        unit = unit_of(c)
        _gradient_kernel[(programs,)](
            grad,
            raw,
            affine,
            gate,
            offset,
            coefficients,
            output,
            rows,
            c // unit,
            UNIT=unit,
            ACTIVATION=activation,
            BLOCK_P=config.block_p,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
        )
    return output


@triton.jit
def per_channel(vector, c, is_c):
    """[1, C] of a vector of channels."""
    return tl.load(vector + c, is_c, 0.0)[None, :]


@triton.jit
def scaled(x, affine, c, is_c, channels):
    """x * scale + shift of [P, C] in float32; affine: [2, C] or None."""
    if affine is not None:
        x = x * per_channel(affine, c, is_c) + per_channel(affine + channels, c, is_c)
    return x


@triton.jit
def normalized(x, affine, gate, image, c, is_c, channels, ACTIVATION: tl.constexpr):
    """activation(x * scale + shift) * gate of [P, C] in float32; gate: [N, C] or None."""
    x = scaled(x, affine, c, is_c, channels)
    if affine is not None:
        x = activate(x, ACTIVATION)
    if gate is not None:
        x *= per_channel(gate + image * channels, c, is_c)
    return x


@triton.jit
def outer_gradient(
    grad, raw, affine, gate, offset, image, c, is_c, channels, ACTIVATION: tl.constexpr
):
    """G of [P, C] in float32."""
    if gate is not None:
        grad *= per_channel(gate + image * channels, c, is_c)
    if offset is not None:
        grad += per_channel(offset + image * channels, c, is_c)
    if ACTIVATION != NONE:
        grad *= activation_slope(scaled(raw, affine, c, is_c, channels), ACTIVATION)
    return grad


@triton.jit
def raw_gradient(
    grad,
    raw,
    affine,
    gate,
    offset,
    coefficients,
    image,
    c,
    is_c,
    channels,
    ACTIVATION: tl.constexpr,
):
    """The gradient of [P, C] of a raw map, in float32."""
    grad = outer_gradient(grad, raw, affine, gate, offset, image, c, is_c, channels, ACTIVATION)
    if coefficients is not None:
        centered = raw - per_channel(coefficients + 2 * channels, c, is_c)
        rest = centered * per_channel(coefficients + channels, c, is_c)
        rest += per_channel(coefficients + 3 * channels, c, is_c)
        grad = grad * per_channel(coefficients, c, is_c) + rest
    return grad


@triton.jit
def tile_gradient(
    grad,
    raw,
    affine,
    gate,
    offset,
    coefficients,
    image,
    pixel,
    is_pixel,
    k,
    is_k,
    channels,
    ACTIVATION: tl.constexpr,
):
    """The same of some pixels, which it loads; raw is None, as all behind it, where grad is it."""
    place = pixel[:, None] * channels + k[None, :]
    mask = is_pixel[:, None] & is_k[None, :]
    g = tl.load(grad + place, mask, 0.0).to(tl.float32)
    if raw is not None:
        x = tl.load(raw + place, mask, 0.0).to(tl.float32)
        g = raw_gradient(
            g, x, affine, gate, offset, coefficients, image, k, is_k, channels, ACTIVATION
        )
    return g


@triton.jit
def _tile(rows, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Image, channels, places [P, C] and mask of a program."""
    c_blocks, p_blocks = tl.cdiv(channels, BLOCK_C), tl.cdiv(rows, BLOCK_P)
    program = tl.program_id(0)
    c = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    image = (program // c_blocks // p_blocks).to(tl.int64)
    row = (program // c_blocks % p_blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    place = (image * rows + row)[:, None] * channels + c[None, :]
    return image, c, place, (row < rows)[:, None] & (c < channels)[None, :]


@triton.jit(do_not_specialize=["rows"])
def _normalize_kernel(
    input,  # [N, pixels, C]
    affine,  # [2, C]
    gate,  # [N, C] or None
    residual,  # [N, pixels, C] or None
    output,  # [N, pixels, C]
    rows,  # pixels of an image, or of all
    c_units,
    UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels = c_units * UNIT
    image, c, place, mask = _tile(rows, channels, BLOCK_P, BLOCK_C)
    x = tl.load(input + place, mask, 0.0).to(tl.float32)
    x = normalized(x, affine, gate, image, c, c < channels, channels, ACTIVATION)
    if residual is not None:
        x += tl.load(residual + place, mask, 0.0).to(tl.float32)
    tl.store(output + place, x.to(output.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows"])
def _gradient_kernel(
    grad,  # [N, pixels, C]
    raw,
    affine,  # [2, C] or None
    gate,  # [N, C] or None
    offset,  # [N, C] or None
    coefficients,  # [4, C] or None
    output,  # [N, pixels, C]
    rows,
    c_units,
    UNIT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channels = c_units * UNIT
    image, c, place, mask = _tile(rows, channels, BLOCK_P, BLOCK_C)
    g = tl.load(grad + place, mask, 0.0).to(tl.float32)
    x = tl.load(raw + place, mask, 0.0).to(tl.float32)
    is_c = c < channels
    g = raw_gradient(g, x, affine, gate, offset, coefficients, image, c, is_c, channels, ACTIVATION)
    tl.store(output + place, g.to(output.dtype.element_ty), mask)
