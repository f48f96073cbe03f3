"""torchvision, for the demo, the tests and the benchmarks: never needed by the package itself."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import runpy
import sys
from types import ModuleType

import torch

_operators: list[torch.library.Library] = []


def import_torchvision() -> ModuleType | None:
    """Import torchvision, also one whose C++ operators do not load; None if it is not installed.

    A torchvision built for CUDA beside a CPU torch stops at "operator torchvision::nms does not
    exist". Its networks do not need that operator, so it is declared, without an implementation.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.append(library)
    return importlib.import_module("torchvision")


def imagenet_categories() -> list[str]:
    """The 1000 class names of ImageNet from an installed torchvision, else "class 0" and so on."""
    spec = importlib.util.find_spec("torchvision")
    if spec is not None and spec.origin is not None:
        meta = pathlib.Path(spec.origin).parent / "models" / "_meta.py"
        if meta.is_file():
            names = runpy.run_path(str(meta)).get("_IMAGENET_CATEGORIES", [])
            if len(names) == 1000:
                return [str(name) for name in names]
    return [f"class {index}" for index in range(1000)]
