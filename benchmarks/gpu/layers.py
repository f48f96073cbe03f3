"""Every distinct layer and block of the networks, alone, against PyTorch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastconv
from fastconv.gpu.weights import choices_for
from fastconv.nn._fused import FusedModule

from ..layers import flops
from .timing import Budget, compare

NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")
TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True)
class Layer:
    """A fastconv module as it stands in a network.

    Args:
        name: of its class and sizes
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


def random_network(name: str) -> nn.Module:
    """With random weights, and statistics that keep its maps in range."""
    torch.manual_seed(0)
    model = fastconv.models.create_model(name).eval().requires_grad_(False)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, 96, 96))
    return model.eval()


def plain_copy(module: nn.Module) -> nn.Module:
    """The same as ordinary PyTorch, channels_last."""
    copied = copy.deepcopy(module).to(memory_format=torch.channels_last)
    for part in copied.modules():
        if isinstance(part, FusedModule):
            part.forward = part._plain_forward  # type: ignore[method-assign]
            part._backend = "reference"  # for other methods than forward
    return copied


@functools.cache
def layers(name: str, size: int = 224) -> tuple[Layer, ...]:
    """The layers and blocks of a network that are one native op each."""
    model = random_network(name)
    found: dict[str, Layer] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not isinstance(module, FusedModule) or inputs[0].dim() != 4:
            return
        convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        if not convolutions or module.unpacked_native("forward", 4) is None:
            return
        shape = tuple(inputs[0].shape[1:])
        text = "-".join(str(c.out_channels) for c in convolutions)
        kernels = {c.kernel_size[0]: c.stride[0] for c in convolutions if c.kernel_size[0] > 1}
        window = "".join(f"-k{k}s{s}" for k, s in kernels.items())
        kind = type(module).__name__
        label = f"{kind} {shape[1]}x{shape[2]}-{shape[0]}-{text}{window}"
        weights = sum(c.weight.numel() + c.out_channels for c in convolutions)
        values = inputs[0].numel() + output.numel()
        found.setdefault(label, Layer(label, module, shape, values, weights))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return tuple(found.values())


def measure_layers(
    names: Iterator[str] | tuple[str, ...],
    batches: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    budget: Budget,
    emit: Callable[[dict[str, Any]], None],
    compiled: bool,
) -> None:
    """Measures until the budget is spent; emit is called with each row."""
    seen: set[str] = set()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for batch in batches:
        for dtype in dtypes:
            for name in names:
                for layer in layers(name):
                    label = f"{layer.name} b{batch} {str(dtype).removeprefix('torch.')}"
                    if label in seen or budget.left() < 5:
                        continue
                    seen.add(label)
                    emit({"id": label, **_row(layer, batch, dtype, flush, compiled)})


def _row(
    layer: Layer, batch: int, dtype: torch.dtype, flush: Tensor, compiled: bool
) -> dict[str, Any]:
    with torch.inference_mode():
        single = torch.randn(2, *layer.shape)
        truth = plain_copy(layer.module).double()(single.double())
        image = single.to("cuda", dtype).contiguous(memory_format=torch.channels_last)
        input = image[torch.arange(batch, device="cuda") % 2]
        input = input.contiguous(memory_format=torch.channels_last)
        module = copy.deepcopy(layer.module).to("cuda", dtype)
        plain = plain_copy(module)
        calls: dict[str, Callable[[], Tensor]] = {
            "fastconv": lambda: module(input),
            "eager channels_last": lambda: plain(input),
        }
        for backend in ("triton", "cuda"):
            calls[f"fastconv {backend}"] = functools.partial(_on, backend, module, input)
        if compiled:
            function = torch.compile(plain, mode="max-autotune-no-cudagraphs")
            calls["torch.compile"] = lambda: function(input)
        expected = truth[: min(2, batch)].cuda()
        found = compare(calls, expected, TOLERANCE[dtype])
        ours = {"fastconv": calls["fastconv"], "eager": calls["eager channels_last"]}
        cold = compare(ours, None, 0, rounds=9, flush=flush)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    choices = [c for conv in convolutions for c in choices_for(conv.weight).values()]
    return {
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": layer.bytes(batch, dtype),
        "flops": batch * layer.flops,
        "seconds": found.seconds,
        "quartiles": found.quartiles,
        "cold_seconds": cold.seconds,
        "errors": found.errors,
        "chosen": ", ".join(choice.name for choice in choices),
        "reasons": [choice.reason for choice in choices],
    }


def _on(backend: str, module: nn.Module, input: Tensor) -> Tensor:
    with fastconv.use_backend(backend):
        return module(input)
