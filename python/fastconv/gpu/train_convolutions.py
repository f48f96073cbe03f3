"""What the convolutions of training have in common on a GPU: their calls, and what is always a
candidate, PyTorch's convolutions between maps that are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..ops import _train_plain as plain
from ..ops._train_plain import Gradient, Source, Window
from . import maps, train_maps
from .choice import Candidate
from .device import Gpu
from .train_maps import dense, dense_gradient, gradient_key


class Call(NamedTuple):
    """A convolution."""

    source: Source
    weight: Tensor
    window: Window
    wants_moments: bool

    @property
    def input(self) -> Tensor:
        return self.source.input

    @property
    def key(self) -> tuple[Any, ...]:
        """All that its speed depends on."""
        return (*_key(self.source, self.weight, self.window), self.wants_moments)


class BackwardCall(NamedTuple):
    """Its gradients; wanted: those of input, weight and bias, and the sums."""

    gradient: Gradient
    source: Source
    weight: Tensor
    window: Window
    residual: Tensor | None
    wanted: Sequence[bool]

    @property
    def input(self) -> Tensor:
        return self.source.input

    @property
    def key(self) -> tuple[Any, ...]:
        """All that their speed depends on."""
        key = _key(self.source, self.weight, self.window)
        return (*key, self.residual is not None, *gradient_key(self.gradient), *self.wanted)

    def dense(self) -> BackwardCall:
        """The same with maps and all else as kernels read them."""
        return self._replace(
            gradient=dense_gradient(self.gradient),
            source=dense_source(self.source),
            residual=maps.channels_last_or_none(self.residual),
        )


def dense_source(source: Source) -> Source:
    """The same with maps and all else as kernels read them."""
    input, affine, gate, activation, mean = source
    return Source(maps.channels_last(input), dense(affine), dense(gate), activation, dense(mean))


def _key(source: Source, weight: Tensor, window: Window) -> tuple[Any, ...]:
    n, c, h, w = source.input.shape
    sizes = (maps.bucket(n), c, h, w, weight.shape[0], *weight.shape[2:])
    there = (source.affine is not None, source.gate is not None)
    return (*sizes, *(i for pair in window for i in pair), source.activation, *there)


def written(gpu: Gpu, seconds: float, convolve: Callable[..., Any]) -> list[Candidate]:
    """PyTorch's convolution, between its own maps and those of Triton's kernels.

    Args:
        seconds: that a kernel for the whole of it should take
        convolve: _train_plain's convolution or convolution_backward
    """
    found = [Candidate("aten", "", 6 * seconds, lambda call: convolve(plain, *call))]
    if maps.has_triton(gpu):
        found.append(
            Candidate("mixed", "written", 2 * seconds, lambda call: convolve(train_maps, *call))
        )
    return found
