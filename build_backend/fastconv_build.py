"""In-tree build backend: setuptools, plus the PyTorch that the user already has.

pip builds in an isolated environment without PyTorch. Asking for one there would download a
second, often different PyTorch; not asking would fail. But only the headers and the path of
libtorch_cpu are needed, and through the stable ABI those of any PyTorch from 2.10 on give a library
that runs on all others. So the backend looks outside first.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that stay as they are)

TORCH_REQUIREMENT = "torch>=2.10"

# Drops the empty entry of sys.path that stands for the working directory.
_PROBE = (
    "import sys, importlib.util; sys.path = [p for p in sys.path if p]; "
    "spec = importlib.util.find_spec('torch'); print(spec.origin if spec else '')"
)


class Torch(NamedTuple):
    """An installed PyTorch: its package directory, version and CUDA version ("" without CUDA)."""

    directory: Path
    version: str
    cuda: str

    @property
    def usable(self) -> bool:
        major, minor = map(int, re.match(r"(\d+)\.(\d+)", self.version).groups())
        return (major, minor) >= (2, 10) and (self.directory / "include/torch/csrc/stable").is_dir()


def read_torch(origin: str | None) -> Torch | None:
    """Reads the versions without importing torch/__init__.py, which is what `origin` names."""
    if not origin:
        return None
    directory = Path(origin).parent
    names: dict[str, object] = {}
    try:
        exec((directory / "version.py").read_text(), names)
    except OSError:
        return None
    return Torch(directory, str(names["__version__"]), str(names.get("cuda") or ""))


def find_torch() -> Torch | None:
    """The PyTorch of this environment, else of the one that pip was started from."""
    return next((torch for torch in map(read_torch, _origins()) if torch and torch.usable), None)


def _origins() -> Iterator[str | None]:
    spec = find_spec("torch")
    yield spec.origin if spec else None
    yield _ask_for_torch(sys.executable)
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if os.environ.get(variable):
            yield _ask_for_torch(os.path.join(os.environ[variable], "bin", "python"))


def _ask_for_torch(python: str) -> str:
    # -E: pip hides the outer packages through PYTHONPATH.
    try:
        command = [python, "-E", "-c", _PROBE]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def check_build_tools() -> Torch:
    """The PyTorch to build against; if that, a compiler or CMake is missing, says so and exits."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++").split()[0], "g++", "clang++"))):
        raise SystemExit("fastconv: no C++ compiler found; install g++ or clang++, or set CXX")
    if shutil.which("cmake") is None:
        raise SystemExit("fastconv: no cmake found; pip install cmake")
    torch = find_torch()
    if torch is None:
        raise SystemExit(f"fastconv: the build needs {TORCH_REQUIREMENT}, and none is installed")
    return torch


def find_nvcc() -> str | None:
    """nvcc of $CUDA_HOME if that is set, else of the PATH, else of the usual place."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = None if home else shutil.which("nvcc")
    return path or shutil.which("nvcc", path=os.path.join(home or "/usr/local/cuda", "bin"))


def nvcc_major(nvcc: str) -> str:
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return ""
    match = re.search(r"release (\d+)\.", text)
    return match[1] if match else ""


def choose_nvcc(torch: Torch) -> str | None:
    """The compiler of the CUDA half, or None to leave it out: FORCE_CUDA decides, else a match."""
    force = os.environ.get("FORCE_CUDA", "")
    nvcc = find_nvcc()
    if force == "0":
        return None
    if force:
        if nvcc is None:
            raise SystemExit("fastconv: FORCE_CUDA is set, but CUDA_HOME and PATH have no nvcc")
        return nvcc
    return nvcc if nvcc and torch.cuda and nvcc_major(nvcc) == torch.cuda.split(".")[0] else None


def _torch_requirement() -> list[str]:
    return [] if find_torch() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    # setuptools would pack what an earlier build left here. CMake keeps its own folder up to date.
    for leftover in glob.glob("build/lib*") + glob.glob("build/bdist*"):
        shutil.rmtree(leftover)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
