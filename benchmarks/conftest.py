"""Makes pytest-benchmark tests of layers and networks; a group is one interleaved comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fastconv._timing import settle

from . import averages, peers, timing
from .layers import layers
from .networks import QUICK_SETTINGS, settings

_MORE = (averages.ALONE, averages.FILE, averages.FILE_ALONE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="benchmarks: few layers, rivals and rounds; checks results, times mean little",
    )


def _enabled(config: pytest.Config) -> bool:
    return bool(config.getoption("--benchmark-only", default=False))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _enabled(config):
        skip = pytest.mark.skip(reason="benchmarks run with --benchmark-only")
        for item in items:
            if item.path.parent == config.rootpath / "benchmarks":
                item.add_marker(skip)


@dataclasses.dataclass(frozen=True)
class Case:
    """One contender of one group."""

    group: str
    contender: str
    work: Callable[[], timing.Work]
    speed: timing.Speed


def _works(op: str, quick: bool) -> Any:
    """What a benchmark times; for a try one network in each dtype, the first average, and of layers
    the first and the last: they differ most."""
    if op == "networks":
        return QUICK_SETTINGS if quick else settings()
    if op == "predict":
        return averages.settings()[: 1 if quick else None]
    works = layers(op)
    return [works[0], *works[1:][-1:]] if quick else works


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fills `case` of test_<op> with all layers of <op>, of test_networks and test_predict with
    whole networks."""
    if "case" not in metafunc.fixturenames:
        return
    if not _enabled(metafunc.config):
        metafunc.parametrize("case", [None], ids=["skipped"])
        return
    quick = metafunc.config.getoption("--quick")
    op = metafunc.function.__name__.removeprefix("test_")
    works = _works(op, quick)
    rivals = [name for name in peers.RIVALS if not (quick and name == "torch_compile")]
    cases = [
        Case(work.id, name, work.work, work.speed)
        for work in works
        for name in (peers.OURS, *(_MORE if op == "predict" else ()), *rivals)
    ]
    ids = [f"{case.contender}-{case.group.removeprefix(f'{op}-')}" for case in cases]
    metafunc.parametrize("case", cases, ids=ids)


@pytest.fixture(scope="session")
def comparisons(request: pytest.FixtureRequest) -> Iterator[Callable[[Case], timing.Comparison]]:
    """Compares each group once, when its first test runs, and keeps the latest group only."""
    quick = request.config.getoption("--quick")
    names = [name for name in peers.RIVALS if not (quick and name == "torch_compile")]
    latest: dict[str, timing.Comparison] = {}

    def comparison(case: Case) -> timing.Comparison:
        if case.group not in latest:
            latest.clear()
            latest[case.group] = timing.compare(
                case.work(), names, timing.QUICK if quick else case.speed
            )
        return latest[case.group]

    threads = torch.get_num_threads()
    yield comparison
    torch.set_num_threads(threads)


@pytest.fixture
def run(
    case: Case, comparisons: Callable[[Case], timing.Comparison], benchmark: Any
) -> Callable[[], None]:
    """Times one contender by pytest-benchmark, with the interleaved numbers as extra_info."""

    def run() -> None:
        comparison = comparisons(case)
        if case.contender in comparison.skipped:
            pytest.skip(comparison.skipped[case.contender])
        contender = comparison.contenders[case.contender]
        timing_ = comparison.timings[case.contender]
        benchmark.group = case.group
        benchmark.extra_info |= {
            "interleaved": comparison.row(case.contender),
            "ratio_to_fastest_runtime": comparison.ratio(case.contender, peers.FASTEST_OF),
            "threads": comparison.work.threads,
            "isa": timing.isa_name(),
            "peak_gflops": comparison.peak_gflops,
            "skipped": comparison.skipped,
        }
        settle()
        contender.prepare()
        with torch.inference_mode():
            benchmark.pedantic(
                contender.call,
                rounds=len(timing_.seconds),
                iterations=max(1, round(0.002 / timing_.median)),
                warmup_rounds=2,
            )

    return run
