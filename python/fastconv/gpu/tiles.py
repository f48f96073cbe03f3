"""Tiles of the fused inverted residual in CUDA C++, and its launch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import cost, maps
from .device import Gpu

_MOST = 3
_DTYPES = (torch.float16, torch.bfloat16)


class Tile(NamedTuple):
    """What a block of threads computes at a time.

    Args:
        height, width: output pixels of one image
        images: more than one only where a tile is a whole image
        chunk: expanded channels at a time
        warps: threads / 32
    """

    height: int
    width: int
    images: int
    chunk: int
    warps: int

    def __str__(self) -> str:
        return f"{self.images}x{self.height}x{self.width}, {self.chunk} channels"

    def parts(self, size: tuple[int, int]) -> int:
        """Tiles of one image whose output has this size."""
        return -(-size[0] // self.height) * -(-size[1] // self.width)


class Geometry(NamedTuple):
    """A block: its sizes, its window, and whether the projection is a part of the kernel."""

    block: cost.Block
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    projects: bool


Weight = tuple[Tensor | None, Tensor | None]  # and its bias


def feasible(geometry: Geometry, gpu: Gpu, dtype: torch.dtype) -> list[Tile]:
    """The tiles that fit the GPU and can pay, the best guess first."""
    if dtype not in _DTYPES or (dtype is torch.bfloat16 and not gpu.has_bfloat16):
        return []
    b = geometry.block
    problem = [
        *(b.batch, b.height, b.width, b.out_height, b.out_width),
        *(b.in_channels, b.mid_channels, b.out_channels if geometry.projects else 0),
        *geometry.kernel,
        *geometry.stride,
        int(b.expands),
    ]
    numbers = torch.ops.fastconv.inverted_residual_tiles(problem, gpu.shared_bytes)
    count = len(Tile._fields)
    tiles = [Tile(*numbers[i : i + count]) for i in range(0, len(numbers), count)]
    return tiles[:_MOST]


def launch(
    input: Tensor,
    expand: Weight,
    depthwise: Weight,
    project: Weight,
    window: tuple[maps.Pair, maps.Pair],
    activations: tuple[int, int, int],
    residual: Tensor | None,
    tile: Tile,
    output: Tensor,
    sums: Tensor | None,
) -> None:
    """Writes a block, or without the projection's weight its first half and the sums of each tile.

    Args:
        window: stride and padding
        activations: codes behind the expansion, the depthwise convolution, and the projection
    """

    def in_forms(pair: Weight) -> Weight:
        return maps.like_or_none(pair[0], input), maps.floats(pair[1])

    filters, bias = depthwise
    assert filters is not None
    torch.ops.fastconv.cuda_inverted_residual(
        input,
        *in_forms(expand),
        maps.channels_innermost(filters),
        maps.floats(bias),
        *in_forms(project),
        *window,
        *activations,
        residual,
        list(tile),
        output,
        sums,
    )
