"""How long a kernel should take, from the bytes that it moves and the operations that it does.

A roofline with the efficiencies that good kernels reach. It orders candidates and leaves out the
hopeless ones; which of the others is the fastest is measured.
"""

from __future__ import annotations

from typing import NamedTuple

from .device import Gpu

LAUNCH = 1.5e-6  # seconds, between dependent kernels of one stream

_BANDWIDTH = 0.88  # of the data sheet's
_L2_SPEED = 1.15  # of the memory's, where everything stays in the L2 cache
_TENSOR = 0.5
_FLOAT = 0.6


class Work(NamedTuple):
    """What a kernel does.

    Args:
        bytes: read and written, each once
        tensor_flops: float16 operations of matrix products
        float_flops: float32 operations outside of them
        launches: kernels
    """

    bytes: float
    tensor_flops: float = 0.0
    float_flops: float = 0.0
    launches: int = 1

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(
            self.bytes + other.bytes,
            self.tensor_flops + other.tensor_flops,
            self.float_flops + other.float_flops,
            self.launches + other.launches,
        )


def seconds(work: Work, gpu: Gpu, element_bytes: int) -> float:
    """The time of a kernel on a GPU; products of float32 maps count as TF32, half as fast."""
    speed = gpu.bandwidth * _BANDWIDTH
    if work.bytes < 0.5 * gpu.l2_bytes:
        speed *= _L2_SPEED
    slower = 2 if element_bytes == 4 else 1
    return work.launches * LAUNCH + max(
        work.bytes / speed,
        slower * work.tensor_flops / (gpu.tensor_flops * _TENSOR),
        work.float_flops / (gpu.float_flops * _FLOAT),
    )


class Block(NamedTuple):
    """Sizes of [expand ->] depthwise -> project, by which the rules below decide.

    Args:
        batch, in_channels, mid_channels, out_channels: mid_channels are the depthwise ones
        height, width, out_height, out_width: before and after the depthwise convolution
        taps: of a depthwise filter
        expands: whether there is an expansion
        element_bytes: of the maps
    """

    batch: int
    in_channels: int
    mid_channels: int
    out_channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    taps: int
    expands: bool
    element_bytes: int

    @property
    def in_pixels(self) -> int:
        return self.batch * self.height * self.width

    @property
    def out_pixels(self) -> int:
        return self.batch * self.out_height * self.out_width


def pointwise(pixels: int, c: int, k: int, element_bytes: int, more_maps: int = 0) -> Work:
    """A 1x1 convolution; more_maps: of the output's size, such as a residual."""
    moved = pixels * (c + k * (1 + more_maps)) + c * k
    return Work(moved * element_bytes, 2.0 * pixels * c * k)


def depthwise(b: Block) -> Work:
    """The depthwise convolution of a block."""
    moved = (b.in_pixels + b.out_pixels) * b.mid_channels
    flops = 2.0 * b.out_pixels * b.mid_channels * b.taps
    return Work(moved * b.element_bytes, 0, flops)


def fused(b: Block, halo: float = 1.3) -> Work:
    """A whole block in one kernel, which expands the pixels around its tiles again."""
    moved = b.in_pixels * b.in_channels * halo + b.out_pixels * b.out_channels
    moved += b.mid_channels * (b.in_channels * b.expands + b.out_channels + b.taps)
    expand = b.in_pixels * b.in_channels * halo if b.expands else 0
    products = 2.0 * b.mid_channels * (expand + b.out_pixels * b.out_channels)
    return Work(moved * b.element_bytes, products, 2.0 * b.out_pixels * b.mid_channels * b.taps)


def expanded_depthwise(b: Block, halo: float = 1.3) -> Work:
    """Expansion and depthwise convolution in one kernel: half of a squeeze-excite block."""
    moved = b.in_pixels * b.in_channels * halo + b.out_pixels * b.mid_channels
    products = 2.0 * b.in_pixels * halo * b.in_channels * b.mid_channels * b.expands
    flops = 2.0 * b.out_pixels * b.mid_channels * b.taps
    return Work(moved * b.element_bytes, products, flops)


def separable_fits(out_channels: int) -> bool:
    """Whether depthwise + 1x1 in one kernel can pay: every tile reads all the weights, and its sums
    must stay in registers, which leaves no tile size for more channels."""
    return out_channels <= 256
