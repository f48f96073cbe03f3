"""Measures on this machine's GPU and writes results/<gpu>.json.

python -m benchmarks.gpu                   # ceilings, networks, training, layers, within 15 minutes
python -m benchmarks.gpu                   # again: goes on where the time was over
python -m benchmarks.gpu --render          # only README's section, from results that are there

What was measured with the same sources, versions and GPU is kept; --anew measures it again.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from . import ledger, origin, plan
from .layers import all_layers
from .worker import OVER, Watched

_LEAST = 10.0  # seconds that are too few to begin something


def begin(path: Path, anew: bool) -> dict[str, Any]:
    """Results to add to: those of the file if they are of the same things, else new ones."""
    now = origin.of_this_gpu()
    if path.exists() and not anew:
        old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(old.get(name) == now[name] for name in ("gpu", "versions", "sources_hash")):
            return old | now
    return now


def measure(arguments: argparse.Namespace) -> Path:
    """What was asked for and is not there yet; each row is written when it is there."""
    path: Path = arguments.output / ledger.file_name(torch.cuda.get_device_name(0))
    results = begin(path, arguments.anew)
    # What was chosen with other sources counts for nothing.
    os.environ["XDG_CACHE_HOME"] = str(ledger.ROOT / "build" / "gpu" / results["sources_hash"])
    budget = plan.Budget(arguments.budget)
    layers = all_layers() if "layers" in arguments.parts else []
    wanted = plan.jobs(layers, arguments.parts)
    if arguments.no_compile:
        wanted = [job for job in wanted if not job.compiled]
    waiting = plan.pending(wanted, results)
    print(f"{len(waiting)} of {len(wanted)} rows are to be measured", flush=True)
    with Watched() as worker:
        run(waiting, results, budget, worker.run, path)
    print(f"{len(plan.pending(wanted, results))} rows are left for another time", flush=True)
    return path


def run(
    waiting: list[plan.Job],
    results: dict[str, Any],
    budget: plan.Budget,
    run_job: Any,
    path: Path,
) -> None:
    """Measures until there is nothing left or the time is over."""
    failed = results.setdefault("failed", {})
    for job in waiting:
        if budget.left() < _LEAST:
            break
        print(
            f"{budget.left():5.0f} s left: {job.id}{', torch.compile' * job.compiled}", flush=True
        )
        row, reason = run_job(job, budget.left() + _LEAST)
        if reason == OVER:
            break
        if row is None:
            failed[job.id] = reason
            print(f"  failed: {reason}", flush=True)
        else:
            failed.pop(job.id, None)
            plan.put(results, job, row)
            for name, text in row.get("errors", {}).items():
                print(f"  {name}: {text}", flush=True)
        ledger.write(results, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure fastconv on this machine's GPU.")
    parser.add_argument("--budget", type=float, default=900, metavar="SECONDS")
    parser.add_argument("--parts", nargs="+", choices=plan.PARTS, default=list(plan.PARTS))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--anew", action="store_true", help="keep nothing of earlier results")
    parser.add_argument("--output", type=Path, default=ledger.RESULTS, help="folder")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    readme = ledger.ROOT / "README.md"
    if arguments.render:
        path = ledger.path(readme.read_text())
    elif not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use")
    else:
        path = measure(arguments)
        print(f"wrote {path}")
        if path.resolve().parent != ledger.RESULTS:
            return
    results = None if path is None else json.loads(path.read_text())
    relative = "" if path is None else path.resolve().relative_to(ledger.ROOT).as_posix()
    new = ledger.updated(readme.read_text(), results, relative, ledger.sources_hash())
    readme.write_text(new)


if __name__ == "__main__":
    main()
