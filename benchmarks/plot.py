"""Draws a results file: time per batch, one panel for each setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .table import COLUMNS, best


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the picture; the same results always give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "fastconv", "font.size": 9}
    from matplotlib import pyplot

    networks = results["networks"]
    figure, panels = pyplot.subplots(
        1, len(networks), figsize=(3.6 * len(networks), 2.4), squeeze=False, layout="constrained"
    )
    for panel, entry in zip(panels[0], networks, strict=True):
        times = {shown: best(entry["rows"], names) for shown, names in COLUMNS.items()}
        shown = {name: time for name, time in times.items() if time is not None}
        colors = ["#d1495b" if name == "fastconv" else "#8d99ae" for name in shown]
        bars = panel.barh(list(shown), list(shown.values()), color=colors)
        panel.bar_label(bars, [f"{time:.3g}" for time in shown.values()], padding=3)
        panel.invert_yaxis()
        panel.margins(x=0.18)
        panel.spines[["top", "right"]].set_visible(False)
        threads = entry["threads"]
        panel.set_title(f"batch {entry['batch']}, {threads} thread{'s' * (threads > 1)}")
        panel.set_xlabel("ms, less is better")
    figure.suptitle(f"MobileNetV2, 224x224, float32, {results['machine']['cpu']}")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
