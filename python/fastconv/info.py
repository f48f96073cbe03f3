"""What a bug report needs to say about a machine, an installation and its versions."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import torch

from . import _library
from .gpu import store
from .gpu.device import gpu_of

# Whatever people compare with or run beside fastconv; never imported here.
_PACKAGES = (
    "numpy",
    "torchvision",
    "timm",
    "onnxruntime",
    "openvino",
    "pytest-benchmark",
    "hypothesis",
)


class Info(dict[str, str]):
    """A dict of strings that prints as aligned lines."""

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.items())


def info() -> Info:
    """Describes the installation: versions, CPU, chosen instruction set, threads, CUDA, libraries.

    Returns:
        A dict of strings, which prints as lines; the command ``fastconv info`` prints it.

    Example:
        >>> fastconv.info()["isa"]
        'avx2'
    """
    return Info(_package() | _machine() | _torch() | _cuda() | _others())


def _package() -> dict[str, str]:
    build = _library._C.build_info() if _library._C is not None else {}
    return {
        "fastconv": _version("fastconv"),
        "location": str(Path(__file__).parent),
        "library": str(_library.library_path() or f"not loaded: {_library.load_error()}"),
        **{f"build {name}": value for name, value in build.items()},
    }


def _machine() -> dict[str, str]:
    result = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "os": f"{platform.platform()} {' '.join(platform.libc_ver())}".strip(),
        "cpu": f"{_cpu_model()}, {os.cpu_count()} logical cores, {_usable_cores()} usable",
    }
    native = _library._C
    if native is None:
        return result | {"isa": "unknown: fastconv._C is missing"}
    caches = native.cache_sizes()
    return result | {
        "cpu features": " ".join(k for k, v in native.cpu_features().items() if v) or "none",
        "cpu caches": ", ".join(f"{name} {size // 1024} KiB" for name, size in caches.items()),
        "isa": native.isa(),
        "isa levels": " ".join(native.isa_levels()),
        "FASTCONV_ISA": os.environ.get("FASTCONV_ISA", "not set"),
        "FASTCONV_BACKEND": os.environ.get("FASTCONV_BACKEND", "not set"),
    }


def _torch() -> dict[str, str]:
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
    given = [f"{name}={os.environ[name]}" for name in variables if name in os.environ]
    parallel = re.search(r"parallel backend: (.*)", torch.__config__.parallel_info())
    return {
        "torch": f"{torch.__version__} ({str(torch.version.git_version)[:10]})",
        "torch threads": f"{torch.get_num_threads()} intra-op, {torch.get_num_interop_threads()}"
        f" inter-op {' '.join(given)}".rstrip(),
        "torch parallel": parallel[1] if parallel else "unknown",
        "torch cpu": torch.backends.cpu.get_cpu_capability(),
        "torch onednn": str(torch.backends.mkldnn.is_available()),
    }


def _cuda() -> dict[str, str]:
    library = _library.cuda_build_info() or f"not loaded: {_library.cuda_load_error()}"
    result = {
        "torch cuda": torch.version.cuda or "none",
        "cuda library": library,
        "triton": _version("triton"),
    }
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        result["gpu"] = ", ".join(names)
        result["gpu choices"] = str(store.path(gpu_of(torch.device("cuda"))))
    return result


def _others() -> dict[str, str]:
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            lines = file.readlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
