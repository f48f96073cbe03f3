"""Says on stderr how far a long command is."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any


class Progress:
    """A bar by rich, if that is installed and stderr is a terminal; else one line per task.

    It draws only when it is told of progress: a bar that moves by itself would need a thread, and
    that would disturb what is timed.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        if importlib.util.find_spec("rich") is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def task(self, text: str, total: int) -> None:
        """Begin something that has `total` steps."""
        if self._bar is None:
            print(text, file=sys.stderr)
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=total)
        self._bar.refresh()

    def step(self, text: str = "") -> None:
        """One step done or, with a text, begun."""
        if self._bar is None:
            if text:
                print(f"  {text}", file=sys.stderr)
            return
        self._bar.advance(self._task)
        self._bar.refresh()
