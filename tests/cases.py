"""The shapes that every op is tested on."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DEVICE = "cpu"  # of the tensors of all cases, set by --device

LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One call by keyword: shapes of the tensors, and the other arguments."""

    op: str
    shapes: dict[str, Shape]
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def native(self) -> bool:
        """Whether there are native kernels for it."""
        if self.op == "depthwise_conv2d":
            return self.shapes["weight"][0] == self.shapes["input"][1]
        return self.op != "conv2d_bias_act" or not {"groups", "dilation"} & set(self.options)

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shapes["input"]))
        options = (f"{k}={v}".replace(" ", "") for k, v in self.options.items())
        extra = [
            name for name in ("residual", "input_scale", "reduce_weight") if name in self.shapes
        ]
        return "-".join([self.note or sizes, *options, *extra])

    def arguments(
        self,
        dtype: torch.dtype = torch.float32,
        layout: str = "contiguous",
        grad: bool = False,
        device: str | None = None,
    ) -> dict[str, Any]:
        """Random tensors, the same for every dtype, device and layout but "expanded"."""
        generator = torch.Generator().manual_seed(len(str(self)))
        tensors = {}
        for name, shape in self.shapes.items():
            tensor = torch.randn(shape, generator=generator)
            if name.endswith("weight") and self.op != "squeeze_excite":
                tensor *= (2 / max(1, tensor[0].numel())) ** 0.5
            tensor = tensor.to(device or DEVICE, dtype)
            if len(shape) == 4 and not name.endswith("weight"):
                tensor = with_layout(tensor, layout)
            tensors[name] = tensor.requires_grad_() if grad else tensor
        return self.gathered(tensors)

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The keyword arguments with these tensors."""
        options = dict(self.options)
        if self.op == "inverted_residual":
            tensors = dict(tensors)
            excite = [tensors.pop(f"excite_{name}", None) for name in _EXCITE]
            if excite[0] is not None:
                options["squeeze_excite"] = (*excite, *options["squeeze_excite"])
        optional = {name: None for name in _NEEDED.get(self.op, ()) if name not in tensors}
        return optional | tensors | options


_EXCITE = ("reduce_weight", "reduce_bias", "expand_weight", "expand_bias")
_NEEDED = {
    "depthwise_separable_conv2d": ("depthwise_bias", "pointwise_bias"),
    "inverted_residual": ("expand_weight", "expand_bias", "depthwise_bias", "project_bias"),
    "squeeze_excite": ("reduce_bias", "expand_bias"),
}


def with_layout(tensor: Tensor, layout: str) -> Tensor:
    """The same values (but for "expanded") at other addresses."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # every stride is odd, and the data does not begin with the storage
        n, c, h, w = tensor.shape
        larger = tensor.new_full((n + 1, c + 2, h + 1, 2 * w + 1), torch.nan)
        view = larger[1:, 1 : c + 1, 1:, 1::2][..., :w]
        return view.copy_(tensor)
    if layout == "expanded":
        return tensor[:, :1].expand(tensor.shape)
    return tensor.contiguous()


def _pointwise(n, c, h, w, k, *extra, bias=True, note="", **options) -> Case:
    stride = options.get("stride", 1)
    sh, sw = (stride, stride) if isinstance(stride, int) else stride
    shapes = {"input": (n, c, h, w), "weight": (k, c, 1, 1)}
    if bias:
        shapes["bias"] = (k,)
    if "residual" in extra:
        shapes["residual"] = (n, k, -(-h // sh), -(-w // sw))
    if "input_scale" in extra:
        shapes["input_scale"] = (n, c)
    return Case("pointwise_conv2d", shapes, options, note)


def _depthwise(n, c, h, w, kernel, *, bias=True, multiplier=1, note="", **options) -> Case:
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    shapes = {"input": (n, c, h, w), "weight": (c * multiplier, 1, kh, kw)}
    if bias:
        shapes["bias"] = (c * multiplier,)
    return Case("depthwise_conv2d", shapes, options, note or f"{n}x{c}x{h}x{w}k{kh}x{kw}")


def _separable(n, c, h, w, k, kernel, residual=None, *, bias=True, note="", **options) -> Case:
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    shapes = {
        "input": (n, c, h, w),
        "depthwise_weight": (c, 1, kh, kw),
        "pointwise_weight": (k, c, 1, 1),
    }
    if bias:
        shapes |= {"depthwise_bias": (c,), "pointwise_bias": (k,)}
    if residual:
        shapes["residual"] = (n, k, *residual)
    note = note or f"{n}x{c}x{h}x{w}to{k}k{kh}x{kw}"
    return Case("depthwise_separable_conv2d", shapes, options, note)


def _inverted(
    n, c, h, w, mid, k, kernel, residual=None, *, bias=True, excite=0, note="", **options
) -> Case:
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    shapes = {"input": (n, c, h, w)}
    if mid:
        shapes["expand_weight"] = (mid, c, 1, 1)
    inner = mid or c
    shapes |= {"depthwise_weight": (inner, 1, kh, kw), "project_weight": (k, inner, 1, 1)}
    if bias:
        shapes |= {"depthwise_bias": (inner,), "project_bias": (k,)}
        shapes |= {"expand_bias": (mid,)} if mid else {}
    if residual:
        shapes["residual"] = (n, k, *residual)
    if excite:
        shapes["excite_reduce_weight"] = (excite, inner, 1, 1)
        shapes["excite_expand_weight"] = (inner, excite, 1, 1)
        if bias:
            shapes |= {"excite_reduce_bias": (excite,), "excite_expand_bias": (inner,)}
    note = note or f"{n}x{c}x{h}x{w}to{mid}to{k}k{kh}x{kw}"
    return Case("inverted_residual", shapes, options, note)


def _excite(n, c, h, w, reduced, *, bias=True, **options) -> Case:
    shapes = {
        "input": (n, c, h, w),
        "reduce_weight": (reduced, c, 1, 1),
        "expand_weight": (c, reduced, 1, 1),
    }
    if bias:
        shapes |= {"reduce_bias": (reduced,), "expand_bias": (c,)}
    return Case("squeeze_excite", shapes, options)


def _conv(n, c, h, w, k, kernel, *, bias=True, note="", **options) -> Case:
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    shapes = {"input": (n, c, h, w), "weight": (k, c // options.get("groups", 1), kh, kw)}
    if bias:
        shapes["bias"] = (k,)
    note = note or f"{n}x{c}x{h}x{w}to{k}k{kh}x{kw}"
    return Case("conv2d_bias_act", shapes, options, note)


def _pool(n, c, h, w, k, *, bias=True, **options) -> Case:
    shapes = {"input": (n, c, h, w), "weight": (k, c, 1, 1)}
    if bias:
        shapes["bias"] = (k,)
    return Case("pointwise_conv2d_pool", shapes, options)


def _linear(n, c, k, *, bias=True) -> Case:
    shapes = {"input": (n, c), "weight": (k, c)}
    if bias:
        shapes["bias"] = (k,)
    return Case("linear", shapes, note=f"{n}x{c}to{k}" + ("" if bias else "-nobias"))


# Dense convolutions for which Winograd's algorithm is taken: odd sizes, channels that are no whole
# vectors, windows without padding, few tiles and many of them.
WINOGRAD = [
    _conv(1, 16, 1, 1, 16, 3, padding=1),
    _conv(2, 33, 13, 10, 47, 3, padding=1, activation="silu"),
    _conv(3, 24, 9, 6, 40, 3, padding=(0, 2), bias=False),
    _conv(0, 16, 5, 5, 16, 3, padding=1),
    _conv(1, 160, 7, 6, 36, 3, padding="same", activation="relu6"),
    _conv(1, 17, 3, 3, 100, 3),
    _conv(2, 64, 37, 30, 64, 3, padding=1, activation="relu", note="resnet50"),
    _conv(1, 256, 14, 14, 256, 3, padding=1, activation="relu", note="resnet50-late"),
]

# For ops that activate where pointwise and depthwise convolutions do; tests/cpu draws from all.
ACTIVATIONS = ("relu", "relu6", "hardswish", "silu", "sigmoid", "hardsigmoid")
ALL_ACTIVATIONS = (*ACTIVATIONS, "tanh", "gelu")

# The first case of an op is used wherever one must do: compile, opcheck, rejects.
CASES = {
    "pointwise_conv2d": [
        _pointwise(2, 24, 9, 7, 40, "residual", "input_scale", activation="relu6"),
        *(_pointwise(1, 17, 5, 5, 19, activation=name) for name in ALL_ACTIVATIONS),
        _pointwise(1, 1, 1, 1, 1, bias=False),
        _pointwise(0, 8, 5, 5, 16),
        _pointwise(3, 3, 1, 1, 5),
        _pointwise(1, 33, 13, 1, 65),
        _pointwise(1, 7, 11, 10, 16, stride=2),
        _pointwise(2, 16, 8, 9, 31, "residual", stride=(3, 2), activation="silu"),
        _pointwise(2, 12, 6, 5, 10, "input_scale", stride=2, bias=False),
        _pointwise(1, 100, 7, 7, 47, "residual", bias=False),
        _pointwise(1, 128, 3, 3, 96, "input_scale"),
        _pointwise(1, 96, 14, 14, 24, note="mobilenet_v2-project"),
        _pointwise(1, 16, 20, 20, 96, activation="relu6", note="mobilenet_v2-expand"),
        _pointwise(1, 320, 7, 7, 1280, activation="relu6", note="mobilenet_v2-head"),
        _pointwise(1, 960, 4, 4, 160, "residual", note="mobilenet_v2-project-residual"),
    ],
    "depthwise_conv2d": [
        _depthwise(2, 24, 9, 7, 3, padding=1, activation="relu6"),
        *(_depthwise(1, 17, 6, 5, 3, padding=1, activation=name) for name in ALL_ACTIVATIONS),
        _depthwise(1, 1, 1, 1, 1, bias=False),
        _depthwise(1, 1, 6, 6, 3, padding=1),
        _depthwise(0, 8, 5, 5, 3, padding=1),
        _depthwise(1, 19, 8, 8, 1),
        _depthwise(1, 16, 7, 9, 2),
        _depthwise(1, 20, 9, 9, 2, padding="same", stride=2),
        _depthwise(2, 9, 12, 11, 5, padding=2, bias=False),
        _depthwise(1, 32, 14, 15, 5, padding=2, stride=2, activation="hardswish"),
        _depthwise(1, 33, 15, 13, 7, padding=3),
        _depthwise(1, 8, 17, 16, 7, padding="same", stride=3),
        _depthwise(1, 24, 10, 10, (3, 5), padding=(1, 2)),
        _depthwise(1, 24, 11, 9, (5, 2), padding="same", stride=(2, 1)),
        _depthwise(1, 16, 2, 2, 5, padding=2),
        _depthwise(1, 16, 1, 1, 3, padding=1),
        _depthwise(1, 48, 1, 9, 3, padding=1, stride=2),
        _depthwise(1, 40, 12, 12, 3, padding=2, dilation=2),
        _depthwise(1, 21, 13, 12, 3, padding="same", dilation=(2, 3)),
        _depthwise(2, 12, 9, 9, 3, padding=0, stride=3),
        _depthwise(1, 13, 9, 9, 3, padding=(4, 0)),
        _depthwise(2, 6, 8, 8, 3, padding=1, multiplier=2, activation="relu"),
        _depthwise(1, 96, 16, 16, 3, padding=1, stride=2, note="mobilenet_v2-stride-2"),
        _depthwise(1, 144, 14, 14, 3, padding=1, note="mobilenet_v2"),
        _depthwise(1, 576, 7, 7, 3, padding=1, activation="relu6", note="mobilenet_v2-13"),
    ],
    "depthwise_separable_conv2d": [
        _separable(2, 24, 9, 7, 24, 3, (9, 7), padding=1, activation="relu"),
        *(
            _separable(1, 17, 6, 5, 9, 3, padding=1, depthwise_activation=a, activation=b)
            for a, b in zip(ALL_ACTIVATIONS, ("none", *ALL_ACTIVATIONS), strict=False)
        ),
        _separable(1, 1, 1, 1, 1, 1, bias=False),
        _separable(0, 8, 5, 5, 4, 3, padding=1),
        _separable(1, 19, 8, 8, 33, 2, padding="same", stride=2),
        _separable(1, 32, 12, 11, 16, 5, (6, 6), padding="same", stride=2),
        _separable(1, 10, 15, 13, 12, 7, padding=3, stride=3),
        _separable(1, 16, 9, 10, 40, (3, 5), padding=(1, 2), dilation=(1, 1)),
        _separable(1, 18, 11, 11, 8, 3, padding=2, dilation=2, bias=False),
        _separable(3, 16, 2, 1, 16, 5, padding=2),
        _separable(1, 32, 20, 20, 16, 3, padding=1, note="mobilenet_v2-first"),
        _separable(1, 64, 14, 14, 128, 3, padding=1, stride=2, activation="relu", note="v1"),
    ],
    "inverted_residual": [
        _inverted(2, 16, 9, 7, 40, 16, 3, (9, 7), padding=1),
        *(_inverted(1, 9, 6, 5, 27, 10, 3, padding=1, activation=a) for a in ACTIVATIONS),
        _inverted(1, 1, 1, 1, 1, 1, 1, bias=False),
        _inverted(0, 8, 5, 5, 24, 8, 3, (5, 5), padding=1),
        _inverted(1, 20, 9, 9, 0, 12, 3, padding=1, note="no-expand"),
        _inverted(
            1,
            16,
            8,
            9,
            0,
            16,
            3,
            (8, 9),
            padding=1,
            excite=4,
            squeeze_excite=("silu", "sigmoid"),
            note="no-expand-excite",
        ),
        _inverted(
            2,
            16,
            10,
            9,
            48,
            24,
            5,
            padding=2,
            stride=2,
            excite=12,
            squeeze_excite=("relu", "hardsigmoid"),
            activation="hardswish",
        ),
        _inverted(
            1,
            12,
            7,
            7,
            33,
            12,
            3,
            (7, 7),
            padding=1,
            excite=5,
            bias=False,
            squeeze_excite=("silu", "sigmoid"),
            activation="silu",
        ),
        _inverted(1, 19, 12, 11, 50, 21, 2, padding="same", stride=2),
        _inverted(1, 8, 13, 14, 48, 8, 7, (13, 14), padding="same"),
        _inverted(1, 8, 13, 9, 32, 12, (5, 3), padding=(2, 1), stride=(3, 2)),
        _inverted(1, 16, 11, 11, 40, 16, 3, padding=2, dilation=2),
        _inverted(1, 16, 2, 1, 64, 16, 5, padding=2),
        _inverted(1, 16, 20, 20, 96, 24, 3, padding=1, stride=2, note="mobilenet_v2-2"),
        _inverted(1, 24, 18, 18, 144, 24, 3, (18, 18), padding=1, note="mobilenet_v2-3"),
        _inverted(1, 160, 7, 7, 960, 320, 3, padding=1, note="mobilenet_v2-17"),
    ],
    "squeeze_excite": [
        _excite(2, 24, 9, 7, 6),
        *(_excite(1, 17, 5, 5, 5, activation=name) for name in ACTIVATIONS),
        _excite(1, 40, 6, 5, 10, gate="hardsigmoid"),
        _excite(1, 1, 1, 1, 1, bias=False),
        _excite(0, 8, 5, 5, 2),
        _excite(3, 100, 1, 9, 33, activation="silu"),
        _excite(1, 480, 7, 7, 20, activation="silu"),
    ],
    "conv2d_bias_act": [
        _conv(2, 3, 11, 9, 24, 3, padding=1, stride=2, activation="relu6"),
        *(_conv(1, 3, 7, 6, 17, 3, padding=1, activation=name) for name in ACTIVATIONS),
        _conv(1, 1, 1, 1, 1, 1, bias=False),
        _conv(0, 3, 5, 5, 8, 3, padding=1),
        _conv(1, 3, 9, 8, 33, 2, stride=2, padding="same"),
        _conv(1, 4, 12, 13, 16, 5, padding=2, stride=2),
        _conv(2, 2, 15, 14, 12, 7, padding=3, stride=3, bias=False),
        _conv(1, 3, 10, 9, 20, (3, 5), padding=(1, 2)),
        _conv(1, 3, 2, 2, 16, 5, padding=2),
        _conv(1, 3, 1, 1, 16, 3, padding=1, stride=2),
        _conv(1, 3, 13, 12, 40, 3, padding="same", stride=2),
        _conv(1, 19, 8, 8, 21, 3, padding=1),
        _conv(1, 3, 9, 9, 8, 3, padding=2, dilation=2),
        _conv(1, 6, 8, 8, 8, 3, padding=1, groups=2),
        _conv(1, 3, 40, 40, 32, 3, padding=1, stride=2, activation="relu6", note="mobilenet_v2"),
    ],
    "pointwise_conv2d_pool": [
        _pool(2, 24, 9, 7, 40, activation="relu6"),
        *(_pool(1, 17, 5, 5, 19, activation=name) for name in ACTIVATIONS),
        _pool(1, 1, 1, 1, 1, bias=False),
        _pool(0, 8, 5, 5, 16),
        _pool(3, 33, 1, 13, 65),
        _pool(1, 320, 7, 7, 1280, activation="relu6"),
    ],
    "linear": [
        _linear(2, 24, 40),
        _linear(1, 1, 1, bias=False),
        _linear(0, 8, 16),
        _linear(5, 33, 17),
        _linear(1, 1280, 1000),
        _linear(16, 100, 31, bias=False),
    ],
}


# For derivatives by differences, which need a run for every number.
TINY = {
    "pointwise_conv2d": _pointwise(
        1, 2, 2, 3, 3, "residual", "input_scale", activation="silu", stride=(1, 2)
    ),
    "depthwise_conv2d": _depthwise(1, 2, 3, 3, 2, padding="same", activation="hardswish"),
    "depthwise_separable_conv2d": _separable(1, 2, 3, 3, 2, 2, (2, 2), activation="silu"),
    "inverted_residual": _inverted(
        1, 2, 2, 3, 3, 2, 2, (2, 3), padding="same", excite=2, squeeze_excite=("silu", "sigmoid")
    ),
    "squeeze_excite": _excite(1, 3, 2, 2, 2, activation="silu"),
    "conv2d_bias_act": _conv(1, 2, 3, 3, 2, 2, padding=1, stride=2, activation="silu"),
    "pointwise_conv2d_pool": _pool(1, 2, 2, 2, 3, activation="silu"),
    "linear": _linear(2, 2, 3),
}


def tensors_of(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors among keyword arguments, by name."""
    found = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif name == "squeeze_excite":
            pairs = zip(_EXCITE, value, strict=False)
            found |= {f"excite_{k}": v for k, v in pairs if isinstance(v, Tensor)}
    return found


def small(op: str) -> list[Case]:
    """The cases that run on a CPU in no time, for tests of many runs each."""
    return [case for case in CASES[op] if max(case.shapes["input"]) <= 48]
