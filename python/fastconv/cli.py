"""The ``fastconv`` command. A subcommand is a function that adds its parser and sets ``run``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import _augment_command, _commands
from .classify.command import add_parser as add_classify
from .finetune.command import add_parser as add_finetune
from .info import info

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def _add_info(commands: Subparsers) -> None:
    parser = commands.add_parser("info", help="print what a bug report needs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_info)


def _run_info(arguments: argparse.Namespace) -> int:
    report = info()
    print(json.dumps(report, indent=2) if arguments.json else report)
    return 0


_COMMANDS = (
    _add_info,
    add_classify,
    _commands.add_summary,
    _commands.add_report,
    _commands.add_bench,
    _commands.add_profile,
    add_finetune,
    _augment_command.add_parser,
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastconv", description="Fused convolutions for PyTorch.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code
