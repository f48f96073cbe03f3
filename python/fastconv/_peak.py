"""What a CPU can do at most, measured."""

from __future__ import annotations

import torch

from . import _library

LEVELS = ("scalar", "avx2", "avx512", "neon")


def fma_peak(seconds: float = 0.02) -> float | None:
    """Measured GFLOP/s of one thread that does nothing but FMAs at the best ISA level; None without
    the native library."""
    native = _library._C
    if not hasattr(native, "measure_fma_peak"):
        return None
    return float(native.measure_fma_peak(LEVELS.index(native.isa_levels()[-1]), seconds))


def peak_factor(dtype: torch.dtype) -> int:
    """How many times the float32 FMA peak this dtype can reach: AVX512_BF16 does two in one."""
    native = _library._C
    has_bfloat16 = native is not None and native.cpu_features().get("avx512bf16", False)
    return 2 if dtype == torch.bfloat16 and has_bfloat16 else 1
