"""What the GPU can do at best: copies, matrix products, launches."""

from __future__ import annotations

from typing import Any

import torch

from .timing import compare


def ceilings() -> dict[str, Any]:
    """Bytes per second of a copy (read and written ones count), operations per second of a bfloat16
    product, and seconds of an empty launch in a graph."""
    copies = {}
    for megabytes in (8, 64, 512, 2048):
        source = torch.empty(megabytes << 20, dtype=torch.uint8, device="cuda").zero_()
        target = torch.empty_like(source)
        seconds = compare({"copy": lambda s=source, t=target: t.copy_(s)}, None, 0).seconds["copy"]
        copies[f"{megabytes} MB"] = 2 * source.numel() / seconds
    products = {}
    for size in (4096, 8192):
        a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        seconds = compare({"matmul": lambda a=a, b=b: a @ b}, None, 0).seconds["matmul"]
        products[str(size)] = 2 * size**3 / seconds
    small = torch.zeros(1, device="cuda")
    launch = compare({"launch": lambda: small.add_(1)}, None, 0).seconds["launch"]
    return {
        "copy": copies,
        "copy_bytes_per_second": max(copies["512 MB"], copies["2048 MB"]),
        "matmul": products,
        "matmul_flops_per_second": max(products.values()),
        "launch_seconds": launch,
    }
