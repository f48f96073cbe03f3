"""Measures everything, writes benchmarks/results/<cpu>.json and .svg, and README's tables.

python -m benchmarks.report            # all of it: leave the machine alone meanwhile
python -m benchmarks.report --render   # only draw and write again, from the results README shows
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import machine, plot, table
from .layers import OPS
from .networks import settings
from .peers import EAGER, OURS
from .timing import FULL, QUICK

RESULTS = Path("benchmarks") / "results"


def _measure(kind: str, subject: str, *options: str) -> Any:
    print(f"{kind:8} {subject} {' '.join(options)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.measure", kind, subject, *options]
        subprocess.run([*command, "--output", str(output)], check=True, cwd=machine.ROOT)
        return json.loads(output.read_text())


def measure_all(quick: bool) -> dict[str, Any]:
    """The complete results of this machine."""
    options = ["--quick"] if quick else []
    ids = [setting.id for setting in settings()]
    results: dict[str, Any] = {"machine": machine.machine(), **machine.provenance()}
    rounds = (QUICK if quick else FULL).rounds
    results["measured"] = {"rounds": rounds, "input": "random normal, float32, 224x224"}
    results["networks"] = [_measure("network", id, *options) for id in ids]
    results["isa_levels"] = [_measure("isa", ids[0], *options)]
    results["memory"] = {
        id: {who: _measure("memory", id, "--contender", who) for who in (OURS, *EAGER)}
        for id in ids
    }
    results["layers"] = [row for op in OPS for row in _measure("layers", op, *options)]
    return results


def write(results: dict[str, Any], folder: Path) -> Path:
    """Write <cpu>.json and <cpu>.svg; returns the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine.slug(results['machine'])}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    plot.draw(results, path.with_suffix(".svg"))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure fastconv against its rivals.")
    parser.add_argument("--quick", action="store_true", help="try it out: few rounds and layers")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, help="another folder; README stays as it is")
    arguments = parser.parse_args()
    if arguments.quick and arguments.output is None:
        parser.error("--quick needs --output: its times mean little")
    readme = machine.ROOT / "README.md"
    if arguments.render:
        shown = table.results_path(readme.read_text())
        if shown is None:
            parser.error("README.md shows no results yet")
        path = machine.ROOT / shown
        results = json.loads(path.read_text())
        plot.draw(results, path.with_suffix(".svg"))
    else:
        results = measure_all(arguments.quick)
        path = write(results, arguments.output or machine.ROOT / RESULTS)
    if arguments.output is not None:
        print(f"wrote {path}\n\n{table.render(results, path.as_posix())}")
        return
    relative = path.relative_to(machine.ROOT).as_posix()
    readme.write_text(table.updated(readme.read_text(), results, relative))
    print(f"wrote {relative} and README.md")


if __name__ == "__main__":
    main()
