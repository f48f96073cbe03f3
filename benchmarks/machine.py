"""What results must say about where they come from."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastconv import _library

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "openvino", "ncnn", "pnnx", "numpy")


def machine() -> dict[str, Any]:
    """The CPU, its cores, caches and ISA levels."""
    info = _cpuinfo()
    native = _library._C
    return {
        "cpu": info.get("model name", platform.processor()),
        "family": int(info.get("cpu family", 0)),
        "model": int(info.get("model", 0)),
        "cores": len(os.sched_getaffinity(0)),
        "caches": _caches(),
        "isa_levels": [] if native is None else native.isa_levels(),
        "kernel": platform.release(),
    }


def provenance() -> dict[str, Any]:
    """Versions, the same for all entries of a results file."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "compiler": "none" if _library._C is None else _library._C.build_info()["compiler"],
    }


def origin() -> dict[str, Any]:
    """The commit of the sources and the time, which each entry has of its own."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "sources_changed": bool(_git("status", "--porcelain", "--", "csrc", "python")),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "load_average": round(os.getloadavg()[0], 2),
    }


def slug(description: dict[str, Any]) -> str:
    """A file name for a machine; cloud CPUs that hide their number get family and model."""
    name = re.sub(r"\(r\)|\(tm\)|cpu|processor|@.*", " ", description["cpu"].lower())
    if not re.search(r"\d", name):
        name += f" family {description['family']} model {description['model']}"
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {description['cores']} cores").strip("-")


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    first = text.split("\n\n")[0].splitlines()
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in first)}


def _caches() -> dict[str, str]:
    result = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (folder / name).read_text().strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            result[f"L{level}"] = size
    return result


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"torch": torch.__version__}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
