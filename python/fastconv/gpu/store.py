"""What was measured before, on disk: one JSON file for each GPU and set of versions."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from .. import _library
from .device import Gpu


class Known(NamedTuple):
    """The name of the candidate that was the fastest, and the times."""

    name: str
    reason: str


_loaded: dict[Path, dict[str, Known]] = {}


def forget() -> None:
    """Reads the files again."""
    _loaded.clear()


def path(gpu: Gpu) -> Path:
    """Where measurements of this GPU are kept, in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    versions = [torch.__version__, str(torch.version.cuda)]
    for package in ("fastconv", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(importlib.metadata.version(package))
    stamp = hashlib.sha256("\n".join([*versions, _sources()]).encode()).hexdigest()[:12]
    name = "".join(c if c.isalnum() else "-" for c in gpu.name.lower())
    return Path(cache) / "fastconv" / f"{name}-{stamp}.json"


@functools.cache
def _sources() -> str:
    """Of the kernels that were measured: other ones are as fast as they are."""
    from .. import kernels

    digest = hashlib.sha256()
    folders = (Path(__file__).parent, *map(Path, kernels.__path__))
    for file in sorted(file for folder in folders for file in folder.glob("*.py")):
        digest.update(file.read_bytes())
    library = _library.cuda_path()
    if library is not None:
        digest.update(library.read_bytes())
    return digest.hexdigest()


def lookup(gpu: Gpu, key: str) -> Known | None:
    """What was the fastest for this key, if that is known."""
    return _entries(path(gpu)).get(key)


def remember(gpu: Gpu, key: str, known: Known) -> None:
    """Keeps a result; a directory that cannot be written to only means that it is lost later."""
    file = path(gpu)
    entries = _entries(file)
    entries[key] = known
    with contextlib.suppress(OSError):
        # What another process has added meanwhile is kept.
        merged = {**_read(file), **entries}
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(merged, stream, indent=1, sort_keys=True)
            os.replace(temporary, file)
        except OSError:
            os.unlink(temporary)
            raise


def _entries(file: Path) -> dict[str, Known]:
    if file not in _loaded:
        _loaded[file] = _read(file)
    return _loaded[file]


def _read(file: Path) -> dict[str, Known]:
    """The entries of a file; nothing of one that is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {key: Known(*map(str, value)) for key, value in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
