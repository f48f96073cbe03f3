"""What a results file says of where it comes from: GPU, versions, sources."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from typing import Any

import torch

from .. import machine
from . import ledger

# As nvidia-smi names them; read, never set.
_READINGS = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
)


def of_this_gpu() -> dict[str, Any]:
    """All of it."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "readings": readings(),
        "tf32": torch.backends.cudnn.allow_tf32,  # PyTorch's default for convolutions
        "versions": versions(),
        "sources_hash": ledger.sources_hash(),
        **machine.origin(),
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "not installed"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
    }


def readings() -> dict[str, str]:
    """Driver, clocks in MHz and power limit in W, before anything ran; the reason if unknown."""
    query = f"--query-gpu={','.join(_READINGS)}"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits", "--id=0"]
    try:
        text = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return {"nvidia-smi": f"{type(error).__name__}: {error}"}
    return dict(zip(_READINGS, map(str.strip, text.strip().split(",")), strict=False))
