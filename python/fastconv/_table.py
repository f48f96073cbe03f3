"""Tables on the terminal: by rich where it is installed, else as plain text."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; each header begins with its column's alignment, < or >."""
    right = [name[0] == ">" for name in header]
    names = [name[1:] for name in header]
    if importlib.util.find_spec("rich") is not None and sys.stdout.isatty():
        _print_rich(title, names, right, rows)
        return
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    print(f"\n{title}")
    for row in [names, ["-" * width for width in widths], *rows]:
        cells = zip(row, widths, right, strict=True)
        line = (cell.rjust(width) if r else cell.ljust(width) for cell, width, r in cells)
        print("  " + "  ".join(line).rstrip())


def _print_rich(
    title: str, names: Sequence[str], right: Sequence[bool], rows: Sequence[Sequence[str]]
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, is_right in zip(names, right, strict=True):
        table.add_column(name, justify="right" if is_right else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
