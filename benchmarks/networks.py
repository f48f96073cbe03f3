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
from fastconv._timing import Contender

from .layers import flops, network, random_input
from .peers import OURS, SWAPPED
from .timing import LEVELS, Work

Call = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """A network at 224x224 with a batch size and a number of threads."""

    network: str
    batch: int
    threads: int

    @property
    def id(self) -> str:
        return f"{self.network}-b{self.batch}-t{self.threads}"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, 3, 224, 224)

    def work(self) -> Work:
        """fastconv's network and torchvision's, swapped and as it is, with the same weights."""
        work = self._work(lambda call: (Contender(OURS, call, call),))
        swapped = fastconv.swap(copy.deepcopy(work.module))

        def call() -> torch.Tensor:
            output: torch.Tensor = swapped(work.input)
            return output

        ours = (*work.ours, Contender(SWAPPED, call, call))
        return dataclasses.replace(work, ours=ours)

    def isa_work(self) -> Work:
        """The same with fastconv once per ISA level of this CPU, to compare the levels."""
        names = [] if _library._C is None else _library._C.isa_levels()
        return self._work(lambda call: tuple(_at_level(name, call) for name in names))

    def _work(self, contenders: Callable[[Call], tuple[Contender, ...]]) -> Work:
        module = network(self.network)
        model = fast_network(self.network, module)
        input = random_input(self.shape)
        ours = contenders(lambda: model(input))
        return Work(self.id, self.threads, module, ours, input, flops(module, self.shape))


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
    """fastconv's network with the weights of torchvision's, in eval mode."""
    model = fastconv.models.create_model(name)
    model.load_state_dict(like.state_dict())
    result: torch.nn.Module = model.eval().requires_grad_(False)
    return result


def settings() -> list[Setting]:
    """What the results show, as far as this machine has the cores."""
    cores = len(os.sched_getaffinity(0))
    wanted = [(1, 1), (1, 2), (16, 2)]
    return [Setting("mobilenet_v2", batch, n) for batch, n in wanted if n <= cores]
