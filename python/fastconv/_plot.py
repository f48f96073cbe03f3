"""The pictures that ``fastconv bench``, ``summary`` and ``augment`` write with ``--plot``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._bench import OURS, Result
from ._layer_times import KINDS, LayerTime
from ._resolve import ResolveError

_COLORS = ("#d1495b", "#8d99ae", "#2e86ab", "#edae49", "#3d5a45", "#7b4b94")  # of KINDS


def check(path: str) -> None:
    """Whether a picture can be written there, before much time is spent on its contents.

    Raises:
        ResolveError: if it cannot.
    """
    known = _figure().canvas.get_supported_filetypes()
    suffix = Path(path).suffix.lower().lstrip(".")
    if suffix not in known:
        raise ResolveError(f"--plot must end in one of {', '.join(sorted(known))}, got {path}")
    if not Path(path).resolve().parent.is_dir():
        raise ResolveError(f"--plot must be in a folder that exists, got {path}")


def draw(results: Sequence[Result], path: str) -> None:
    """Write a picture with one panel of bars per network."""
    figure = _figure(figsize=(7, 0.9 + sum(0.5 + 0.28 * len(r.timings) for r in results)))
    heights = [len(result.timings) for result in results]
    panels = figure.subplots(len(results), 1, squeeze=False, height_ratios=heights)
    for panel, result in zip(panels[:, 0], results, strict=True):
        rows = result.rows()
        names = [row["runs_on"] for row in rows]
        colors = ["#d1495b" if name == OURS else "#8d99ae" for name in names]
        bars = panel.barh(names, [row["ms"] for row in rows], color=colors)
        panel.bar_label(bars, [f"{row['ms']:.3g} ({row['ratio']:.2f}x)" for row in rows], padding=3)
        panel.invert_yaxis()
        panel.margins(x=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(result.network.name, loc="left", fontsize="medium")
    options = results[0].options
    panels[-1, 0].set_xlabel(
        f"ms per batch of {options.batch}, {options.size}x{options.size}, {options.dtype}, "
        f"{options.threads} thread{'s' * (options.threads > 1)}; less is better"
    )
    _save(figure, path)


def draw_layers(times: Sequence[LayerTime], title: str, path: str) -> None:
    """Write a picture of multiplications against time, a point per layer or block."""
    figure = _figure(figsize=(7, 5))
    axes = figure.subplots()
    for kind, color in zip(KINDS, _COLORS, strict=True):
        some = [time for time in times if time.kind == kind]
        if some:
            macs = [time.row.macs / 1e6 for time in some]
            ms = [time.timing.median * 1e3 for time in some]
            axes.scatter(macs, ms, color=color, alpha=0.8, label=kind)
    best = max(time.macs_per_second for time in times)
    ends = [pick(time.row.macs for time in times) for pick in (min, max)]
    axes.plot(
        [macs / 1e6 for macs in ends],
        [macs / best * 1e3 for macs in ends],
        color="black",
        linewidth=1,
        label=f"the best: {best / 1e9:.3g} G multiplications/s",
    )
    axes.set(xscale="log", yscale="log", xlabel="M multiplications", ylabel="ms")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(subs=(1, 2, 5))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_images(rows: Sequence[tuple[str, Sequence[Any]]], first: str, path: str) -> None:
    """Write a picture with a row of square images, such as PIL's, for each name.

    Args:
        first: what the first column is
    """
    columns = max(len(images) for _, images in rows)
    figure = _figure(figsize=(0.6 + 1.2 * columns, 0.3 + 1.2 * len(rows)), dpi=120)
    axes = figure.subplots()  # one for all: many would take many seconds
    for y, (_, images) in enumerate(rows):
        for x, image in enumerate(images):
            axes.imshow(image, extent=(x, x + 0.96, y + 0.96, y))
    axes.set(xlim=(0, columns), ylim=(len(rows), 0))
    axes.set_yticks([y + 0.48 for y in range(len(rows))], [name for name, _ in rows])
    axes.set_xticks([0.48], [first])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise ResolveError(f"--plot must be a file to write to, got {path} ({error})") from error


def _figure(**options: Any) -> Any:
    # Not pyplot: it would look for a display.
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ResolveError("--plot needs matplotlib: pip install matplotlib") from error
    return module.Figure(layout="constrained", **options)
