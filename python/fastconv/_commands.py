"""The subcommands of ``fastconv`` that take networks: summary, report, bench and profile."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

_RIVALS = ("eager", "channels_last", "compile", "onnxruntime", "openvino", "ncnn")
_DTYPES = ("float32", "bfloat16")
_NAME_HELP = "fastconv's name of it, torchvision:NAME, timm:NAME, or a file with a module"

Run = Callable[[argparse.Namespace], None]


def add_summary(commands: Any) -> None:
    """Add ``fastconv summary`` to the subparsers of ``fastconv``."""
    parser = commands.add_parser("summary", help="list a network's layers, MACs and memory traffic")
    parser.add_argument("name", metavar="NAME", help=_NAME_HELP)
    _add_common(parser)
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="time each layer or block, draw MACs against time: .png, .svg",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=lambda arguments: _explaining("summary", _run_summary, arguments))


def add_report(commands: Any) -> None:
    """Add ``fastconv report`` to the subparsers of ``fastconv``."""
    parser = commands.add_parser("report", help="say what of a network fastconv.swap makes native")
    parser.add_argument("name", metavar="NAME", help=_NAME_HELP)
    _add_trust(parser)
    parser.set_defaults(run=lambda arguments: _explaining("report", _run_report, arguments))


def add_bench(commands: Any) -> None:
    """Add ``fastconv bench`` to the subparsers of ``fastconv``."""
    parser = commands.add_parser("bench", help="time networks, beside other runtimes")
    parser.add_argument("names", nargs="+", metavar="NAME", help=_NAME_HELP)
    _add_common(parser)
    _add_timing(parser)
    parser.add_argument(
        "--rivals",
        type=_rivals,
        default=_RIVALS,
        help=f"comma-separated, of {','.join(_RIVALS)} (all)",
    )
    parser.add_argument("--plot", metavar="FILE", help="write a bar chart: .png, .svg, .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=lambda arguments: _explaining("bench", _run_bench, arguments))


def add_profile(commands: Any) -> None:
    """Add ``fastconv profile`` to the subparsers of ``fastconv``."""
    parser = commands.add_parser("profile", help="say where a network's time goes, step by step")
    parser.add_argument("name", metavar="NAME", help=_NAME_HELP)
    _add_common(parser)
    _add_timing(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=lambda arguments: _explaining("profile", _run_profile, arguments))


def _add_timing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_positive, help="threads to compute with (PyTorch's)")
    parser.add_argument(
        "--rounds", type=_positive, default=10, help="values to take medians of (10)"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="to compute in (float32)"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=_positive, default=224, help="of the square images (224)")
    parser.add_argument("--batch", type=_positive, default=1, help="images at once (1)")
    _add_trust(parser)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-file", action="store_true", help="load a module from a file, which runs its code"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text}")
    return int(text)


def _rivals(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if not set(names) <= set(_RIVALS):
        raise argparse.ArgumentTypeError(f"must be of {','.join(_RIVALS)}, got {text}")
    return names


def _explaining(command: str, run: Run, arguments: argparse.Namespace) -> int:
    """Runs a subcommand; 1 and a line on stderr after a mistake of the user."""
    from ._resolve import ResolveError

    try:
        run(arguments)
    except ResolveError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    return 0


def _run_summary(arguments: argparse.Namespace) -> None:
    from ._resolve import ResolveError, resolve
    from .summary import summary

    if arguments.plot is not None:
        from . import _plot

        _plot.check(arguments.plot)
    network = resolve(arguments.name, trust_file=arguments.trust_file)
    size = (arguments.batch, 3, arguments.size, arguments.size)
    try:
        result = summary(network.module, size)
    except ValueError as error:
        raise ResolveError(f"{arguments.name}: {str(error).removeprefix('summary: ')}") from error
    data = result.to_dict()
    if arguments.plot is not None:
        data["times"] = _plot_layers(network, result, arguments.plot)
    if arguments.json:
        print(json.dumps(data, indent=2))
    else:
        result.show()


def _plot_layers(network: Any, result: Any, path: str) -> list[dict[str, Any]]:
    """Times what a summary lists and draws it; returns what was drawn."""
    import torch

    from . import _plot
    from ._layer_times import ROUNDS, time_layers
    from ._progress import Progress
    from ._resolve import ResolveError, randomize_norms

    if not result.rows:
        raise ResolveError(f"{network.name} must have a convolution or linear layer to be drawn")
    if network.source != "file":
        randomize_norms(network.module, result.input_size[1:])
    input = torch.randn(result.input_size, generator=torch.Generator().manual_seed(0))
    input = input.to(getattr(torch, result.dtype), memory_format=torch.channels_last)
    with Progress() as progress:
        progress.task(f"{network.name}: timing its layers", ROUNDS)
        times = time_layers(network.module, input, result.rows, each_round=progress.step)
    batch, _, height, width = result.input_size
    threads = torch.get_num_threads()
    _plot.draw_layers(
        times,
        f"{network.name}, batch {batch}, {height}x{width}, {result.dtype}, "
        f"{threads} thread{'s' * (threads > 1)}",
        path,
    )
    return [time.to_dict() for time in times]


def _run_report(arguments: argparse.Namespace) -> None:
    from . import report, swap
    from ._resolve import resolve

    network = resolve(arguments.name, trust_file=arguments.trust_file)
    print(report(swap(network.module)))


def _run_bench(arguments: argparse.Namespace) -> None:
    import torch

    from . import _plot
    from ._bench import Options, bench
    from ._progress import Progress
    from ._resolve import resolve

    if arguments.plot is not None:
        _plot.check(arguments.plot)
    networks = [resolve(name, trust_file=arguments.trust_file) for name in arguments.names]
    options = Options(
        batch=arguments.batch,
        threads=arguments.threads or torch.get_num_threads(),
        size=arguments.size,
        rounds=arguments.rounds,
        rivals=arguments.rivals,
        dtype=arguments.dtype,
    )
    with Progress() as progress:
        results = bench(networks, options, progress)
    if arguments.json:
        print(json.dumps(_as_dict(options, [result.to_dict() for result in results]), indent=2))
    else:
        for result in results:
            result.show()
    if arguments.plot is not None:
        _plot.draw(results, arguments.plot)


def _run_profile(arguments: argparse.Namespace) -> None:
    import torch

    from ._profile import profile
    from ._progress import Progress
    from ._resolve import resolve

    network = resolve(arguments.name, trust_file=arguments.trust_file)
    with Progress() as progress:
        result = profile(
            network,
            batch=arguments.batch,
            size=arguments.size,
            threads=arguments.threads or torch.get_num_threads(),
            rounds=arguments.rounds,
            dtype=arguments.dtype,
            progress=progress,
        )
    if arguments.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        result.show()


def _as_dict(options: Any, models: list[dict[str, Any]]) -> dict[str, Any]:
    from dataclasses import asdict

    from .info import info

    versions = ("fastconv", "cpu", "isa", "torch", "onnxruntime", "openvino")
    about = info()
    return {
        "machine": {name: about[name] for name in versions},
        "options": asdict(options),
        "models": models,
    }
