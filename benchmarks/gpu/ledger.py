"""The results file of a GPU: which sources it belongs to, and what README says of it.

GPU results are made where there is a GPU and stay in the repository as a ledger. Nobody claims a
number that is not in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from . import tables

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = ("kernels", "csrc", "python/fastconv/gpu")
OLDER = "GPU results are of older sources"
NOT_MEASURED = (
    "The GPU kernels have not been measured yet. They are checked in Triton's interpreter and on "
    "an emulator,\nand compiled for sm_75, sm_80 and sm_90; no speed is claimed.\n"
)
_MARKED = re.compile(r"<!-- gpu: (\S+) -->\n(.*?)<!-- /gpu -->", re.DOTALL)


def sources_hash(root: Path = ROOT) -> str:
    """Of every file that a GPU result depends on."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".cu", ".cuh", ".h", ".cpp"}:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def file_name(gpu: str) -> str:
    """h200.json for an NVIDIA H200."""
    name = re.sub(r"nvidia|geforce|tesla|[0-9]+gb|pcie|hbm3e?|sxm[0-9]?", " ", gpu.lower())
    return "-".join(re.findall(r"[a-z0-9]+", name)) + ".json"


def write(results: dict[str, Any], path: Path) -> None:
    """After each part, so that nothing is lost when the time is over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def shown(readme: str) -> tuple[str | None, str]:
    """The results file that README shows, None for none yet, and the generated text.

    Raises:
        ValueError: if README has no place for it.
    """
    match = _MARKED.search(readme)
    if match is None:
        raise ValueError("README.md must contain <!-- gpu: ... --> and <!-- /gpu -->")
    return None if match[1] == "none" else match[1], match[2]


def path(readme: str, folder: Path = RESULTS) -> Path | None:
    """The results file that README shows; if it shows none, the latest that there is."""
    known = shown(readme)[0]
    if known is not None:
        return ROOT / known
    found = {file: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")}
    dates = {file: results["date"] for file, results in found.items() if "gpu" in results}
    return max(dates, key=dates.__getitem__, default=None)


def updated(readme: str, results: dict[str, Any] | None, path: str, now: str) -> str:
    """README with its GPU section made from these results; now: the hash of the sources."""
    body = render(results, now)
    part = f"<!-- gpu: {path if results else 'none'} -->\n{body}<!-- /gpu -->"
    return _MARKED.sub(lambda _: part, readme, count=1)


def render(results: dict[str, Any] | None, now: str) -> str:
    """The GPU section, as Markdown."""
    if results is None:
        return NOT_MEASURED
    parts = [tables.networks(results), tables.training(results)]
    parts += [tables.layer_groups(results), tables.layers(results)]
    if results["sources_hash"] != now:
        parts.insert(0, f"**{OLDER}.**\n")
    parts.append(tables.origin(results))
    return "\n".join(part for part in parts if part)
