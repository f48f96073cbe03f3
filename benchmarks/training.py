"""Training steps: forward, backward and SGD, by the kernels and by eager PyTorch."""

from __future__ import annotations

import ctypes
import gc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastconv
from fastconv import _timing
from fastconv._timing import Contender

from .memory import resident
from .peers import OURS

EAGER = "eager_channels_last"
# Of all gradients, relative to eager's in float32: a value on the other side of a relu's corner is
# another gradient.
_TOLERANCE = 5e-2
_OF_EAGER = 1.5  # and of eager's own error in bfloat16


@dataclass(frozen=True)
class Setting:
    """A network of fastconv.models, trained on random images of 224 x 224."""

    network: str
    dtype: str = "float32"
    batch: int = 16

    @property
    def id(self) -> str:
        return f"{self.network}-{self.dtype}-b{self.batch}"


SETTINGS = tuple(
    Setting(network, dtype)
    for network in ("mobilenet_v2", "efficientnet_b0", "mobilenet_v1", "mobilenet_v3_large")
    for dtype in ("float32", "bfloat16")
)


def find(id: str) -> Setting:
    """The setting of this id."""
    return {setting.id: setting for setting in SETTINGS}[id]


class _Step:
    """A network, an optimizer, and one batch."""

    def __init__(self, setting: Setting, who: str, batch: int | None = None) -> None:
        torch.manual_seed(0)
        self._backend = "reference" if who == EAGER else "auto"
        self._autocasts = setting.dtype == "bfloat16"
        model = fastconv.models.create_model(setting.network).train()
        self.model: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        images = torch.randn(batch or setting.batch, 3, 224, 224)
        self._images = images.to(memory_format=torch.channels_last)
        self._labels = torch.randint(0, 1000, (len(images),))

    def gradients(self) -> Tensor:
        """The loss, after the backward pass."""
        self._optimizer.zero_grad(set_to_none=True)
        with fastconv.use_backend(self._backend):
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocasts):
                loss = F.cross_entropy(self.model(self._images).float(), self._labels)
            loss.backward()
        return loss.detach()

    def run(self) -> None:
        self.gradients()
        self._optimizer.step()


def _check(setting: Setting) -> dict[str, float]:
    """The differences of all gradients to eager PyTorch's in float32, relative.

    Raises:
        RuntimeError: if ours is too large.
    """
    found = {}
    exact = Setting(setting.network)
    for name, of, who in (("truth", exact, EAGER), (OURS, setting, OURS), (EAGER, setting, EAGER)):
        step = _Step(of, who, batch=4)
        torch.manual_seed(1)  # for what is dropped
        step.gradients()
        grads = [p.grad.flatten() for p in step.model.parameters() if p.grad is not None]
        found[name] = torch.cat(grads)
    truth = found.pop("truth")
    errors = {who: float((grads - truth).norm() / truth.norm()) for who, grads in found.items()}
    if not errors[OURS] <= _TOLERANCE + _OF_EAGER * errors[EAGER]:
        raise RuntimeError(f"{setting.id}: gradients differ from PyTorch's by {errors}")
    return {who: float(f"{error:.2g}") for who, error in errors.items()}


def measure(setting: Setting, quick: bool) -> dict[str, Any]:
    """One interleaved run, all cores."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    errors = _check(setting)
    steps = {who: _Step(setting, who, batch=2 if quick else None) for who in (OURS, EAGER)}
    contenders = [Contender(who, step.run, step.gradients) for who, step in steps.items()]
    times = _timing.interleave(contenders, rounds=2 if quick else 15, block_seconds=0.1)
    rows = {
        who: {"median_ms": round(t.median * 1e3, 2), "iqr_ms": round(t.iqr * 1e3, 2)}
        for who, t in times.items()
    }
    ratios = sorted(
        ours / theirs
        for ours, theirs in zip(times[OURS].seconds, times[EAGER].seconds, strict=True)
    )
    return {
        "id": setting.id,
        "network": setting.network,
        "dtype": setting.dtype,
        "batch": setting.batch,
        "threads": threads,
        "rows": rows,
        "ratio_to_eager_channels_last": round(times[OURS].median / times[EAGER].median, 3),
        "median_of_paired_ratios": round(ratios[len(ratios) // 2], 3),
        "gradient_errors": errors,
    }


def measure_memory(setting: Setting, who: str) -> float:
    """What a step adds to resident memory at its peak, in MB, to the network and its gradients."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    _Step(setting, who, batch=1).run()  # libraries, code and pools
    step = _Step(setting, who)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        step.run()
    return round(resident("VmHWM") - before, 1)
