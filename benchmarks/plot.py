"""Draws a results file: MobileNetV2's times, and every layer below the machine's roofs."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from . import roofline
from .table import COLUMNS, best, threads_of

_OURS, _OTHERS = "#d1495b", "#8d99ae"


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the pictures that the results have numbers for; the same always give the same bytes."""
    networks = [
        entry
        for entry in results.get("networks", [])
        if entry["network"] == "mobilenet_v2" and entry["dtype"] == "float32"
    ]
    if networks:
        _draw_times(networks, results["machine"]["cpu"], path)
    points = roofline.points(results)
    if points:
        _draw_roofline(results, points, roofline_path(path))


def roofline_path(path: Path) -> Path:
    """Where the picture of the roofs lies beside that of the times."""
    return path.with_name(f"{path.stem}-roofline.svg")


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "fastconv", "font.size": 9}
    from matplotlib import pyplot

    return pyplot.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained"
    )


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw_times(networks: list[dict[str, Any]], cpu: str, path: Path) -> None:
    figure, panels = _figure(1, len(networks), 3.6 * len(networks), 2.6)
    for panel, entry in zip(panels[0], networks, strict=True):
        times = {shown: best(entry["rows"], names) for shown, names in COLUMNS.items()}
        shown = {name: time for name, time in times.items() if time is not None}
        colors = [_OURS if name == "fastconv" else _OTHERS for name in shown]
        bars = panel.barh(list(shown), list(shown.values()), color=colors)
        panel.bar_label(bars, [f"{time:.3g}" for time in shown.values()], padding=3)
        panel.invert_yaxis()
        panel.margins(x=0.18)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(f"batch {entry['batch']}, {threads_of(entry['threads'])}")
        panel.set_xlabel("ms, less is better")
    figure.suptitle(f"MobileNetV2, 224x224, float32, {cpu}")
    _save(figure, path)


def _draw_roofline(results: dict[str, Any], points: list[roofline.Point], path: Path) -> None:
    figure, panels = _figure(1, 1, 7.2, 4.4)
    panel = panels[0][0]
    peak = statistics.median(
        entry["peak_gflops"] for entry in results["layers"] if entry["peak_gflops"] is not None
    )
    lowest = min(point.intensity for point in points) / 1.5
    highest = max(point.intensity for point in points) * 1.5
    styles = ["-", "--", "-.", ":"]
    for style, (name, bandwidth) in zip(styles, results["bandwidths"].items(), strict=False):
        corner = max(lowest, peak / bandwidth)
        heights = [min(peak, bandwidth * x) for x in (lowest, corner, highest)]
        label = f"{name}, {bandwidth:.3g} GB/s"
        panel.plot([lowest, corner, highest], heights, style, color=_OTHERS, label=label)
    panel.annotate(
        f"FMA peak, {peak:.3g} GFLOP/s", (highest, peak), ha="right", va="bottom", fontsize=7
    )
    for op in dict.fromkeys(point.op for point in points):
        group = [point for point in points if point.op == op]
        panel.scatter([p.intensity for p in group], [p.gflops for p in group], s=14, label=op)
    panel.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=7, frameon=False, loc="lower right")
    panel.set_title(f"Every layer alone, float32, 1 thread, {results['machine']['cpu']}")
    _save(figure, path)
