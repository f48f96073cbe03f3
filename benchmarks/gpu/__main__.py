"""Measures on this machine's GPU and writes results/<gpu>.json.

python -m benchmarks.gpu                   # ceilings, networks, layers, within 15 minutes
python -m benchmarks.gpu --render          # only README's section, from the results it shows
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import machine
from . import ledger
from .timing import Budget

PARTS = ("ceilings", "networks", "layers")


def begin() -> dict[str, Any]:
    """What a results file says of where it comes from."""
    properties = torch.cuda.get_device_properties(0)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton",):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["CUDA"] = str(torch.version.cuda)
    versions["cuDNN"] = str(torch.backends.cudnn.version())
    return {
        "gpu": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "versions": versions,
        "sources_hash": ledger.sources_hash(),
        **machine.origin(),
    }


def measure(arguments: argparse.Namespace) -> Path:
    """All parts that were asked for; each is written when it is there."""
    torch.backends.cudnn.benchmark = True
    results = begin()
    path: Path = arguments.output / ledger.file_name(results["gpu"])
    budget = Budget(arguments.budget)
    for part in arguments.parts:
        print(f"{part}: {budget.left():.0f} seconds left", flush=True)
        if part == "ceilings":
            from .ceilings import ceilings

            results["ceilings"] = ceilings()
            ledger.write(results, path)
            continue
        rows = results.setdefault(part, [])

        def emit(row: dict[str, Any], rows: list[dict[str, Any]] = rows) -> None:
            rows.append(row)
            ledger.write(results, path)
            print(json.dumps(row)[:400], flush=True)

        if part == "networks":
            from .networks import measure_networks

            share = Budget(0.6 * budget.left())
            measure_networks(share, emit, not arguments.no_compile)
        else:
            from .layers import NETWORKS, measure_layers

            dtypes = (torch.bfloat16, torch.float32)
            measure_layers(NETWORKS, (256, 1, 32), dtypes, budget, emit, not arguments.no_compile)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure fastconv on this machine's GPU.")
    parser.add_argument("--budget", type=float, default=900, metavar="SECONDS")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, default=ledger.RESULTS, help="folder")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    readme = ledger.ROOT / "README.md"
    if arguments.render:
        shown = ledger.shown(readme.read_text())[0]
        path = None if shown is None else ledger.ROOT / shown
    elif not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use")
    else:
        path = measure(arguments)
        print(f"wrote {path}")
        if path.parent != ledger.RESULTS:
            return
    results = None if path is None else json.loads(path.read_text())
    relative = "" if path is None else path.relative_to(ledger.ROOT).as_posix()
    new = ledger.updated(readme.read_text(), results, relative, ledger.sources_hash())
    readme.write_text(new)


if __name__ == "__main__":
    main()
