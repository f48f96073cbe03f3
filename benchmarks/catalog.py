"""Writes docs/models.md's table of all networks, and benchmarks/results/<cpu>-models.json.

python -m benchmarks.catalog                    # all of it: leave the machine alone meanwhile
python -m benchmarks.catalog --only 'resnet*'   # these again, keep the others
python -m benchmarks.catalog --no-times         # what needs no measuring; keep the times
python -m benchmarks.catalog --render           # only write again, from the results shown
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
from pathlib import Path
from typing import Any

from fastconv import _bench, _resolve, _torchvision, models, summary
from fastconv._progress import Progress
from fastconv.summary import input_channels

from . import machine, table
from .report import RESULTS, begin, write

DOCUMENT = Path("docs") / "models.md"
_OTHERS = {"mobilenet_v1": "timm"}  # whose state_dict keys those have that torchvision has not
_RIVALS = {"channels_last": "eager channels_last", "onnxruntime": "ONNX Runtime"}
_LARGE = 8e9  # multiply-accumulates, from which fewer rounds are enough
_HEADER = [
    "Network",
    "image",
    "parameters, M",
    "MACs, M",
    "keys of",
    "MACs on our kernels, %",
    "fastconv ms",
    *(f"{name} ms" for name in _RIVALS.values()),
    "fastconv / eager",
    "fastconv / ONNX Runtime",
]


def facts(name: str, network: _resolve.Network) -> dict[str, Any]:
    """What is known of a network without running it."""
    size = models.image_size(name)
    found = summary(network.module, (1, input_channels(network.module), size, size))
    layers = [row for row in found.rows if not row.is_block]
    native = sum(row.macs for row in layers if row.runs_on == "fastconv native")
    return {
        "id": name,
        "size": size,
        "parameters": found.total_parameters,
        "macs": found.total_macs,
        "keys": keys_of(name),
        "native_macs": native,
    }


def keys_of(name: str) -> str:
    """Which library's network has the same state_dict keys."""
    torchvision = _torchvision.import_torchvision()
    if torchvision is None:
        raise RuntimeError("catalog: keys_of needs torchvision, to know which networks it has")
    has_it = name in torchvision.models.list_models(module=torchvision.models)
    return "torchvision" if has_it else _OTHERS.get(name, "fastconv")


def times(
    network: _resolve.Network, size: int, macs: int, rounds: int | None = None
) -> dict[str, Any]:
    """One image, all cores, in interleaved rounds, after a check of the results."""
    options = _bench.Options(
        batch=1,
        threads=len(os.sched_getaffinity(0)),
        size=size,
        rounds=rounds or (3 if macs > _LARGE else 7),
        rivals=tuple(_RIVALS),
    )
    with Progress() as progress:
        (result,) = _bench.bench([network], options, progress)
    shown = {_bench.OURS: _bench.OURS} | {_bench.RIVALS[key]: key for key in _RIVALS}
    rows = {
        shown[row["runs_on"]]: {
            "median_ms": float(f"{row['ms']:.4g}"),
            "iqr_ms": float(f"{row['iqr_ms']:.4g}"),
            "difference": float(f"{row['difference']:.2g}"),
        }
        for row in result.rows()
    }
    return {
        "threads": options.threads,
        "rounds": options.rounds,
        "rows": rows,
        "skipped": {shown[name]: reason for name, reason in result.skipped.items()},
    }


def chosen(pattern: str) -> list[str]:
    """The names that match one of the comma-separated patterns.

    Raises:
        ValueError: if a pattern matches none.
    """
    found: dict[str, None] = {}
    for part in pattern.split(","):
        matching = fnmatch.filter(models.list_models(), part)
        if not matching:
            raise ValueError(f"--only must match {' '.join(models.list_models())}, got {part}")
        found |= dict.fromkeys(matching)
    return list(found)


def merged(old: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries with the new one in its place; a new one without times keeps those that were there.

    Sorted by name, numbers as numbers; entries of networks that are no more are left out.
    """
    entries = {entry["id"]: entry for entry in old}
    entries[new["id"]] = entries.get(new["id"], {}) | new
    known = [entry for id, entry in entries.items() if id in models.list_models()]
    return sorted(known, key=lambda entry: _natural(entry["id"]))


def _natural(name: str) -> list[Any]:
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdigit() else part for part in parts]


def render(results: dict[str, Any], path: str) -> str:
    """The table, and what it was made by, as Markdown."""
    entries = results["models"]
    timed = [entry["measured"] | {"id": entry["id"]} for entry in entries if "measured" in entry]
    text = table.grid(_HEADER, [_row(entry) for entry in entries])
    link = f"[{path}]({os.path.relpath(path, DOCUMENT.parent)})"
    if not timed:
        return f"{text}\n\nNo times are recorded yet: `make models` measures them. {link}\n"
    threads = {entry["threads"] for entry in timed}
    reasons = [
        f"* {entry['id']}, {_RIVALS[name]}: {reason}"
        for entry in timed
        for name, reason in entry["skipped"].items()
    ]
    missing = "\n".join(["\n\nNot measured:\n", *reasons]) if reasons else ""
    return (
        f"{text}{missing}\n\nOne image, {', '.join(map(table.threads_of, sorted(threads)))}, "
        f"float32. {table.made_by(results, timed)}. Medians of interleaved rounds on "
        f"{results['measured']['input']}, with random weights; quartiles and all else in {link}.\n"
    )


def _row(entry: dict[str, Any]) -> list[str]:
    rows = entry.get("measured", {}).get("rows", {})
    median = {name: row["median_ms"] for name, row in rows.items()}
    ours = median.get(_bench.OURS)
    ratios = [f"{ours / median[name]:.2f}" if name in median else "-" for name in _RIVALS]
    return [
        entry["id"],
        str(entry["size"]),
        table.number(entry["parameters"] / 1e6),
        table.number(entry["macs"] / 1e6),
        entry["keys"],
        f"{100 * entry['native_macs'] / entry['macs']:.1f}",
        table.number(ours),
        *(table.number(median.get(name)) for name in _RIVALS),
        *ratios,
    ]


def _parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description="Measure every network of fastconv.models.")
    parser.add_argument("--only", metavar="NAMES", default="*", help="comma-separated, may hold *")
    parser.add_argument("--no-times", action="store_true", help="keep the times that are there")
    parser.add_argument("--render", action="store_true", help="only write the document again")
    parser.add_argument("--rounds", type=int, help="fewer, to try it out")
    parser.add_argument("--output", type=Path, help="another folder; the document stays as it is")
    return parser, parser.parse_args()


def _run(arguments: argparse.Namespace) -> Path:
    """Measure; the file is written after each network, so that nothing is lost if it is stopped."""
    folder = arguments.output or machine.ROOT / RESULTS
    path: Path = folder / f"{machine.slug(machine.machine())}-models.json"
    names = chosen(arguments.only)
    keep = path.exists() and (arguments.only != "*" or arguments.no_times)
    results = begin(json.loads(path.read_text()) if keep else None)
    for name in names:
        network = _resolve.resolve(f"fastconv:{name}")
        entry = facts(name, network)
        if not arguments.no_times:
            origin = machine.origin()
            measured = times(network, entry["size"], entry["macs"], arguments.rounds)
            entry["measured"] = measured | origin
        results["models"] = merged(results.get("models", []), entry)
        write(results, path)
    return path


def main() -> None:
    parser, arguments = _parse()
    document = machine.ROOT / DOCUMENT
    if arguments.render:
        shown = table.results_path(document.read_text())
        if shown is None:
            parser.error(f"{DOCUMENT} shows no results yet")
        path = machine.ROOT / shown
    else:
        try:
            path = _run(arguments)
        except ValueError as error:
            parser.error(str(error))
    results = json.loads(path.read_text())
    if arguments.output is not None:
        print(f"wrote {path}\n\n{render(results, path.as_posix())}")
        return
    relative = path.relative_to(machine.ROOT).as_posix()
    content = render(results, relative)
    document.write_text(table.replaced(document.read_text(), content, relative))
    print(f"wrote {relative} and {DOCUMENT}")


if __name__ == "__main__":
    main()
