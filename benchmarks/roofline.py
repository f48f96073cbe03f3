"""What the machine would allow each layer; needs nothing but Python, so that a test can compare.

The limit is min(FMA peak, bandwidth * FLOP/byte). The bytes are the least that must move: input,
weights and output, once each. The bandwidth is that of the smallest cache that holds them all,
because a layer that is timed again and again finds them there.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Point:
    """One layer: FLOP per byte, GFLOP/s reached and GFLOP/s possible."""

    op: str
    layer: str
    intensity: float
    gflops: float
    limit: float

    @property
    def percent(self) -> float:
        return 100 * self.gflops / self.limit


@dataclass(frozen=True)
class Share:
    """How near to their limits the layers of one op come."""

    op: str
    layers: int
    median_percent: float
    worst: Point


def cache_bytes(caches: dict[str, str]) -> dict[str, int]:
    """Sizes as Linux writes them, such as 1024K, in bytes."""
    return {
        name: int(size[:-1]) * _UNITS[size[-1]] if size[-1] in _UNITS else int(size)
        for name, size in caches.items()
    }


def points(results: dict[str, Any]) -> list[Point]:
    """All layers; none where the results have no bandwidths or no peak."""
    bandwidths = results.get("bandwidths", {})
    sizes = cache_bytes(results["machine"]["caches"])
    found = []
    for entry in results.get("layers", []):
        if not bandwidths or entry["peak_gflops"] is None:
            continue
        intensity = entry["mflop"] / entry["mbytes"]
        bandwidth = bandwidths[_holder(entry["mbytes"] * 1e6, sizes, bandwidths)]
        limit = min(entry["peak_gflops"], bandwidth * intensity)
        gflops = entry["rows"]["fastconv"]["gflops"]
        found.append(Point(entry["op"], entry["layer"], intensity, gflops, limit))
    return found


def _holder(size: float, caches: dict[str, int], bandwidths: dict[str, float]) -> str:
    """The smallest cache that holds so many bytes, else memory."""
    fitting = [name for name in bandwidths if name in caches and caches[name] >= size]
    return min(fitting, key=caches.__getitem__, default="memory")


def shares(found: list[Point]) -> list[Share]:
    """One for each op, in the order of the layers."""
    by_op: dict[str, list[Point]] = {}
    for point in found:
        by_op.setdefault(point.op, []).append(point)
    return [
        Share(
            op,
            len(group),
            statistics.median(point.percent for point in group),
            min(group, key=lambda point: point.percent),
        )
        for op, group in by_op.items()
    ]
