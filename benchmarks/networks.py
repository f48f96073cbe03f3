"""Whole networks as something to compare, and the settings that the results show."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

import fastconv
from fastconv import _library, backend
from fastconv._peak import LEVELS
from fastconv._timing import Contender

from .layers import flops, network, random_input
from .peers import OURS, SWAPPED
from .timing import FULL, Speed, Work

Call = Callable[[], torch.Tensor]

NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")
# Measured with one image only, of the size that each is made for.
_MORE = {"mobilenet_v3_small": 224, "efficientnet_b4": 380}
# Mostly of dense convolutions.
_CLASSIC = ("resnet50", "googlenet")
_SUFFIXES = {"float32": "", "bfloat16": "-bf16"}


@dataclass(frozen=True)
class Setting:
    """A network with a batch size, a number of threads, a dtype and a size of the images."""

    network: str
    batch: int
    threads: int
    dtype: str = "float32"
    size: int = 224

    @property
    def id(self) -> str:
        return f"{self.network}-b{self.batch}-t{self.threads}{_SUFFIXES[self.dtype]}"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, 3, self.size, self.size)

    @property
    def speed(self) -> Speed:
        """Fewer rounds where one call takes long."""
        images = self.batch * (self.size / 224) ** 2
        if images > 16:
            return Speed(rounds=5)
        return Speed(rounds=10) if images > 1 else FULL

    def skipped(self) -> dict[str, str]:
        """Rivals that are left out to save time, and why."""
        reasons = {}
        if self.batch > 16:
            reasons["eager"] = "slower than channels_last by far at batch 16: not repeated"
        if self.batch > 16 or self.size > 224:
            reasons["torch_compile"] = "compiles for minutes: only up to 16 images of 224x224"
        return reasons

    def work(self) -> Work:
        """fastconv's network and the original, swapped and as it is, with the same weights."""
        work = self._work(lambda call: (Contender(OURS, call, call),))
        swapped = fastconv.swap(copy.deepcopy(work.module), dtype=work.input.dtype)

        def call() -> torch.Tensor:
            output: torch.Tensor = swapped(work.input)
            return output

        ours = (*work.ours, Contender(SWAPPED, call, call))
        return dataclasses.replace(work, ours=ours, skipped=self.skipped())

    def isa_work(self) -> Work:
        """The same with fastconv once per ISA level of this CPU, to compare the levels."""
        names = [] if _library._C is None else _library._C.isa_levels()
        return self._work(lambda call: tuple(_at_level(name, call) for name in names))

    def _work(self, contenders: Callable[[Call], tuple[Contender, ...]]) -> Work:
        dtype = getattr(torch, self.dtype)
        # Weights and images that the dtype can hold are the same for everybody, float64 too.
        module = network(self.network, self.size).to(dtype).to(torch.float32)
        model = fast_network(self.network, module).to(dtype)
        input = random_input(self.shape).to(dtype)
        ours = contenders(lambda: model(input))
        total = self.batch * flops(module, (1, *self.shape[1:]))
        return Work(self.id, self.threads, module, ours, input, total)


_chosen_level = contextlib.ExitStack()


def _at_level(name: str, call: Call) -> Contender:
    def select() -> None:
        _chosen_level.close()
        _chosen_level.enter_context(backend.use_isa(LEVELS.index(name)))

    def result() -> torch.Tensor:
        select()
        return call()

    return Contender(f"{OURS}_{name}", call, result, prepare=select)


def fast_network(name: str, like: torch.nn.Module) -> torch.nn.Module:
    """fastconv's network with the weights of the original, in eval mode."""
    model = fastconv.models.create_model(name)
    model.load_state_dict(like.state_dict())
    result: torch.nn.Module = model.eval().requires_grad_(False)
    return result


def settings() -> list[Setting]:
    """What the results show: one thread and all that this machine has the cores for."""
    cores = len(os.sched_getaffinity(0))
    single = list(dict.fromkeys([(1, 1), (1, cores)]))
    batches = [*single, (16, cores), (64, cores)]
    wanted = [(name, batch, n, 224) for name in NETWORKS for batch, n in batches]
    wanted += [(name, batch, n, size) for name, size in _MORE.items() for batch, n in single]
    mobile = [
        Setting(name, batch, n, dtype, size)
        for dtype in _SUFFIXES
        for name, batch, n, size in wanted
    ]
    return mobile + [Setting(name, batch, cores) for name in _CLASSIC for batch in (1, 16)]


def memory_settings() -> list[Setting]:
    """What resident memory is measured of: one image, and the batch that fills the caches."""
    return [
        setting
        for setting in settings()
        if setting.dtype == "float32"
        and setting.network in NETWORKS
        and (setting.batch == 16 or (setting.batch, setting.threads) == (1, 1))
    ]


def profile_settings() -> list[Setting]:
    """What is shown step by step: one image."""
    wanted = [s for s in settings() if s.network in NETWORKS]
    return [s for s in wanted if s.batch == 1 and s.dtype == "float32"]


QUICK_SETTINGS = [Setting("mobilenet_v2", 1, 1, dtype) for dtype in _SUFFIXES]
ISA_SETTING = QUICK_SETTINGS[0]


def find(id: str) -> Setting:
    """The setting of this id."""
    return {setting.id: setting for setting in settings()}[id]
