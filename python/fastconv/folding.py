"""BatchNorm folding, and the side cache of packed weights for the functional ops."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _precision, backend

CACHE_ENTRIES = 256


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The weight and bias of a convolution that is followed by a BatchNorm in eval mode.

    Args:
        weight: (K, C, KH, KW), bias: (K,) or None; of the convolution.
        running_mean, running_var, gamma, beta: (K,); of the BatchNorm.

    Returns:
        weight (K, C, KH, KW) and bias (K,), of one convolution that computes both: float32 if the
        arguments have less precision.
    """
    if weight.dtype in (torch.bfloat16, torch.float16):
        weight, running_var = weight.float(), running_var.float()
    scale = torch.rsqrt(running_var + eps)
    if gamma is not None:
        scale = scale * gamma
    shift = -running_mean if bias is None else bias - running_mean
    shift = shift * scale
    if beta is not None:
        shift = shift + beta
    return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), shift


# On a GPU nothing is packed, and all of these give None.


def pack_pointwise(weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """For pointwise_conv2d, pointwise_conv2d_pool and linear."""
    if isinstance(weight, Tensor) and weight.is_cuda:
        return None
    return torch.ops.fastconv.pack_pointwise(weight, bias, _precision.type_code(weight))


def pack_conv2d(
    weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
) -> Tensor | None:
    """For conv2d_bias_act, in the form that suits the window."""
    if isinstance(weight, Tensor) and weight.is_cuda:
        return None
    return torch.ops.fastconv.pack_conv2d(weight, bias, stride, _precision.type_code(weight))


def pack_depthwise(weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """For depthwise_conv2d."""
    if isinstance(weight, Tensor) and weight.is_cuda:
        return None
    return torch.ops.fastconv.pack_depthwise(weight, bias, _precision.type_code(weight))


def pack_buffer(weights: Sequence[Tensor]) -> Tensor:
    """Uninitialized room for what these weights are when they are packed, one after the other."""
    # What kind it is, a weight alone does not always say: the largest.
    size = 0
    for weight in weights:
        type = _precision.type_code(weight)
        size += max(
            _packed_numel(weight, weight.shape[1] == 1, type),
            _packed_conv2d_numel(weight, (1, 1), type),
        )
    return torch.ops.fastconv.pack_buffer(weights[0], size)


def pack_separable(
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
) -> Tensor | None:
    """For depthwise_separable_conv2d."""
    return pack_inverted_residual(
        None, None, depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias
    )


def pack_squeeze_excite(
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
) -> Tensor | None:
    """For squeeze_excite."""
    return _joined(
        [pack_pointwise(reduce_weight, reduce_bias), pack_pointwise(expand_weight, expand_bias)]
    )


def pack_inverted_residual(
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_bias: Tensor | None,
    *squeeze_excite: Tensor | None,
) -> Tensor | None:
    """For inverted_residual."""
    parts = [] if expand_weight is None else [pack_pointwise(expand_weight, expand_bias)]
    parts.append(pack_depthwise(depthwise_weight, depthwise_bias))
    if squeeze_excite:
        reduce_weight, reduce_bias, restore_weight, restore_bias = squeeze_excite
        assert reduce_weight is not None
        assert restore_weight is not None
        parts.append(pack_pointwise(reduce_weight, reduce_bias))
        parts.append(pack_pointwise(restore_weight, restore_bias))
    parts.append(pack_pointwise(project_weight, project_bias))
    return _joined(parts)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _packed_numel(weight: Tensor, depthwise: bool, type: int) -> int:
    """As packed_size of csrc/packed.h."""
    rows = -(-weight.shape[0] // 16) * 16
    depth = weight.shape[1:].numel()
    if type == 1 and not depthwise:
        segments = weight.shape[2] if weight.dim() == 4 else 1
        depth = segments * -(-depth // segments // 2)
    return 16 + rows * (1 + depth)


def _packed_conv2d_numel(weight: Tensor, stride: Sequence[int], type: int) -> int:
    """As packed_size and suits_winograd of csrc/packed.h."""
    k, c = weight.shape[:2]
    suits = min(k, c) >= 16 and k * c <= 1 << 17 and weight.shape[2:] == (3, 3)
    if type != 0 or tuple(stride) != (1, 1) or not suits:
        return _packed_numel(weight, False, type)
    rows = -(-weight.shape[0] // 16) * 16
    return 16 + rows + 36 * rows * (1 + weight.shape[1])


def _pack_conv2d_like(
    weight: Tensor, bias: Tensor | None, stride: Sequence[int], type: int = 0
) -> Tensor:
    return weight.new_empty(_packed_conv2d_numel(weight, stride, type), dtype=torch.float32)


def _pack_pointwise_like(weight: Tensor, bias: Tensor | None, type: int = 0) -> Tensor:
    return weight.new_empty(_packed_numel(weight, False, type), dtype=torch.float32)


def _pack_depthwise_like(weight: Tensor, bias: Tensor | None, type: int = 0) -> Tensor:
    return weight.new_empty(_packed_numel(weight, True, type), dtype=torch.float32)


if backend.NATIVE_MISSING is None:
    torch.library.register_fake("fastconv::pack_pointwise", _pack_pointwise_like)
    torch.library.register_fake("fastconv::pack_conv2d", _pack_conv2d_like)
    torch.library.register_fake("fastconv::pack_depthwise", _pack_depthwise_like)
    torch.library.register_fake(
        "fastconv::pack_buffer", lambda like, size: like.new_empty(size, dtype=torch.float32)
    )


class _Entry(NamedTuple):
    watched: list[tuple[Any, int, int]]  # weak reference, version and address of each tensor
    isa_generation: int
    is_float32: bool  # all of them
    packed: Tensor


_entries: OrderedDict[tuple[Any, ...], _Entry] = OrderedDict()
_CACHEABLE = frozenset((Tensor, torch.nn.Parameter))


def clear_cache() -> None:
    """Forgets the packed weights of functional calls.

    Needed after writing to a weight past PyTorch's version counter: through ``.data`` or NumPy.
    """
    _entries.clear()


def packed(pack: Callable[..., Tensor | None], *tensors: Tensor | None) -> Tensor | None:
    """pack(*tensors), remembered as long as the tensors live and stay as they are.

    None (the op then packs for itself) for tensors whose changes cannot be seen.
    """
    # A tensor that lives is the only one of its id.
    key = (pack, _precision.wanted(), *map(id, tensors))
    entry = _current(key)
    return _pack_and_remember(key, pack, tensors) if entry is None else entry.packed


def packed_float32(
    pack: Callable[..., Tensor | None], tensors: tuple[Tensor | None, ...]
) -> Tensor | None:
    """What :func:`packed` remembers; None if it does not, or if not all tensors are float32."""
    entry = _current((pack, None, *map(id, tensors)))
    return entry.packed if entry is not None and entry.is_float32 else None


def _current(key: tuple[Any, ...]) -> _Entry | None:
    """What is remembered, if the tensors are what they were."""
    entry = _entries.get(key)
    if entry is None or entry.isa_generation != backend.isa_generation:
        return None
    for reference, version, address in entry.watched:
        tensor = reference()
        if tensor is None or tensor._version != version or tensor.data_ptr() != address:
            return None
    return entry


def _pack_and_remember(
    key: tuple[Any, ...], pack: Callable[..., Tensor | None], tensors: tuple[Tensor | None, ...]
) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    if any(type(tensor) not in _CACHEABLE for tensor in present):
        return None

    def forget(_: object) -> None:
        _entries.pop(key, None)

    try:
        watched = [(weakref.ref(t, forget), t._version, t.data_ptr()) for t in present]
    except RuntimeError:  # made in inference mode, or with the data of such a one: no version
        return None
    with torch.no_grad():
        result = pack(*tensors)
    if result is None:
        return None
    _entries.pop(key, None)  # the newest is the last
    is_float32 = all(tensor.dtype is torch.float32 for tensor in present)
    _entries[key] = _Entry(watched, backend.isa_generation, is_float32, result)
    while len(_entries) > CACHE_ENTRIES:
        _entries.popitem(last=False)
    return result
