"""One of the processes of test_train_networks: trains a network on its share of the data, with each
backend, and writes the weights. Started by torchrun."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastconv
from fastconv.nn import Conv2dNormAct, InvertedResidual, MBConv, SqueezeExcite


def train(backend: str) -> nn.Module:
    rank, count = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = nn.Sequential(
        Conv2dNormAct(3, 16, 3, 2),
        InvertedResidual(16, 16, 1, 3),
        MBConv(16, 48, 24, stride=2, squeeze_excite=lambda mid: SqueezeExcite(mid, 8)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.05)
    generator = torch.Generator().manual_seed(1)
    with fastconv.use_backend(backend):
        for _ in range(5):
            input = torch.randn(8 * count, 3, 24, 24, generator=generator)
            target = torch.randint(0, 5, (8 * count,), generator=generator)
            own = slice(8 * rank, 8 * rank + 8)
            loss = F.cross_entropy(parallel(input[own]), target[own])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def main(directory: str, *backends: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for backend in backends:
        model = train(backend)
        if dist.get_rank() == 0:
            torch.save(model.state_dict(), Path(directory, backend))
    dist.barrier()
    dist.destroy_process_group()
    # PyTorch's threads that still wait for the interpreter when it ends abort the process.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
