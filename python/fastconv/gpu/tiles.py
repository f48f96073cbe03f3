"""Tiles of the fused inverted residual in CUDA C++, and its launch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import cost, maps
from .device import Gpu, gpu_of

_MOST = 3
_DTYPES = (torch.float16, torch.bfloat16)


class Tile(NamedTuple):
    """Output pixels of one image that a block of threads computes: height and width."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"

    def parts(self, size: tuple[int, int]) -> int:
        """Tiles of one image whose output has this size."""
        return -(-size[0] // self.height) * -(-size[1] // self.width)


Weight = tuple[Tensor | None, Tensor | None]  # and its bias


def feasible(
    block: cost.Block, kernel: maps.Pair, stride: maps.Pair, gpu: Gpu, dtype: torch.dtype
) -> list[Tile]:
    """The tiles that fit the GPU and can pay, the best guess first.

    Args:
        block: with 0 output channels for a kernel without the projection
    """
    if dtype not in _DTYPES or (dtype is torch.bfloat16 and not gpu.has_bfloat16):
        return []
    if kernel[0] != kernel[1] or stride[0] != stride[1]:
        return []
    problem = [
        *(block.batch, block.height, block.width, block.out_height, block.out_width),
        *(block.in_channels, block.mid_channels, block.out_channels),
        *(kernel[0], stride[0], int(block.expands)),
    ]
    numbers = torch.ops.fastconv.inverted_residual_tiles(problem, gpu.shared_bytes)
    return [Tile(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)][:_MOST]


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
        activations,
        residual,
        tile,
        output,
        sums,
        gpu_of(input.device).shared_bytes,
    )
