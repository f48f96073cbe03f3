"""README shows exactly what the results say, and the benchmarks' own tools can be trusted."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from fastconv._timing import Contender, interleave

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))

ROW = {"median_ms": 2.0, "iqr_ms": 0.1, "gflops": 5.0, "percent_of_peak": 80.0, "error": 1e-7}
NETWORK = {
    "id": "mobilenet_v2-b1-t1",
    "threads": 1,
    "batch": 1,
    "mflop": 600.0,
    "ratio_to_fastest_runtime": 0.5,
    "rows": {
        "fastconv": ROW,
        "onnxruntime": {**ROW, "median_ms": 5.0},
        "onnxruntime_no_spinning": {**ROW, "median_ms": 4.0},
        "eager": {**ROW, "median_ms": 12345.6},
    },
}
SAMPLE = {
    "machine": {"cpu": "A CPU", "family": 1, "model": 2, "cores": 3, "caches": {"L1": "32K"}},
    "versions": {"torch": "2.13.0"},
    "commit": "0123456789abcdef",
    "sources_changed": False,
    "date": "2026-01-01 00:00 UTC",
    "measured": {"rounds": 20, "input": "random normal"},
    "networks": [NETWORK],
    "isa_levels": [{"id": "mobilenet_v2-b1-t1", "rows": {"fastconv_avx2": ROW}}],
    "memory": {
        "mobilenet_v2-b1-t1": {
            name: {"growth_mb": 10.0, "peak_mb": 400.0}
            for name in ("fastconv", "eager", "eager_channels_last")
        }
    },
    "layers": [{"op": "pointwise_conv2d", "layer": "7x7-1to2", **NETWORK}],
}


def benchmark_module(name):
    """Imports benchmarks.<name>, also when the root is not on sys.path."""
    if "benchmarks" not in sys.modules:
        folder = ROOT / "benchmarks"
        spec = importlib.util.spec_from_file_location(
            "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["benchmarks"])
    return importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def table():
    return benchmark_module("table")


def test_readme_shows_the_results(table):
    readme = README.read_text()
    path = table.results_path(readme)
    results = None if path is None else json.loads((ROOT / path).read_text())
    assert table.section(readme) == table.render(results, path), "run: make bench"
    assert path is None or (ROOT / path).with_suffix(".svg").is_file()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_are_consistent(path):
    peers, timing = benchmark_module("peers"), benchmark_module("timing")
    results = json.loads(path.read_text())
    for entry in [*results["networks"], *results["layers"]]:
        rows = entry["rows"]
        assert all(row["error"] <= timing.TOLERANCE for row in rows.values())
        fastest = min(rows[name]["median_ms"] for name in peers.FASTEST_OF if name in rows)
        ratio = rows["fastconv"]["median_ms"] / fastest
        assert entry["ratio_to_fastest_runtime"] == pytest.approx(ratio, rel=1e-2)


def test_render_takes_the_best_of_a_rival(table):
    text = table.render(SAMPLE, "benchmarks/results/a.json")
    row = "| mobilenet_v2, batch 1, 1 thread | 2 | - | 4 | - | - | - | 12346 | 0.50 | 80 |"
    assert row in text
    assert "| pointwise_conv2d 7x7-1to2 | 600 | 2000 | 80 | ONNX Runtime | 0.50 |" in text
    assert "benchmarks/results/a.svg" in text


def test_updated_replaces_only_the_generated_part(table):
    readme = "head\n<!-- results: none -->\nold\n<!-- /results -->\ntail\n"
    new = table.updated(readme, SAMPLE, "results/a.json")
    assert new.startswith("head\n<!-- results: results/a.json -->\n")
    assert new.endswith("<!-- /results -->\ntail\n")
    assert table.section(new) == table.render(SAMPLE, "results/a.json")
    assert table.updated(new, SAMPLE, "results/a.json") == new
    with pytest.raises(ValueError, match=r"README\.md must contain"):
        table.results_path("no marks")


def test_plot_is_reproducible(tmp_path):
    pytest.importorskip("matplotlib")
    plot = benchmark_module("plot")
    for name in ("a.svg", "b.svg"):
        plot.draw(SAMPLE, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_check_refuses_a_wrong_result():
    timing = benchmark_module("timing")
    expected = torch.ones(2, 3, dtype=torch.float64)

    def contender(output):
        return Contender("name", lambda: output, lambda: output)

    assert timing.check([contender(expected.float())], expected) == {"name": 0}
    for wrong in (expected + 2e-4, expected[:1], expected * float("nan")):
        with pytest.raises(AssertionError, match="name"):
            timing.check([contender(wrong)], expected)


def test_slug_names_a_machine():
    machine = benchmark_module("machine")
    description = {"cpu": "AMD EPYC 9R14 Processor", "family": 25, "model": 17, "cores": 2}
    assert machine.slug(description) == "amd-epyc-9r14-2-cores"
    description["cpu"] = "AMD EPYC"
    assert machine.slug(description) == "amd-epyc-family-25-model-17-2-cores"


def test_interleave_gives_everyone_every_round():
    calls = []
    contenders = [
        Contender(name, lambda name=name: calls.append(name), lambda: None) for name in "abc"
    ]
    timings = interleave(contenders, rounds=3, block_seconds=1e-9)
    assert {name: len(timing.seconds) for name, timing in timings.items()} == dict.fromkeys(
        "abc", 3
    )
    assert all(timing.median > 0 and timing.iqr >= 0 for timing in timings.values())
    # Calibration takes 5 calls each, a round 2 to warm up and 1 timed; who begins changes.
    rounds = calls[15:]
    assert rounds == list("aaabbbccc" + "bbbcccaaa" + "cccaaabbb")
    with pytest.raises(ValueError, match="different names"):
        interleave([contenders[0], contenders[0]], rounds=1)
