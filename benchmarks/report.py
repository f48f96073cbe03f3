"""Measures everything, writes benchmarks/results/<cpu>.json and pictures, and README's tables.

python -m benchmarks.report            # all of it: leave the machine alone meanwhile
python -m benchmarks.report --only 'mobilenet_v2-*,layers-linear'  # these again, keep the others
python -m benchmarks.report --render   # only draw and write again, from the results README shows
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import machine, plot, table, training
from .layers import OPS
from .networks import ISA_SETTING, memory_settings, profile_settings, settings
from .peers import EAGER, OURS

RESULTS = Path("benchmarks") / "results"


@dataclass(frozen=True)
class Job:
    """One thing to measure, and the section of the results it belongs to."""

    section: str
    kind: str
    subject: str

    @property
    def id(self) -> str:
        is_enough = self.kind in ("network", self.subject)
        return self.subject if is_enough else f"{self.kind}-{self.subject}"


def jobs() -> list[Job]:
    """Everything that complete results have."""
    return [
        *(Job("networks", "network", setting.id) for setting in settings()),
        Job("isa_levels", "isa", ISA_SETTING.id),
        *(Job("memory", "memory", setting.id) for setting in memory_settings()),
        *(Job("profiles", "profile", setting.id) for setting in profile_settings()),
        *(Job("layers", "layers", op) for op in OPS),
        Job("bandwidths", "bandwidths", "bandwidths"),
        *(Job("training", "training", setting.id) for setting in training.SETTINGS),
    ]


def chosen(patterns: str) -> list[Job]:
    """The jobs whose ids match one of the comma-separated patterns.

    Raises:
        ValueError: if a pattern matches none.
    """
    found: dict[Job, None] = {}
    for pattern in patterns.split(","):
        matching = [job for job in jobs() if fnmatch.fnmatchcase(job.id, pattern)]
        if not matching:
            ids = " ".join(job.id for job in jobs())
            raise ValueError(f"--only must match ids of {ids}, got {pattern}")
        found |= dict.fromkeys(matching)
    return list(found)


def _measure(job: Job, *options: str) -> Any:
    print(f"{job.kind:10} {job.subject} {' '.join(options)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.measure", job.kind, job.subject, *options]
        subprocess.run([*command, "--output", str(output)], check=True, cwd=machine.ROOT)
        return json.loads(output.read_text())


def measure_into(results: dict[str, Any], job: Job, quick: bool) -> None:
    """Run one job and put what it measured in the place of what was there."""
    if job.kind == "memory":
        origin = machine.origin()
        rows = {who: _measure(job, "--contender", who) for who in (OURS, *EAGER)}
        results.setdefault("memory", {})[job.subject] = rows | origin
        return
    measured = _measure(job, *["--quick"] * quick)
    if job.kind == "training":
        who = (OURS, training.EAGER)
        memory = Job("training", "training_memory", job.subject)
        measured["growth_mb"] = {name: _measure(memory, "--contender", name) for name in who}
    if job.kind == "bandwidths":
        results["bandwidths"] = measured
        return
    origin = machine.origin()
    new = measured if isinstance(measured, list) else [measured]
    results[job.section] = merged(results.get(job.section, []), [e | origin for e in new])


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries by their id, new ones in the place of old ones; networks in their own order."""
    order = {setting.id: place for place, setting in enumerate(settings())}
    entries = list(({e["id"]: e for e in old} | {e["id"]: e for e in new}).values())
    return sorted(entries, key=lambda entry: order.get(entry["id"], len(order)))


def begin(old: dict[str, Any] | None) -> dict[str, Any]:
    """Results to add to: nothing but the machine, or old ones if made by the same versions.

    Raises:
        ValueError: if the versions differ, so that old and new entries would not compare.
    """
    now = {"machine": machine.machine(), **machine.provenance()}
    now["measured"] = {"input": "random normal images"}
    if old is None:
        return now
    before = old["versions"]
    changed = [name for name, v in now["versions"].items() if before.get(name, v) != v]
    if changed:
        raise ValueError(f"--only keeps old results, but other versions made them: {changed}")
    return old | now


def write(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def _parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description="Measure fastconv against its rivals.")
    parser.add_argument("--quick", action="store_true", help="try it out: few rounds and layers")
    parser.add_argument("--only", metavar="IDS", help="comma-separated, may hold *; keep the rest")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, help="another folder; README stays as it is")
    arguments = parser.parse_args()
    if arguments.quick and arguments.output is None:
        parser.error("--quick needs --output: its times mean little")
    return parser, arguments


def _run(arguments: argparse.Namespace) -> Path:
    """Measure; the file is written after each job, so that nothing is lost if it is stopped."""
    folder = arguments.output or machine.ROOT / RESULTS
    path: Path = folder / f"{machine.slug(machine.machine())}.json"
    wanted = jobs() if arguments.only is None else chosen(arguments.only)
    keep = arguments.only is not None and path.exists()
    results = begin(json.loads(path.read_text()) if keep else None)
    for job in wanted:
        measure_into(results, job, arguments.quick)
        write(results, path)
    return path


def main() -> None:
    parser, arguments = _parse()
    readme = machine.ROOT / "README.md"
    if arguments.render:
        shown = table.results_path(readme.read_text())
        if shown is None:
            parser.error("README.md shows no results yet")
        path = machine.ROOT / shown
    else:
        try:
            path = _run(arguments)
        except ValueError as error:
            parser.error(str(error))
    results = json.loads(path.read_text())
    plot.draw(results, path.with_suffix(".svg"))
    if arguments.output is not None:
        print(f"wrote {path}\n\n{table.render(results, path.as_posix())}")
        return
    relative = path.relative_to(machine.ROOT).as_posix()
    readme.write_text(table.updated(readme.read_text(), results, relative))
    print(f"wrote {relative} and README.md")


if __name__ == "__main__":
    main()
