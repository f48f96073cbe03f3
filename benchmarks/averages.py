"""Averages over crops and networks, in one batch and one by one. See :func:`fastconv.predict`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastconv
from fastconv._images import Preparation, batches_of, cut, loaded, prepared
from fastconv._timing import Contender
from fastconv.classify import demo_photos
from fastconv.predict import average

from .layers import flops, network
from .networks import fast_network
from .peers import OURS
from .timing import Speed, Work

# Of a photo that is read and resized already, as what the rivals run, and of its file.
ALONE = "fastconv_one_by_one"
FILE = "fastconv_file"
FILE_ALONE = "fastconv_file_one_by_one"
_SIZE = 224
_ENSEMBLE = ("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")


@dataclass(frozen=True)
class Setting:
    """Networks and a number of crops, whose probabilities are averaged."""

    networks: tuple[str, ...]
    crops: int
    threads: int

    @property
    def id(self) -> str:
        return f"predict-{'+'.join(self.networks)}-c{self.crops}-t{self.threads}"

    @property
    def speed(self) -> Speed:
        return Speed(rounds=10)

    def work(self) -> Work:
        """A real photo, by fastconv.predict, by each network on each crop, and by the originals."""
        originals = [network(name) for name in self.networks]
        models = [
            fast_network(name, original)
            for name, original in zip(self.networks, originals, strict=True)
        ]
        path = demo_photos()[0]
        photo = prepared(loaded([path])[0], 256, Preparation())

        def together(image: object) -> Tensor:
            return fastconv.predict(models, image, crops=self.crops)

        def alone(image: object) -> Tensor:
            means = []
            for model in models:
                (batch,) = batches_of(loaded([image]), [_SIZE], self.crops)
                means += [average([model], [crop], 1) for crop in batch.split(1)]
            return torch.stack(means).mean(0)

        calls = {
            OURS: lambda: together(photo),
            ALONE: lambda: alone(photo),
            FILE: lambda: together(path),
            FILE_ALONE: lambda: alone(path),
        }
        ours = tuple(Contender(name, call, call) for name, call in calls.items())
        total = sum(flops(original, (1, 3, _SIZE, _SIZE)) for original in originals)
        module = _Averaged(originals, self.crops).eval()
        skipped = {
            "torch_compile": "compiles for minutes",
            "ncnn": "ncnn computes one image at a time",
        }
        total *= self.crops
        return Work(self.id, self.threads, module, ours, photo[None], total, skipped)


class _Averaged(nn.Module):
    """The same of one photo, (1, 3, H, W), by the original networks: what the rivals run."""

    def __init__(self, networks: Sequence[nn.Module], crops: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._crops = crops

    def forward(self, photo: Tensor) -> Tensor:
        batch = torch.cat(cut(photo, self._crops, _SIZE))
        means = [model(batch).softmax(1).mean(0, keepdim=True) for model in self.networks]
        return torch.stack(means).mean(0)


def settings() -> list[Setting]:
    """Ten crops, an ensemble, and both."""
    cores = len(os.sched_getaffinity(0))
    works = (((_ENSEMBLE[0],), 10), (_ENSEMBLE, 1), (_ENSEMBLE, 10))
    threads = dict.fromkeys((1, cores))
    return [Setting(networks, crops, n) for networks, crops in works for n in threads]
