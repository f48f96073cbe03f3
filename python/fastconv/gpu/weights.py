"""Weights in the forms that GPU kernels read, made once.

The kernels take depthwise filters as a [KH, KW, C] array of float32, so that neighbouring threads
read neighbouring channels, biases as float32, and everything else in the dtype of the maps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Form = Callable[..., Tensor]  # of the weight and what else the form depends on


class Record:
    """What is kept beside a folded weight, which nobody else has and nobody changes.

    Args:
        forms: it in other forms
        choices: by op, what runs the calls with it
    """

    def __init__(self) -> None:
        self.forms: dict[Any, Tensor] = {}
        self.choices: dict[str, Any] = {}


_ATTRIBUTE = "fastconv_record"
# Of the folded weights, by the parameters that they come from.
_records: Any = WeakTensorKeyDictionary()
_forms: dict[tuple[Any, int], tuple[Any, int, int, Tensor]] = {}


def own(weight: Tensor, source: Tensor | None = None) -> Tensor:
    """Marks a new tensor as a folded weight that nobody else has.

    Args:
        source: the parameter that it came from
    """
    kept = Record()
    setattr(weight, _ATTRIBUTE, kept)
    if source is not None:
        _records[source] = weakref.ref(kept)
    return weight


def record(weight: Tensor) -> Record | None:
    """What is kept beside a folded weight, None for any other."""
    return getattr(weight, _ATTRIBUTE, None)


def choices_for(parameter: Tensor) -> dict[str, Any]:
    """By op, what runs the calls with the weight that was folded from this parameter."""
    reference = _records.get(parameter)
    kept: Record | None = None if reference is None else reference()
    return {} if kept is None else kept.choices


def in_form(form: Form, weight: Tensor, *key: Any) -> Tensor:
    """form(weight, *key), remembered as long as the weight lives and stays as it is.

    Args:
        key: what the form depends on beside the function
    """
    kept = record(weight)
    if kept is not None:
        place = (form, *key)
        found = kept.forms.get(place)
        if found is None:
            found = form(weight, *key)
            if not _is_captured(weight):
                kept.forms[place] = found
        return found
    entry = _forms.get((form, *key, id(weight)))
    if entry is not None:
        reference, version, address, made = entry
        same = reference() is weight and weight.data_ptr() == address
        if same and _version(weight) == version:
            return made
    return _make(form, weight, *key)


def _make(form: Form, weight: Tensor, *key: Any) -> Tensor:
    made = form(weight, *key)
    version = _version(weight)
    if version is None or made is weight:
        return made
    if _is_captured(weight):
        return made
    place: Any = (form, *key, id(weight))

    def forget(_: object) -> None:
        _forms.pop(place, None)

    _forms[place] = (weakref.ref(weight, forget), version, weight.data_ptr(), made)
    return made


def _is_captured(weight: Tensor) -> bool:
    """Whether what is computed now gets its numbers only when a CUDA graph is replayed."""
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()


def _version(weight: Tensor) -> int | None:
    """None for what was made in inference mode: its changes cannot be seen."""
    try:
        return weight._version
    except RuntimeError:
        return None
