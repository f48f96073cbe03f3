"""The two families of names for the layers of mobile networks, torchvision's and timm's.

Both describe the same networks layer by layer. The layers of a file are put in the order in which
they compute, which the names tell, also for a file that is sorted by name; then each belongs to the
layer of the model at the same place, and every shape must agree.
"""

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher

from torch import Tensor

SOURCES = ("auto", "torchvision", "timm")
COUNTER = "num_batches_tracked"

# The layers of timm's blocks: convolution, depthwise-separable, fused and whole inverted residual.
_EXCITE = ("se.conv_reduce", "se.conv_expand")
_TIMM_BLOCKS = (
    ("conv", "bn1"),
    ("conv_dw", "bn1", *_EXCITE, "conv_pw", "bn2"),
    ("conv_exp", "bn1", *_EXCITE, "conv_pwl", "bn2"),
    ("conv_pw", "bn1", "conv_dw", "bn2", *_EXCITE, "conv_pwl", "bn3"),
)
_TIMM_FRONT = ("conv_stem", "bn1")
_TIMM_BACK = ("conv_head", "bn2", "classifier")
_TORCHVISION_TOP = ("features", "classifier")

Layers = dict[str, dict[str, str]]  # layer -> the name of a tensor in it -> key


def dialect_of(keys: Iterable[str]) -> str | None:
    """Whose names these are: "torchvision", "timm", or None for neither's."""
    tops = {key.partition(".")[0] for key in keys}
    if {"conv_stem", "blocks"} <= tops:
        return "timm"
    return "torchvision" if set(_TORCHVISION_TOP) <= tops else None


def translate(
    weights: Mapping[str, Tensor], source: str, own: Mapping[str, Tensor], target: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights in one dialect as a state_dict in the other.

    Args:
        weights: in the dialect `source`
        own: the model's state_dict, in the dialect `target`

    Returns: the weights with the model's keys, and all that does not fit.
    """
    theirs, unknown = _layers(weights, source)
    ours, _ = _layers(own, target)
    problems = [f"{key} is unexpected" for key in unknown]
    if len(theirs) != len(ours):
        return {}, problems + _differences(theirs, weights, ours, own)
    result = {}
    for (their_layer, their_keys), (layer, keys) in zip(theirs.items(), ours.items(), strict=True):
        for name, key in keys.items():
            if name in their_keys:
                result[key] = _reshaped(weights[their_keys[name]], their_keys[name], own[key], key)
                if result[key].shape != own[key].shape:
                    wanted, got = list(own[key].shape), list(result[key].shape)
                    problems.append(f"{their_keys[name]} must have shape {wanted}, got {got}")
            elif name != COUNTER:
                problems.append(f"{their_layer}.{name}, for {layer}.{name}, is missing")
        more = [key for name, key in their_keys.items() if name not in keys]
        problems += [f"{key} is unexpected, {layer} has none" for key in more]
    return result, problems


def _layers(keys: Iterable[str], dialect: str) -> tuple[Layers, list[str]]:
    """The layers in the order in which they compute, and the keys that are of no known layer."""
    layers: Layers = {}
    for key in keys:
        layer, _, name = key.rpartition(".")
        layers.setdefault(layer, {})[name] = key
    order = _timm_order(layers) if dialect == "timm" else _torchvision_order(layers)
    ordered = {layer: layers.pop(layer) for layer in order if layer in layers}
    return ordered, [key for names in layers.values() for key in names.values()]


def _torchvision_order(layers: Iterable[str]) -> list[str]:
    def place(layer: str) -> list[tuple[int, str]]:
        top, *rest = layer.split(".")
        numbers = [(int(part), "") if part.isdecimal() else (0, part) for part in rest]
        return [(_TORCHVISION_TOP.index(top), ""), *numbers]

    known = [layer for layer in layers if layer.partition(".")[0] in _TORCHVISION_TOP]
    return sorted(known, key=place)


def _timm_order(layers: Iterable[str]) -> list[str]:
    blocks: dict[tuple[int, int], set[str]] = {}
    for layer in layers:
        match layer.split(".", 3):
            case ["blocks", stage, block, inner] if stage.isdecimal() and block.isdecimal():
                blocks.setdefault((int(stage), int(block)), set()).add(inner)
    order = list(_TIMM_FRONT)
    for (stage_index, block_index), inside in sorted(blocks.items()):
        order += [f"blocks.{stage_index}.{block_index}.{inner}" for inner in _timm_block(inside)]
    return [*order, *_TIMM_BACK]


def _timm_block(inside: set[str]) -> tuple[str, ...]:
    # The first and shortest of those that have the most of these layers.
    return max(_TIMM_BLOCKS, key=lambda kind: len(inside & set(kind)))


def _reshaped(value: Tensor, key: str, own: Tensor, own_key: str) -> Tensor:
    """The layer behind MobileNetV3's pooling: timm's is a 1x1 convolution, the other Linear."""
    for name, filters, matrix in ((key, value, own), (own_key, own, value)):
        if name == "conv_head.weight" and filters.shape == (*matrix.shape, 1, 1):
            return value.reshape(own.shape)
    return value


def _differences(
    theirs: Layers, weights: Mapping[str, Tensor], ours: Layers, own: Mapping[str, Tensor]
) -> list[str]:
    """Says where layers are missing or too many, by their shapes."""
    names, own_names = list(theirs), list(ours)
    forms = [_form(keys, weights) for keys in theirs.values()]
    own_forms = [_form(keys, own) for keys in ours.values()]
    problems = [f"{len(ours)} layers are needed, {len(theirs)} are there"]
    matcher = SequenceMatcher(None, forms, own_forms, autojunk=False)
    for kind, begin, end, own_begin, own_end in matcher.get_opcodes():
        got, wanted = _listed(names[begin:end]), _listed(own_names[own_begin:own_end])
        if kind == "replace":
            problems.append(f"{got} must have the shapes of {wanted}")
        elif kind == "delete":
            problems.append(f"{got} is unexpected")
        elif kind == "insert":
            after = f" after {names[begin - 1]}" if begin > 0 else ""
            problems.append(f"what {wanted} needs is missing{after}")
    return problems


def _listed(names: list[str]) -> str:
    return ", ".join(names if len(names) <= 3 else [names[0], "...", names[-1]])


def _form(keys: Mapping[str, str], tensors: Mapping[str, Tensor]) -> frozenset[tuple[str, int]]:
    # By size: the same for a Linear and a 1x1 convolution.
    return frozenset((name, tensors[key].numel()) for name, key in keys.items() if name != COUNTER)
