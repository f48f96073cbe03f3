"""What the cost model knows of a GPU."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

# Per multiprocessor and clock, by compute capability: dense float16 operations of the tensor cores,
# and float32 operations outside of them. From NVIDIA's architecture white papers.
_TENSOR = {(7, 5): 1024, (8, 0): 2048, (8, 6): 1024, (8, 7): 1024, (8, 9): 1024, (9, 0): 4096}
_FLOAT = {(7, 5): 128, (8, 0): 128}
_NEWER_TENSOR, _NEWER_FLOAT = 4096, 256


class Gpu(NamedTuple):
    """A GPU.

    Args:
        name: as the driver says
        capability: compute capability, such as (9, 0)
        multiprocessors: how many
        bandwidth: of its memory, bytes per second
        l2_bytes: size of the L2 cache
        shared_bytes: shared memory that a block of threads may ask for
        tensor_flops: dense float16 operations per second
        float_flops: float32 operations per second outside of the tensor cores
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    bandwidth: float
    l2_bytes: int
    shared_bytes: int
    tensor_flops: float
    float_flops: float

    @property
    def has_triton(self) -> bool:
        """Whether Triton compiles for it."""
        return self.capability >= (8, 0)

    @property
    def has_bfloat16(self) -> bool:
        """Whether its tensor cores multiply bfloat16."""
        return self.capability >= (8, 0)


# Where there is no GPU: the one that the kernels are tuned for.
H200 = Gpu("H200", (9, 0), 132, 4.8e12, 50 << 20, 227 << 10, 989e12, 67e12)


def from_properties(properties: Any) -> Gpu:
    """From what ``torch.cuda.get_device_properties`` says; older PyTorch leaves some of it out."""
    capability = (properties.major, properties.minor)
    count = properties.multi_processor_count
    clock = 1e3 * (getattr(properties, "clock_rate", 0) or 1_500_000)  # from kHz
    # Two transfers per clock.
    bandwidth = 2e3 * getattr(properties, "memory_clock_rate", 0) / 8
    bandwidth *= getattr(properties, "memory_bus_width", 0)
    shared = getattr(properties, "shared_memory_per_block_optin", 48 << 10)
    return Gpu(
        name=properties.name,
        capability=capability,
        multiprocessors=count,
        bandwidth=bandwidth or H200.bandwidth * count / H200.multiprocessors,
        l2_bytes=getattr(properties, "L2_cache_size", 0) or 4 << 20,
        shared_bytes=shared,
        tensor_flops=count * clock * _TENSOR.get(capability, _NEWER_TENSOR),
        float_flops=count * clock * _FLOAT.get(capability, _NEWER_FLOAT),
    )


@functools.lru_cache
def _of_index(index: int) -> Gpu:
    return from_properties(torch.cuda.get_device_properties(index))


def gpu_of(device: torch.device) -> Gpu:
    """The GPU of a tensor's device; for the CPU, where Triton interprets, that of the tuning."""
    if device.type != "cuda":
        return H200
    return _of_index(torch.cuda.current_device() if device.index is None else device.index)
