"""A model as one CUDA graph, for batches so small that launching kernels takes the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn._watch import Sizes, Slots, Watch


def graphed(model: nn.Module, example: Tensor) -> nn.Module:
    """The model for inference, with the kernels for one shape of input recorded in a CUDA graph.

    A call replays the graph: one launch instead of one for each kernel, which is what a batch of
    one image waits for. Inputs of another shape, dtype or device, and calls in train mode or where
    a gradient is wanted, run the model as it is. When a parameter or buffer has changed, the next
    call records anew.

    Args:
        model: in eval mode, on a GPU
        example: (N, C, H, W), an input with the shape that will be replayed

    Returns:
        a module that is called like the model and shares its parameters. Every call writes to the
        same output, so clone what must outlive the next call.

    Raises:
        TypeError: if the model is not a torch.nn.Module or the example not a tensor.
        ValueError: if the example is not on a GPU, or the model is in train mode.

    Example:
        >>> model = fastconv.models.mobilenet_v2().eval().cuda().half()
        >>> example = torch.randn(1, 3, 224, 224, device="cuda", dtype=torch.half)
        >>> fast = fastconv.graphed(model, example)
        >>> with torch.inference_mode():
        ...     fast(example).shape
        torch.Size([1, 1000])

    See :class:`torch.cuda.CUDAGraph`.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise TypeError(f"graphed: model must be a torch.nn.Module, got {kind}")
    if not isinstance(example, Tensor):
        raise TypeError(f"graphed: example must be a Tensor, got {type(example).__name__}")
    if not example.is_cuda:
        raise ValueError(f"graphed: example must be on a GPU, got one on {example.device}")
    if any(module.training for module in model.modules()):
        raise ValueError("graphed: model must be in eval mode, got one in train mode")
    return Graphed(model, example)


class Graphed(nn.Module):
    """What :func:`graphed` gives."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.model = model
        self.train(False)
        self._input = torch.empty_like(example, requires_grad=False).copy_(example.detach())
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Any = None
        self._watch: Watch | None = None

    def forward(self, input: Tensor) -> Any:
        if not self._fits(input) or torch.cuda.is_current_stream_capturing():
            return self.model(input)
        if self._watch is None or not self._watch.holds():
            self._record()
        assert self._graph is not None
        self._input.copy_(input)
        self._graph.replay()
        return self._output

    def _fits(self, input: Tensor) -> bool:
        """Whether this call is the recorded one with other numbers."""
        mine = self._input
        same = input.shape == mine.shape and input.dtype is mine.dtype
        if not same or input.device != mine.device or self.training or self.model.training:
            return False
        if torch.is_autocast_enabled("cuda"):
            return False
        wants_gradient = input.requires_grad or any(p.requires_grad for p in self.parameters())
        return not (torch.is_grad_enabled() and wants_gradient)

    def _record(self) -> None:
        """Runs the model, which chooses its kernels, then records it."""
        device = self._input.device
        self._graph = None  # frees what the old one holds
        with torch.no_grad(), torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self.model(self._input)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._output = self.model(self._input)
        self._graph, self._watch = graph, _watch(self.model)

    def __getstate__(self) -> dict[str, Any]:
        # A graph belongs to its process: copies record their own.
        return {**self.__dict__, "_graph": None, "_output": None, "_watch": None}


def _watch(model: nn.Module) -> Watch:
    """Of everything that a recorded graph has been made from."""
    slots: Slots = []
    sizes: Sizes = []
    tensors: list[Tensor] = []
    for module in model.modules():
        for owner in (module._parameters, module._buffers):
            slots += [(owner, name, value) for name, value in owner.items()]
            tensors += [value for value in owner.values() if value is not None]
        slots += [(module._modules, *item) for item in module._modules.items()]
        sizes.append((module._modules, len(module._modules)))
        slots.append((module.__dict__, "training", module.training))
        hooks: list[Any] = [module._forward_hooks, module._forward_pre_hooks]
        sizes += [(hook, len(hook)) for hook in hooks]  # which want to see the call
    return Watch(slots, sizes, tensors)
