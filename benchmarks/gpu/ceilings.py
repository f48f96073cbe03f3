"""What the GPU can do at best: copies, matrix products, launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import timing
from .timing import Contender, compare

MEGABYTES = (1, 8, 64, 512, 2048)
SIZES = (4096, 8192)  # of square matrices


def ceilings(begin: Callable[[str], object] = lambda name: None) -> dict[str, Any]:
    """Of random numbers; zeros would be faster than they are.

    Returns:
        bytes per second of copies (read and written ones count), operations per second of bfloat16
        products, and seconds from one small kernel to the next, in a graph and launched by Python.
    """
    copies, products = {}, {}
    for megabytes in MEGABYTES:
        source = torch.randn(megabytes << 18, device=timing.DEVICE)
        target = torch.empty_like(source)
        seconds = _fastest(lambda s=source, t=target: t.copy_(s), begin)
        copies[f"{megabytes} MB"] = 2 * source.nbytes / seconds
    for size in SIZES:
        a, b = (
            torch.randn(size, size, device=timing.DEVICE, dtype=torch.bfloat16) for _ in range(2)
        )
        products[str(size)] = 2 * size**3 / _fastest(lambda a=a, b=b: a @ b, begin)
    small = torch.zeros(1, device=timing.DEVICE)
    return {
        "copy": copies,
        # The larger ones do not fit into a cache.
        "copy_bytes_per_second": max(copies[f"{size} MB"] for size in MEGABYTES[-2:]),
        "matmul": products,
        "matmul_flops_per_second": max(products.values()),
        "launch_seconds": _fastest(lambda: small.add_(1), begin),
        "python_launch_seconds": _fastest(lambda: small.add_(1), begin, captured=False),
    }


def _fastest(
    call: Callable[[], torch.Tensor], begin: Callable[[str], object], captured: bool = True
) -> float:
    found = compare([Contender("it", lambda: call, captured)], None, 0, begin=begin)
    if "it" in found.errors:
        raise RuntimeError(found.errors["it"])
    return found.seconds["it"]
