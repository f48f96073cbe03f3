"""README's tables from a results file; needs nothing but Python, so that a test can compare."""

from __future__ import annotations

import re
from typing import Any

_MARKED = re.compile(r"<!-- results: (\S+) -->\n(.*?)<!-- /results -->", re.DOTALL)
_NO_RESULTS = "No results are recorded yet: `make bench` measures them.\n"
COLUMNS = {
    "fastconv": ("fastconv",),
    "torchvision, swapped": ("fastconv_swap",),
    "ONNX Runtime": ("onnxruntime", "onnxruntime_no_spinning"),
    "OpenVINO": ("openvino",),
    "torch.compile": ("torch_compile",),
    "eager channels_last": ("eager_channels_last",),
    "eager": ("eager",),
}
_RIVALS = {name: shown for shown, names in COLUMNS.items() for name in names}


def results_path(readme: str) -> str | None:
    """The results file that README shows, relative to the root; None if it shows none yet."""
    path = _marked(readme)[1]
    return None if path == "none" else path


def section(readme: str) -> str:
    """The generated part of README."""
    return _marked(readme)[2]


def updated(readme: str, results: dict[str, Any], path: str) -> str:
    """README with its generated part made from these results."""
    part = f"<!-- results: {path} -->\n{render(results, path)}<!-- /results -->"
    marked = _marked(readme)
    return readme[: marked.start()] + part + readme[marked.end() :]


def _marked(readme: str) -> re.Match[str]:
    match = _MARKED.search(readme)
    if match is None:
        raise ValueError("README.md must contain <!-- results: ... --> and <!-- /results -->")
    return match


def render(results: dict[str, Any] | None, path: str) -> str:
    """All tables of one results file as Markdown."""
    if results is None:
        return _NO_RESULTS
    svg = re.sub(r"\.json$", ".svg", path)
    parts = [
        f"![Time per batch of fastconv and its rivals]({svg})",
        _origin(results, path),
        _networks(results["networks"]),
        _isa_levels(results["isa_levels"]),
        _memory(results["memory"]),
        _layers(results["layers"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(results: dict[str, Any], path: str) -> str:
    machine, versions = results["machine"], results["versions"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    peers = ", ".join(f"{name} {version}" for name, version in versions.items())
    changed = " with changes" if results["sources_changed"] else ""
    return (
        f"{machine['cpu']} (family {machine['family']}, model {machine['model']}), "
        f"{machine['cores']} cores, {caches}. {peers}. Commit {results['commit'][:10]}{changed}, "
        f"{results['date']}. Medians of {results['measured']['rounds']} interleaved rounds, "
        f"{results['measured']['input']}; quartiles and all else in [{path}]({path})."
    )


def best(rows: dict[str, Any], names: tuple[str, ...]) -> float | None:
    times = [rows[name]["median_ms"] for name in names if name in rows]
    return min(times, default=None)


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _grid(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _networks(networks: list[dict[str, Any]]) -> str:
    header = ["224x224, float32, ms", *COLUMNS, "fastconv / fastest runtime", "% of FMA peak"]
    body = []
    for entry in networks:
        rows = entry["rows"]
        name, threads = entry["id"].split("-b")[0], entry["threads"]
        label = f"{name}, batch {entry['batch']}, {threads} thread{'s' * (threads > 1)}"
        times = [_number(best(rows, names)) for names in COLUMNS.values()]
        ratio = entry["ratio_to_fastest_runtime"]
        shown = "-" if ratio is None else f"{ratio:.2f}"
        body.append([label, *times, shown, _number(rows["fastconv"]["percent_of_peak"])])
    return _grid(header, body)


def _isa_levels(entries: list[dict[str, Any]]) -> str:
    body = [
        [f"{entry['id']}, {name.removeprefix('fastconv_')}", _number(row["median_ms"])]
        for entry in entries
        for name, row in entry["rows"].items()
    ]
    return _grid(["Instruction sets", "ms"], body) if body else ""


def _memory(memory: dict[str, Any]) -> str:
    names = ["fastconv", "eager_channels_last", "eager"]
    header = ["Resident memory that inference adds at its peak, MB", *(_RIVALS[n] for n in names)]
    body = [
        [id, *(_number(entry[name]["growth_mb"]) for name in names)] for id, entry in memory.items()
    ]
    return _grid(header, body)


def _layers(layers: list[dict[str, Any]]) -> str:
    header = ["Layer", "MFLOP", "fastconv us", "% of FMA peak", "fastest rival", "fastconv / it"]
    body = []
    for entry in layers:
        rows = entry["rows"]
        ours = rows["fastconv"]
        rivals = {name: row["median_ms"] for name, row in rows.items() if name in _RIVALS}
        rivals.pop("fastconv")
        fastest = min(rivals, key=rivals.__getitem__)
        body.append(
            [
                f"{entry['op']} {entry['layer']}",
                _number(entry["mflop"]),
                _number(ours["median_ms"] * 1e3),
                _number(ours["percent_of_peak"]),
                _RIVALS[fastest],
                f"{ours['median_ms'] / rivals[fastest]:.2f}",
            ]
        )
    title = "Every layer alone, batch 1, one thread"
    return f"<details><summary>{title}</summary>\n\n{_grid(header, body)}\n\n</details>"
