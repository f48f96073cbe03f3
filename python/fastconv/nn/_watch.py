"""Whether tensors and settings still are what a cached fold was made of."""

from typing import Any

import torch
from torch import Tensor

from .. import _library

Slots = list[tuple[dict[str, Any], str, object]]
Sizes = list[tuple[dict[str, Any], int]]


class PythonWatch:
    """What csrc/watch.h does, for installations without it: the same answers, many times slower.

    Args:
        slots: (dict, key, value): the dict has this very object there; for ..., it has no such key
        sizes: (dict, size)
        tensors: their data stays where it is, their shapes and strides are the same, and their
            version counters stand still; tensors made in inference mode have none
    """

    def __init__(self, slots: Slots, sizes: Sizes, tensors: list[Tensor]) -> None:
        self._slots = list(slots)
        self._sizes = list(sizes)
        self._counted = [tensor for tensor in tensors if not tensor.is_inference()]
        self._versions = [tensor._version for tensor in self._counted]
        self._tensors = list(tensors)
        self._places = [_place(tensor) for tensor in tensors]
        # As long as this lives, nothing else is put where the data is.
        self._data = [tensor.detach() for tensor in tensors]

    def holds(self) -> bool:
        """Whether everything still is what it was."""
        return (
            all(owner.get(name, ...) is value for owner, name, value in self._slots)
            and all(len(owner) == size for owner, size in self._sizes)
            and [tensor._version for tensor in self._counted] == self._versions
            and [_place(tensor) for tensor in self._tensors] == self._places
        )


def _place(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


Watch: Any = PythonWatch if _library._C is None else _library._C.Watch
