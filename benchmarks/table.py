"""README's tables from a results file; needs nothing but Python, so that a test can compare."""

from __future__ import annotations

import re
from typing import Any

from . import roofline

_MARKED = re.compile(r"<!-- results: (\S+) -->\n(.*?)<!-- /results -->", re.DOTALL)
_NO_RESULTS = "No results are recorded yet: `make bench` measures them.\n"
COLUMNS = {
    "fastconv": ("fastconv",),
    "original, swapped": ("fastconv_swap",),
    "ONNX Runtime": ("onnxruntime", "onnxruntime_no_spinning"),
    "OpenVINO": ("openvino",),
    "ncnn": ("ncnn",),
    "torch.compile": ("torch_compile",),
    "eager channels_last": ("eager_channels_last",),
    "eager": ("eager",),
}
_SHOWN = {name: shown for shown, names in COLUMNS.items() for name in names}


def results_path(readme: str) -> str | None:
    """The results file that README shows, relative to the root; None if it shows none yet."""
    path = _marked(readme)[1]
    return None if path == "none" else path


def section(readme: str) -> str:
    """The generated part of README."""
    return _marked(readme)[2]


def updated(readme: str, results: dict[str, Any], path: str) -> str:
    """README with its generated part made from these results."""
    return replaced(readme, render(results, path), path)


def replaced(document: str, content: str, path: str) -> str:
    """A document with this as its generated part, which shows the results of a file."""
    part = f"<!-- results: {path} -->\n{content}<!-- /results -->"
    marked = _marked(document)
    return document[: marked.start()] + part + document[marked.end() :]


def _marked(readme: str) -> re.Match[str]:
    match = _MARKED.search(readme)
    if match is None:
        raise ValueError("a document must contain <!-- results: ... --> and <!-- /results -->")
    return match


def render(results: dict[str, Any] | None, path: str) -> str:
    """All tables that one results file has the numbers for, as Markdown."""
    if results is None:
        return _NO_RESULTS
    stem = path.removesuffix(".json")
    networks = results.get("networks", [])
    parts = [
        f"![Time per batch of fastconv and its rivals]({stem}.svg)" if networks else "",
        _summary(networks),
        _origin(results, path),
        _folded("Every rival, in ms", _rivals(networks)),
        _folded("Instruction sets", _isa_levels(results.get("isa_levels", []))),
        _training(results.get("training", [])),
        _folded("Memory", _memory(results.get("memory", {}))),
        _folded("Where the time goes, step by step", _profiles(results.get("profiles", []))),
        _folded("Share of the machine's limit per kind of layer", _limits(results, stem)),
        _folded(
            "Every layer alone, float32, batch 1, one thread", _layers(results.get("layers", []))
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _folded(title: str, content: str) -> str:
    if not content:
        return ""
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"


def _summary(networks: list[dict[str, Any]]) -> str:
    """One row for each network and dtype, one column for each batch and number of threads."""
    columns = sorted({(entry["batch"], entry["threads"]) for entry in networks})
    rows: dict[tuple[str, int, str], dict[tuple[int, int], str]] = {}
    for entry in sorted(networks, key=lambda entry: entry["dtype"] == "bfloat16"):
        key = (entry["network"], entry["size"], entry["dtype"])
        ratio = entry["ratio_to_fastest_runtime"]
        cell = number(entry["rows"]["fastconv"]["median_ms"])
        cell += "" if ratio is None else f" ({ratio:.2f})"
        rows.setdefault(key, {})[entry["batch"], entry["threads"]] = cell
    if not rows:
        return ""
    title = "fastconv in ms (of the fastest other runtime's time)"
    header = [title, *(f"batch {batch}, {threads_of(threads)}" for batch, threads in columns)]
    return grid(
        header,
        [
            [f"{name}, {size}x{size}, {dtype}", *(cells.get(column, "-") for column in columns)]
            for (name, size, dtype), cells in rows.items()
        ],
    )


def _origin(results: dict[str, Any], path: str) -> str:
    entries = [
        *results.get("networks", []),
        *results.get("isa_levels", []),
        *results.get("memory", {}).values(),
        *results.get("layers", []),
        *results.get("training", []),
    ]
    return (
        f"{made_by(results, entries)}. Medians of interleaved rounds on "
        f"{results['measured']['input']}; their numbers, quartiles and all else in "
        f"[{path}]({path})."
    )


def made_by(results: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    """The machine, the versions, and the commits and days of entries, which may have been measured
    at different times."""
    machine, versions = results["machine"], results["versions"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    peers = ", ".join(f"{name} {version}" for name, version in versions.items())
    commits = {
        f"Commit {entry['commit'][:10]}{' with changes' * entry['sources_changed']}": None
        for entry in sorted(entries, key=lambda entry: entry["date"])
    }
    dates = sorted({entry["date"] for entry in entries})
    sources = ", ".join([*commits, *dict.fromkeys([*dates[:1], *dates[-1:]])])
    return (
        f"{machine['cpu']} (family {machine['family']}, model {machine['model']}), "
        f"{machine['cores']} cores, {caches}. {peers}. {sources}"
    )


def best(rows: dict[str, Any], names: tuple[str, ...]) -> float | None:
    times = [rows[name]["median_ms"] for name in names if name in rows]
    return min(times, default=None)


def threads_of(count: int) -> str:
    """ "1 thread" or "2 threads"."""
    return f"{count} thread{'s' * (count > 1)}"


def number(value: float | None, digits: int = 3) -> str:
    """Three digits, or a dash for what was not measured."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def grid(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; numbers in all columns but the first."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rivals(networks: list[dict[str, Any]]) -> str:
    body = []
    for entry in networks:
        rows, ratio = entry["rows"], entry["ratio_to_fastest_runtime"]
        label = (
            f"{entry['network']}, {entry['dtype']}, batch {entry['batch']}, "
            f"{threads_of(entry['threads'])}"
        )
        times = [number(best(rows, names)) for names in COLUMNS.values()]
        shown = "-" if ratio is None else f"{ratio:.2f}"
        body.append([label, *times, shown, number(rows["fastconv"]["percent_of_peak"])])
    if not body:
        return ""
    header = ["Network", *COLUMNS, "fastconv / fastest runtime", "% of FMA peak"]
    note = (
        "\n\nThe peak of bfloat16 counts as twice the measured one of float32 on a CPU with "
        "AVX512_BF16. ONNX Runtime has no bfloat16 convolution on the CPU."
    )
    return grid(header, body) + note * any(e["dtype"] == "bfloat16" for e in networks)


def _isa_levels(entries: list[dict[str, Any]]) -> str:
    body = [
        [f"{entry['id']}, {name.removeprefix('fastconv_')}", number(row["median_ms"])]
        for entry in entries
        for name, row in entry["rows"].items()
    ]
    return grid(["Instruction sets", "ms"], body) if body else ""


def _memory(memory: dict[str, Any]) -> str:
    names = ["fastconv", "eager_channels_last", "eager"]
    header = ["Resident memory that inference adds at its peak, MB", *(_SHOWN[n] for n in names)]
    body = [
        [id, *(number(entry[name]["growth_mb"]) for name in names)] for id, entry in memory.items()
    ]
    return grid(header, body) if body else ""


def _profiles(entries: list[dict[str, Any]]) -> str:
    """A table for each network: its steps while the whole of it runs, at each number of threads."""
    networks: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        networks.setdefault(entry["name"], []).append(entry)
    tables = [_profile(name, of_it) for name, of_it in networks.items()]
    note = (
        "One image, float32. Each step has a clock of its own while all of the network runs, so "
        "its weights come from where the network leaves them; what is between the ops is Python "
        "and PyTorch's dispatch, whose code and data the network has driven out of the caches."
    )
    return "\n\n".join([note, *tables]) if tables else ""


def _profile(name: str, entries: list[dict[str, Any]]) -> str:
    first = entries[0]
    header = [name, "output", "M MACs"]
    for entry in entries:
        header += [f"ms, {threads_of(entry['threads'])}", "% of FMA peak"]
    body = []
    for i, step in enumerate(first["steps"]):
        size = " x ".join(map(str, step["output"]))
        row = [step["name"], size, f"{step['macs'] / 1e6:.2f}"]
        for entry in entries:
            seconds = entry["steps"][i]["seconds"]
            row += [f"{seconds * 1e3:.3f}", number(_share(entry, step["macs"], seconds))]
        body.append(row)
    rest = ["between the ops", "", ""]
    whole = ["the whole call", "", f"{sum(step['macs'] for step in first['steps']) / 1e6:.2f}"]
    for entry in entries:
        macs = sum(step["macs"] for step in entry["steps"])
        rest += [f"{entry['rest'] * 1e3:.3f}", ""]
        whole += [f"{entry['seconds'] * 1e3:.3f}", number(_share(entry, macs, entry["seconds"]))]
    return grid(header, [*body, rest, whole])


def _share(entry: dict[str, Any], macs: int, seconds: float) -> float:
    """Percent of the FMA peak."""
    return 100 * 2 * entry["input_size"][0] * macs / seconds / float(entry["peak"])


def _training(entries: list[dict[str, Any]]) -> str:
    """Steps of training, and the memory that they add."""
    body = []
    for entry in entries:
        rows, memory = entry["rows"], entry["growth_mb"]
        ours, theirs = memory["fastconv"], memory["eager_channels_last"]
        body.append(
            [
                f"{entry['network']}, {entry['dtype']}, batch {entry['batch']}, "
                f"{threads_of(entry['threads'])}",
                number(rows["fastconv"]["median_ms"]),
                number(rows["eager_channels_last"]["median_ms"]),
                f"{entry['ratio_to_eager_channels_last']:.2f}",
                number(ours),
                number(theirs),
                f"{ours / theirs:.2f}",
            ]
        )
    header = [
        "A step of training (forward, backward, SGD)",
        "fastconv ms",
        "eager channels_last ms",
        "ratio",
        "fastconv MB",
        "eager MB",
        "ratio",
    ]
    note = (
        "\n\nMB: what a step adds to the process's resident memory at its peak. bfloat16 is "
        "autocast, for both."
    )
    return grid(header, body) + note if body else ""


def _limits(results: dict[str, Any], stem: str) -> str:
    """The picture of the roofs, and how near the layers of each op come to them."""
    shares = roofline.shares(roofline.points(results))
    if not shares:
        return ""
    bandwidths = ", ".join(f"{name} {rate:.3g}" for name, rate in results["bandwidths"].items())
    text = (
        f"![GFLOP/s of every layer over its FLOP per byte]({stem}-roofline.svg)\n\n"
        "The limit of a layer is the lower of the FMA peak and what the bandwidth allows of the "
        "smallest cache that holds its input, weights and output. Measured with one thread, in "
        f"GB/s: {bandwidths}."
    )
    header = ["Kind of layer", "layers", "median % of limit", "worst %", "worst layer"]
    body = [
        [
            share.op,
            str(share.layers),
            number(share.median_percent),
            number(share.worst.percent),
            share.worst.layer,
        ]
        for share in shares
    ]
    return f"{text}\n\n{grid(header, body)}"


def _layers(layers: list[dict[str, Any]]) -> str:
    body = []
    for entry in layers:
        rows = entry["rows"]
        ours = rows["fastconv"]
        rivals = {name: row["median_ms"] for name, row in rows.items() if name in _SHOWN}
        rivals.pop("fastconv")
        fastest = min(rivals, key=rivals.__getitem__)
        body.append(
            [
                f"{entry['op']} {entry['layer']}",
                number(entry["mflop"]),
                number(ours["median_ms"] * 1e3),
                number(ours["percent_of_peak"]),
                _SHOWN[fastest],
                f"{ours['median_ms'] / rivals[fastest]:.2f}",
            ]
        )
    header = ["Layer", "MFLOP", "fastconv us", "% of FMA peak", "fastest rival", "fastconv / it"]
    return grid(header, body) if body else ""
