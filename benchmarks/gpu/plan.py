"""What is measured, the most important first: the time may be over before the list is."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")
BATCHES = (256, 1, 32)
NETWORK_DTYPES = ("bfloat16", "float16", "float32")
LAYER_DTYPES = ("bfloat16", "float32")
TRAINED = ("mobilenet_v2", "efficientnet_b0")
TRAIN_BATCH = 128
TRAIN_DTYPES = ("bfloat16", "float32")  # bfloat16 by autocast
PARTS = ("ceilings", "networks", "training", "layers")
# (part, batch, dtype, with torch.compile): what comes first, because README shows it. torch.compile
# takes minutes, so everything is measured without it before it gets its turn.
FIRST = (
    ("networks", 256, "bfloat16", False),
    ("networks", 1, "bfloat16", False),
    ("training", TRAIN_BATCH, "bfloat16", False),
    ("layers", 256, "bfloat16", False),
    ("training", TRAIN_BATCH, "float32", False),
    ("networks", 256, "bfloat16", True),
    ("networks", 1, "bfloat16", True),
    ("networks", 256, "float16", False),
    ("networks", 256, "float32", False),
    ("networks", 32, "bfloat16", False),
    ("layers", 1, "bfloat16", False),
    ("layers", 256, "float32", False),
    ("layers", 32, "bfloat16", False),
)
_SECONDS = {"ceilings": 90.0, "networks": 420.0, "training": 420.0, "layers": 90.0}
_COMPILING = 240.0


@dataclass
class Budget:
    """The time that is left for measuring."""

    seconds: float
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        return self._end - time.monotonic()


@dataclass(frozen=True)
class Job:
    """One row of the results.

    Args:
        part: of PARTS
        network: the name; for a layer, of one that has it
        layer: its name, "" for a network, or for a step of its training
        without: contenders that have broken a process before
    """

    part: str
    network: str = ""
    layer: str = ""
    batch: int = 0
    dtype: str = ""
    compiled: bool = False
    without: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        """The same with and without torch.compile: the later row takes the place of the other."""
        if self.part == "ceilings":
            return self.part
        return f"{self.layer or self.network}, batch {self.batch}, {self.dtype}"

    @property
    def limit(self) -> float:
        """Seconds after which it counts as hanging."""
        return _SECONDS[self.part] + _COMPILING * self.compiled


def jobs(layers: Sequence[tuple[str, str]], parts: Iterable[str] = PARTS) -> list[Job]:
    """All of them in their order.

    Args:
        layers: network and name of each, the most important first
        parts: those that are wanted
    """
    kinds = [
        *FIRST,
        *itertools.product(("networks",), BATCHES, NETWORK_DTYPES, (False,)),
        *itertools.product(("layers",), BATCHES, LAYER_DTYPES, (False,)),
        *itertools.product(("networks",), BATCHES, NETWORK_DTYPES, (True,)),
        *itertools.product(("training",), (TRAIN_BATCH,), TRAIN_DTYPES, (True,)),
        *itertools.product(("layers",), BATCHES, LAYER_DTYPES, (True,)),
    ]
    subjects = {
        "networks": [(name, "") for name in NETWORKS],
        "training": [(name, "") for name in TRAINED],
        "layers": list(layers),
    }
    wanted = set(parts)
    found = [Job("ceilings")] if "ceilings" in wanted else []
    for part, batch, dtype, compiled in dict.fromkeys(kinds):
        if part in wanted:
            found += [Job(part, *subject, batch, dtype, compiled) for subject in subjects[part]]
    return found


def pending(all_jobs: Iterable[Job], results: dict[str, Any]) -> list[Job]:
    """Those that the results do not have yet; what failed as a whole is tried again."""

    def is_there(job: Job) -> bool:
        if job.part == "ceilings":
            return "ceilings" in results
        rows = {row["id"]: row for row in results.get(job.part, [])}
        return job.id in rows and rows[job.id]["compiled"] >= job.compiled

    return [job for job in all_jobs if not is_there(job)]


def put(results: dict[str, Any], job: Job, row: dict[str, Any]) -> None:
    """Adds a row, or puts it in the place of the one of the same id."""
    if job.part == "ceilings":
        results["ceilings"] = row
        return
    about = {"id": job.id, "network": job.network, "batch": job.batch, "dtype": job.dtype}
    about |= {"layer": job.layer} if job.layer else {}
    rows = results.setdefault(job.part, [])
    new = about | {"compiled": job.compiled} | row
    places = [i for i, old in enumerate(rows) if old["id"] == job.id]
    rows[slice(places[0], places[0] + 1) if places else slice(len(rows), None)] = [new]
