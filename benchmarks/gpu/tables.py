"""README's tables of a GPU's results; needs nothing but Python, so that a test can compare."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

OURS = "fastconv"
EAGER = ("eager channels_last", "eager")
# What README lists layer by layer; the file has all.
_SHOWN = (256, "bfloat16")
_NOISE = 1.02  # a ratio below which two medians count as the same

Row = dict[str, Any]


def networks(results: Row) -> str:
    """Images per second of everybody."""
    return _speeds(results.get("networks", []), "Images per second", {})


def training(results: Row) -> str:
    """The same of a step of training, and the memory that it needs."""
    rows = results.get("training", [])
    title = "Images per second in training (forward, backward, SGD)"
    peaks = {row["id"]: [_megabytes(row, name) for name in (OURS, "eager")] for row in rows}
    return _speeds(rows, title, peaks, ["fastconv MB", "eager MB"])


def _megabytes(row: Row, name: str) -> str:
    bytes = row["peak_bytes"].get(name)
    return "-" if bytes is None else f"{bytes / 1e6:,.0f}"


def _speeds(
    rows: list[Row], title: str, more: dict[str, list[str]], more_names: Sequence[str] = ()
) -> str:
    """A line for each row; more: cells behind those of everybody, by the row's id."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row["images_per_second"]))
    lines = []
    for row in rows:
        speeds = row["images_per_second"]
        others = [speed for name, speed in speeds.items() if not name.startswith(OURS)]
        ours = [speed for name, speed in speeds.items() if name.startswith(OURS)]
        ratio = f"{max(ours) / max(others):.2f}" if ours and others else "-"
        cells = [f"{speeds[name]:,.0f}" if name in speeds else "-" for name in names]
        lines.append([row["id"], *cells, ratio, *more.get(row["id"], [])])
    header = [title, *names, "fastconv / fastest other", *more_names]
    return _grid(header, lines)


def eager(row: Row) -> float | None:
    """Seconds of PyTorch's faster layout."""
    return min((row["seconds"][name] for name in EAGER if name in row["seconds"]), default=None)


def is_slower(row: Row) -> bool:
    """Whether eager PyTorch computes this layer faster, by more than the noise: no layer should.

    Then the medians differ and the middle halves of the values do not overlap.
    """
    ours = row["seconds"].get(OURS)
    times = {name: row["seconds"][name] for name in EAGER if name in row["seconds"]}
    if ours is None or not times:
        return False
    name = min(times, key=times.__getitem__)
    low, high = row["quartiles"][OURS][0], row["quartiles"][name][1]
    return bool(ours > _NOISE * times[name] and low > high)


def layer_groups(results: Row) -> str:
    """One line for each batch and dtype: how far from the copy, and from eager."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in results.get("layers", []):
        groups.setdefault((row["batch"], row["dtype"]), []).append(row)
    lines, slower = [], []
    for (batch, dtype), rows in groups.items():
        good = [row for row in rows if OURS in row["seconds"]]
        shares = [share for row in good if (share := _share(results, row)) is not None]
        ratios = [time / row["seconds"][OURS] for row in good if (time := eager(row))]
        worse = [row for row in good if is_slower(row)]
        slower += worse
        lines.append(
            [
                f"batch {batch}, {dtype}",
                f"{len(good)} of {len(rows)}",
                _median(shares, ".0f"),
                _median(ratios, ".2f"),
                f"{min(ratios):.2f}" if ratios else "-",
                str(len(worse)),
            ]
        )
    if not lines:
        return ""
    header = [
        "Layers alone",
        "measured",
        "median % of the copy's bytes/s",
        "median eager / fastconv",
        "lowest",
        "slower than eager",
    ]
    names = "; ".join(row["id"] for row in slower)
    note = f"\nSlower than eager: {names}.\n" if slower else ""
    return _grid(header, lines) + note


def layers(results: Row) -> str:
    """Every layer of the batch and dtype that are shown."""
    rows = [r for r in results.get("layers", []) if (r["batch"], r["dtype"]) == _SHOWN]
    if not rows:
        return ""
    lines = []
    for row in rows:
        ours = row["seconds"].get(OURS)
        if ours is None:
            reason = row["errors"].get(OURS, "not measured").replace("|", "/")
            lines.append([row["layer"], "failed", *["-"] * 6, reason])
            continue
        share, theirs = _share(results, row), eager(row)
        compiled, cold = row["seconds"].get("torch.compile"), row["cold_seconds"].get(OURS)
        lines.append(
            [
                row["layer"],
                f"{1e6 * ours:.1f}",
                "-" if cold is None else f"{1e6 * cold:.1f}",
                f"{row['bytes'] / ours / 1e9:.0f}",
                "-" if share is None else f"{share:.0f}",
                f"{row['flops'] / ours / 1e12:.1f}",
                "-" if theirs is None else f"{theirs / ours:.2f}",
                "-" if compiled is None else f"{compiled / ours:.2f}",
                row["chosen"],
            ]
        )
    header = [
        f"Batch {_SHOWN[0]}, {_SHOWN[1]}",
        "fastconv us",
        "from memory us",
        "GB/s",
        "% of the copy",
        "TFLOP/s",
        "eager / fastconv",
        "torch.compile / fastconv",
        "chosen",
    ]
    summary = "<details><summary>Every layer</summary>\n\n"
    return f"{summary}{_grid(header, lines, last_is_text=True)}\n</details>\n"


def origin(results: Row) -> str:
    """The GPU, its ceilings, versions and commit."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    text = f"{results['gpu']}. {versions}."
    found = results.get("ceilings")
    if found is not None:
        text += (
            f" Measured ceilings: copy {found['copy_bytes_per_second'] / 1e12:.2f} TB/s, bfloat16 "
            f"product {found['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s, "
            f"{found['launch_seconds'] * 1e6:.1f} us from kernel to kernel in a graph."
        )
    commit = results["commit"][:10]
    return f"{text} Commit {commit}.\n" if commit else f"{text}\n"


def _share(results: Row, row: Row) -> float | None:
    """Percent of the copy's bytes per second."""
    if "ceilings" not in results:
        return None
    speed: float = row["bytes"] / row["seconds"][OURS]
    return 100 * speed / float(results["ceilings"]["copy_bytes_per_second"])


def _median(values: list[float], form: str) -> str:
    return format(statistics.median(values), form) if values else "-"


def _grid(header: list[str], rows: list[list[str]], last_is_text: bool = False) -> str:
    ends = ["--:"] * (len(header) - 1)
    if last_is_text:
        ends[-1] = "---"
    lines = [header, ["---", *ends], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
