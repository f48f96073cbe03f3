"""Files that are whole or not there: checkpoints, kept features, weights."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Writes a file beside the old one, and puts it in its place when all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


class Checkpoints:
    """The last two states of a training in a folder."""

    def __init__(self, folder: Path) -> None:
        self._last, self._before = folder / "checkpoint.pt", folder / "checkpoint-before.pt"

    def save(self, state: dict[str, Any]) -> None:
        if self._last.exists():
            os.replace(self._last, self._before)
        write(self._last, lambda path: torch.save(state, path))

    def load(self) -> dict[str, Any] | None:
        """The newest state that can be read; None if there is none. Runs no code of the file."""
        for path in (self._last, self._before):
            try:
                state: dict[str, Any] = torch.load(path, weights_only=True)
                return state
            except FileNotFoundError:
                continue
            except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError):
                continue  # damaged: the one before it is whole
        return None


def fingerprint(model: nn.Module, *facts: object) -> str:
    """Of all weights and some facts."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:32]
