"""Every distinct layer and block of the networks, alone, against PyTorch."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fastconv
from fastconv import backend
from fastconv.gpu.weights import choices_for
from fastconv.models import MobileNetV1Block
from fastconv.nn._fused import FusedModule

from ..layers import flops
from . import timing
from .plan import NETWORKS, Job
from .timing import IMAGES, Call, Contender, Measured, compare, repeated

TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)
_FLUSHED = 256 << 20  # bytes: more than any L2 cache


@dataclass(frozen=True)
class Layer:
    """A fastconv module as it stands in a network.

    Args:
        name: of its class, sizes and activation
        shape: of its input, for one image
        map_values, weight_values: elements of input and output of one image, and of all weights
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    map_values: int
    weight_values: int

    @property
    def flops(self) -> int:
        """Of one image."""
        return flops(self.module, (1, *self.shape))

    def bytes(self, batch: int, dtype: torch.dtype) -> int:
        """That must move: input and output once, and the weights once."""
        return dtype.itemsize * (batch * self.map_values + self.weight_values)


@functools.cache
def random_network(name: str) -> nn.Module:
    """With random weights, and statistics that keep its maps in range."""
    torch.manual_seed(0)
    model = fastconv.models.create_model(name).eval().requires_grad_(False)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, 96, 96))
    return model.eval()


def plain_copy(
    module: nn.Module, layout: torch.memory_format = torch.channels_last, fold: bool = False
) -> nn.Module:
    """The same as ordinary PyTorch; its BatchNorms may be folded, which is what it runs best."""
    copied = copy.deepcopy(module).to(memory_format=layout)  # type: ignore[call-overload]
    for part in copied.modules():
        if fold:
            _fold_inside(part)
        if isinstance(part, FusedModule):
            part.forward = part._plain_forward  # type: ignore[method-assign]
            part._backend = "reference"  # for other methods than forward
    return copied


def _fold_inside(module: nn.Module) -> None:
    """Folds the BatchNorms that come right after a convolution."""
    children = list(module.named_children())
    for (name, conv), (norm_name, norm) in itertools.pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
            setattr(module, norm_name, nn.Identity())


@functools.cache
def layers(name: str, size: int = 224) -> tuple[Layer, ...]:
    """The layers and blocks of a network that are one call each."""
    model = random_network(name)
    found: dict[str, Layer] = {}

    def add(module: nn.Module, input: tuple[int, ...], output: int) -> None:
        convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        text = "-".join(str(c.out_channels) for c in convolutions)
        kernels = {c.kernel_size[0]: c.stride[0] for c in convolutions if c.kernel_size[0] > 1}
        window = "".join(f"-k{k}s{s}" for k, s in kernels.items())
        kinds = [type(m).__name__ for m in module.modules() if isinstance(m, _ACTIVATIONS)]
        activation = "".join(f"-{kind}" for kind in dict.fromkeys(kinds)).lower()
        kind, (c, h, w) = type(module).__name__, input
        label = f"{kind} {h}x{w}-{c}-{text}{window}{activation}"
        weights = sum(c.weight.numel() + c.out_channels for c in convolutions)
        values = c * h * w + output
        found.setdefault(label, Layer(label, module, input, values, weights))

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not isinstance(module, FusedModule) or inputs[0].dim() != 4:
            return
        if not any(isinstance(m, nn.Conv2d) for m in module.modules()):
            return
        if module.unpacked_native("forward", 4) is None:
            return
        input = tuple(inputs[0].shape[1:])
        add(module, input, output.numel())
        if isinstance(module, MobileNetV1Block):  # whose layers are not modules of their own
            mid = (input[0], *output.shape[2:])
            add(_stage(module.conv_dw, module.bn1), input, output[:, :1].numel() * input[0])
            add(_stage(module.conv_pw, module.bn2), mid, output.numel())

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return tuple(found.values())


def _stage(conv: nn.Conv2d, norm: nn.Module) -> nn.Module:
    made = fastconv.nn.Conv2dNormAct(conv.in_channels, conv.out_channels, activation_layer=nn.ReLU6)
    made[0], made[1] = conv, norm
    return made.eval().requires_grad_(False)


def all_layers() -> list[tuple[str, str]]:
    """A network and the name of each layer, each once; those that move most come first."""
    found = {layer.name: (layer, name) for name in reversed(NETWORKS) for layer in layers(name)}
    order = sorted(found.values(), key=lambda pair: -pair[0].map_values)
    return [(name, layer.name) for layer, name in order]


def missing() -> str | None:
    """Why there is nothing of fastconv to measure on this GPU, None if there is: a call would run
    on PyTorch instead."""
    return backend.NATIVE_MISSING or backend.misfit("auto", torch.device(timing.DEVICE))


def measure_layer(job: Job, begin: Callable[[str], object]) -> dict[str, Any]:
    """One row."""
    layer = next(layer for layer in layers(job.network) if layer.name == job.layer)
    dtype: torch.dtype = getattr(torch, job.dtype)
    images = torch.randn(IMAGES, *layer.shape, generator=torch.Generator().manual_seed(0))
    module = copy.deepcopy(layer.module).to(dtype)  # what the dtype can hold is the same for all
    images = images.to(dtype)
    with torch.no_grad():
        truth = plain_copy(module).double()(images.double()).to(timing.DEVICE)
    contenders, module = _contenders(module, repeated(images.to(timing.DEVICE), job.batch), job)
    with torch.inference_mode():
        found = compare(contenders, truth, TOLERANCE[dtype], begin=begin)
        names = ("fastconv", "eager channels_last")
        good = [c for c in contenders if c.name in names and c.name in found.seconds]
        flush = torch.empty(_FLUSHED, dtype=torch.uint8, device=timing.DEVICE)
        cold = compare(good, None, 0, rounds=9, flush=flush, begin=begin)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    choices = [c for conv in convolutions for c in choices_for(conv.weight).values()]
    return {
        "bytes": layer.bytes(job.batch, dtype),
        "flops": job.batch * layer.flops,
        **numbers(found, job),
        "cold_seconds": cold.seconds,
        "chosen": ", ".join(choice.name for choice in choices),
        "reasons": [choice.reason for choice in choices],
    }


def numbers(found: Measured, job: Job) -> dict[str, Any]:
    """What every row has."""
    errors = dict(job.without) | found.errors
    reason = missing()
    if reason is not None:
        errors["fastconv"] = reason
    return {
        "seconds": found.seconds,
        "quartiles": found.quartiles,
        "deviations": found.deviations,
        "peak_bytes": found.peak_bytes,
        "errors": errors,
    }


def wanted(contenders: list[Contender], job: Job) -> list[Contender]:
    """Without those that have broken a process, and without ours where there is nothing of it."""
    broken = {name for name, _ in job.without}
    gone = missing() is not None
    return [
        c for c in contenders if c.name not in broken and not (gone and c.name[:8] == "fastconv")
    ]


def _contenders(module: nn.Module, input: Tensor, job: Job) -> tuple[list[Contender], nn.Module]:
    """And the module on the GPU, which knows what was chosen for it."""
    ours = copy.deepcopy(module).to(timing.DEVICE)
    contiguous = input.contiguous()
    input = input.contiguous(memory_format=torch.channels_last)
    precise = copy.deepcopy(module).float()  # BatchNorms are folded in float32, as ours are
    plain = plain_copy(precise, fold=True).to(input)
    plain_nchw = plain_copy(precise, torch.contiguous_format, fold=True).to(input)

    def on(name: str) -> Call:
        def call() -> Tensor:
            with fastconv.use_backend(name):
                return ours(input)

        return call

    found = [
        # The last of ours: what was chosen is noted by the latest call.
        *(
            Contender(f"fastconv {name}", functools.partial(on, name))
            for name in ("triton", "cuda")
        ),
        Contender("fastconv", lambda: lambda: ours(input)),
        Contender("eager channels_last", lambda: lambda: plain(input)),
        Contender("eager", lambda: lambda: plain_nchw(contiguous)),
    ]
    if job.compiled:
        found.append(Contender("torch.compile", lambda: compiled(plain, input)))
    return wanted(found, job), ours


def compiled(module: nn.Module, input: Tensor, mode: str = "max-autotune-no-cudagraphs") -> Call:
    """By torch.compile, which also folds what it can: its weights are frozen."""
    from torch._inductor import config

    function = torch.compile(module, mode=mode)
    with config.patch(freezing=True):
        function(input)
    return lambda: function(input)
