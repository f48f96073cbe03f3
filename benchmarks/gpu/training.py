"""Training steps, forward, backward and SGD, against PyTorch, with and without CUDA graphs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastconv

from . import timing
from .layers import numbers, plain_copy, wanted
from .plan import Job
from .timing import Call, Contender, compare

SIZE = 224  # of the images
# Of all gradients, relative to float64's: a value on the other side of a relu's corner is another
# gradient. PyTorch's own in float32 are wrong by up to 1e-2 for that reason.
TOLERANCE = 3e-2
_OF_EAGER = 1.5  # and of eager's own error in the same dtype
_CHECKED = 8  # images


def measure_training(job: Job, begin: Callable[[str], object]) -> dict[str, Any]:
    """One row: images per second, the peak of memory, and all else."""
    model = _network(job.network)
    plain = plain_copy(model)
    errors = functools.cache(lambda: gradient_errors(model, plain, job.dtype))

    def ours() -> Call:
        found = errors()
        if not found["fastconv"] <= TOLERANCE + _OF_EAGER * found["eager"]:
            raise ValueError(f"gradients differ from PyTorch's by {found}")
        return _Step(copy.deepcopy(model), job.batch, job.dtype).run

    def eager() -> Call:
        return _Step(copy.deepcopy(plain), job.batch, job.dtype).run

    contenders = [
        Contender("fastconv", ours, captured=False),
        Contender("fastconv, graph", ours),
        Contender("eager", eager, captured=False),
        Contender("eager, graph", eager),
    ]
    if job.compiled:
        contenders.append(
            Contender(
                "torch.compile",
                lambda: _Step(copy.deepcopy(plain), job.batch, job.dtype, compiles=True).run,
                captured=False,
            )
        )
    found = compare(wanted(contenders, job), None, 0.0, target=20e-3, begin=begin)
    speeds = {name: job.batch / seconds for name, seconds in found.seconds.items()}
    deviations = errors() if "fastconv" in found.seconds else {}
    return {
        "images_per_second": speeds,
        **numbers(found, job),
        "gradient_errors": {name: float(f"{error:.2g}") for name, error in deviations.items()},
    }


def gradient_errors(model: nn.Module, plain: nn.Module, dtype: str) -> dict[str, float]:
    """Of all gradients of a few images, relative to PyTorch's in float64; nothing is dropped."""
    found = {}
    for name, source, of in (
        ("truth", plain, "float64"),
        ("fastconv", model, dtype),
        ("eager", plain, dtype),
    ):
        step = _Step(_without_drops(copy.deepcopy(source)), _CHECKED, of)
        step.gradients()
        grads = [p.grad.flatten() for p in step.model.parameters() if p.grad is not None]
        found[name] = torch.cat(grads).double()
    truth = found.pop("truth")
    return {name: float((grads - truth).norm() / truth.norm()) for name, grads in found.items()}


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return fastconv.models.create_model(name).train()


def _without_drops(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(getattr(module, "p", None), float):  # Dropout, StochasticDepth
            module.p = 0.0  # type: ignore[assignment]
    return model


class _Step:
    """A network, an optimizer, and one batch; half precision is autocast."""

    def __init__(self, model: nn.Module, batch: int, dtype: str, compiles: bool = False) -> None:
        layout = torch.channels_last
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._casts = self._dtype in (torch.bfloat16, torch.float16)
        whole = torch.float32 if self._casts else self._dtype
        self.model: nn.Module = model.to(timing.DEVICE, whole, memory_format=layout)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, SIZE, SIZE, generator=generator)
        self._images = images.to(timing.DEVICE, whole, memory_format=layout)
        self._labels = torch.randint(0, 1000, (batch,), generator=generator).to(timing.DEVICE)
        self._forward: Any = self.model
        if compiles:
            self._forward = torch.compile(self.model)

    def gradients(self) -> Tensor:
        """The loss, after the backward pass."""
        self._optimizer.zero_grad(set_to_none=True)
        dtype = self._dtype if self._casts else None
        with torch.autocast(timing.DEVICE, dtype, enabled=self._casts):
            logits = self._forward(self._images)
            loss = F.cross_entropy(logits.float() if self._casts else logits, self._labels)
        loss.backward()
        return loss.detach()

    def run(self) -> Tensor:
        loss = self.gradients()
        self._optimizer.step()
        return loss
