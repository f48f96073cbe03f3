"""Fully connected layer on a GPU: PyTorch's own. See :func:`fastconv.linear`."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from . import maps


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None = None
) -> Tensor:
    """The op of that name, on a GPU: cuBLAS's product whatever the backend, because a classifier
    is a product of matrices like any other."""
    return reference.linear(input, maps.like(weight, input), maps.like_or_none(bias, input))
