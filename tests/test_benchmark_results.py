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
# Those of a GPU are in tests/test_gpu_ledger.py, those of docs/models.md in test_catalog.py.
RESULTS = [
    path
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    if {"gpu", "models"}.isdisjoint(json.loads(path.read_text()))
]

ROW = {"median_ms": 2.0, "iqr_ms": 0.1, "gflops": 5.0, "percent_of_peak": 80.0, "error": 1e-7}
ORIGIN = {"commit": "0123456789abcdef", "sources_changed": False, "date": "2026-01-01 00:00 UTC"}
NETWORK = {
    **ORIGIN,
    "id": "mobilenet_v2-b1-t1",
    "network": "mobilenet_v2",
    "dtype": "float32",
    "size": 224,
    "threads": 1,
    "batch": 1,
    "mflop": 600.0,
    "peak_gflops": 10.0,
    "ratio_to_fastest_runtime": 0.5,
    "rows": {
        "fastconv": ROW,
        "onnxruntime": {**ROW, "median_ms": 5.0},
        "onnxruntime_no_spinning": {**ROW, "median_ms": 4.0},
        "eager": {**ROW, "median_ms": 12345.6},
    },
}
SAMPLE = {
    "machine": {
        "cpu": "A CPU",
        "family": 1,
        "model": 2,
        "cores": 3,
        "caches": {"L1": "32K", "L2": "1024K", "L3": "32M"},
    },
    "versions": {"torch": "2.13.0"},
    "measured": {"input": "random normal"},
    "networks": [
        NETWORK,
        {
            **NETWORK,
            "id": "mobilenet_v2-b16-t2-bf16",
            "dtype": "bfloat16",
            "threads": 2,
            "batch": 16,
            "commit": "fedcba9876543210",
            "date": "2026-01-03 00:00 UTC",
        },
    ],
    "isa_levels": [{**ORIGIN, "id": "mobilenet_v2-b1-t1", "rows": {"fastconv_avx2": ROW}}],
    "memory": {
        "mobilenet_v2-b1-t1": ORIGIN
        | {
            name: {"growth_mb": 10.0, "peak_mb": 400.0}
            for name in ("fastconv", "eager", "eager_channels_last")
        }
    },
    "profiles": [
        {
            **ORIGIN,
            "name": "mobilenet_v2",
            "id": f"mobilenet_v2-b1-t{threads}",
            "input_size": [1, 3, 224, 224],
            "threads": threads,
            "steps": [
                {"name": "3x3 convolution", "output": [8, 2, 2], "macs": 3e6, "seconds": seconds},
                {"name": "mean", "output": [8, 1, 1], "macs": 0, "seconds": seconds / 2},
            ],
            "ops": [],
            "seconds": 0.25,
            "rest": 0.125,
            "peak": 1e8,
        }
        for threads, seconds in ((1, 0.125), (2, 0.0625))
    ],
    "layers": [
        {**NETWORK, "op": "pointwise_conv2d", "layer": "7x7-1to2", "mbytes": 6.0},
        {**NETWORK, "op": "pointwise_conv2d", "layer": "7x7-3to4", "mbytes": 0.5},
        {**NETWORK, "op": "linear", "layer": "5to6", "mbytes": 1200.0},
    ],
    "bandwidths": {"L2": 64.0, "L3": 0.08, "memory": 16.0},
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
        tolerance = timing.TOLERANCES[getattr(torch, entry["dtype"])]
        assert all(row["error"] <= tolerance for row in rows.values())
        fastest = min(rows[name]["median_ms"] for name in peers.FASTEST_OF if name in rows)
        ratio = rows["fastconv"]["median_ms"] / fastest
        assert entry["ratio_to_fastest_runtime"] == pytest.approx(ratio, rel=1e-2)


def test_render_takes_the_best_of_a_rival(table):
    text = table.render(SAMPLE, "benchmarks/results/a.json")
    times = "2 | - | 4 | - | - | - | - | 12346 | 0.50 | 80 |"
    assert f"| mobilenet_v2, float32, batch 1, 1 thread | {times}" in text
    assert f"| mobilenet_v2, bfloat16, batch 16, 2 threads | {times}" in text
    assert "| pointwise_conv2d 7x7-1to2 | 600 | 2000 | 80 | ONNX Runtime | 0.50 |" in text
    assert "benchmarks/results/a.svg" in text


def test_render_has_one_row_for_each_network_and_dtype(table):
    text = table.render(SAMPLE, "a.json")
    assert "time) | batch 1, 1 thread | batch 16, 2 threads |" in text
    assert "| mobilenet_v2, 224x224, float32 | 2 (0.50) | - |" in text
    assert "| mobilenet_v2, 224x224, bfloat16 | - | 2 (0.50) |" in text
    origin = "Commit 0123456789, Commit fedcba9876, 2026-01-01 00:00 UTC, 2026-01-03 00:00 UTC."
    assert origin in text


def test_render_leaves_out_what_was_not_measured(table):
    some = {name: SAMPLE[name] for name in ("machine", "versions", "measured", "isa_levels")}
    text = table.render(some, "a.json")
    assert "mobilenet_v2-b1-t1, avx2" in text
    assert not any(word in text for word in ("![", "fastest", "limit", "Memory"))


def test_profiles_have_the_times_of_all_numbers_of_threads_side_by_side(table):
    text = table.render(SAMPLE, "a.json")
    assert "Where the time goes, step by step" in text
    assert (
        "| mobilenet_v2 | output | M MACs | ms, 1 thread | % of FMA peak | ms, 2 threads |" in text
    )
    assert "| 3x3 convolution | 8 x 2 x 2 | 3.00 | 125.000 | 48 | 62.500 | 96 |" in text
    assert "| mean | 8 x 1 x 1 | 0.00 | 62.500 | 0 | 31.250 | 0 |" in text
    assert "| between the ops |  |  | 125.000 |  | 125.000 |  |" in text
    assert "| the whole call |  | 3.00 | 250.000 | 24 | 250.000 | 24 |" in text


def test_profiles_are_of_one_image(monkeypatch):
    networks, report = benchmark_module("networks"), benchmark_module("report")
    monkeypatch.setattr(networks.os, "sched_getaffinity", lambda _: range(2))
    settings = networks.profile_settings()
    assert {s.network for s in settings} == set(networks.NETWORKS)
    assert {(s.batch, s.threads, s.dtype) for s in settings} == {(1, t, "float32") for t in (1, 2)}
    (job,) = report.chosen("profile-mobilenet_v2-b1-t1")
    assert (job.section, job.kind, job.subject) == ("profiles", "profile", "mobilenet_v2-b1-t1")


def test_limits_are_of_the_smallest_cache_that_holds_a_layer(table):
    roofline = benchmark_module("roofline")
    in_l3, in_l2, in_memory = roofline.points(SAMPLE)
    assert in_l3.limit == pytest.approx(0.08 * 600 / 6)
    assert in_l2.limit == 10  # the peak: bandwidth would allow 64 * 1200
    assert in_memory.limit == pytest.approx(16 * 600 / 1200)
    pointwise, linear = roofline.shares([in_l3, in_l2, in_memory])
    assert (pointwise.op, pointwise.layers, pointwise.worst) == ("pointwise_conv2d", 2, in_l2)
    assert pointwise.median_percent == pytest.approx((100 * 5 / 8 + 50) / 2)
    assert linear.median_percent == linear.worst.percent == pytest.approx(100 * 5 / 8)
    assert "| pointwise_conv2d | 2 | 56.2 | 50 | 7x7-3to4 |" in table.render(SAMPLE, "a.json")
    assert roofline.points(SAMPLE | {"bandwidths": {}}) == []


def test_settings_have_all_networks(monkeypatch):
    networks = benchmark_module("networks")
    monkeypatch.setattr(networks.os, "sched_getaffinity", lambda _: range(4))
    found = {setting.id: setting for setting in networks.settings()}
    assert len(found) == len(networks.settings()) == 2 * (4 * 4 + 2 * 2) + 2 * 2
    for network in networks.NETWORKS:
        for setting in ("b1-t1", "b1-t4", "b16-t4", "b64-t4"):
            assert {f"{network}-{setting}", f"{network}-{setting}-bf16"} <= found.keys()
    assert {"resnet50-b1-t4", "resnet50-b16-t4", "googlenet-b16-t4"} <= found.keys()
    assert found["efficientnet_b4-b1-t1-bf16"].shape == (1, 3, 380, 380)
    assert found["mobilenet_v1-b64-t4"].skipped().keys() == {"eager", "torch_compile"}
    assert found["mobilenet_v1-b16-t4"].skipped() == {}
    monkeypatch.setattr(networks.os, "sched_getaffinity", lambda _: range(1))
    assert len(networks.settings()) == 2 * (4 * 3 + 2 * 1) + 2 * 2


def test_only_takes_the_place_of_what_it_measures(monkeypatch):
    report = benchmark_module("report")
    jobs = report.chosen("mobilenet_v2-b1-t1*,layers-linear,bandwidths")
    ids = [job.id for job in jobs]
    assert ids == ["mobilenet_v2-b1-t1", "mobilenet_v2-b1-t1-bf16", "layers-linear", "bandwidths"]
    with pytest.raises(ValueError, match=r"--only must match ids of .*, got lenet"):
        report.chosen("mobilenet_v2-b1-t1,lenet")
    old = [{"id": "mobilenet_v2-b1-t1"}, {"id": "mobilenet_v1-b1-t1", "old": True}]
    new = [{"id": "mobilenet_v2-b1-t1-bf16"}, {"id": "mobilenet_v1-b1-t1"}]
    assert report.merged(old, new) == [new[1], old[0], new[0]]

    monkeypatch.setattr(report, "_measure", lambda job, *options: {"id": job.subject, "new": True})
    results = {"networks": [dict(NETWORK)], "layers": SAMPLE["layers"]}
    report.measure_into(results, jobs[0], quick=True)
    (entry,) = results["networks"]
    assert entry.keys() == {"id", "new", "commit", "sources_changed", "date", "load_average"}
    assert results["layers"] == SAMPLE["layers"]


def test_old_results_are_kept_only_with_the_same_versions():
    report = benchmark_module("report")
    now = report.begin(None)
    assert report.begin(now | {"networks": [NETWORK]})["networks"] == [NETWORK]
    old = now | {"versions": now["versions"] | {"torch": "1.0"}}
    with pytest.raises(ValueError, match=r"other versions made them: \['torch'\]"):
        report.begin(old)


def test_updated_replaces_only_the_generated_part(table):
    readme = "head\n<!-- results: none -->\nold\n<!-- /results -->\ntail\n"
    new = table.updated(readme, SAMPLE, "results/a.json")
    assert new.startswith("head\n<!-- results: results/a.json -->\n")
    assert new.endswith("<!-- /results -->\ntail\n")
    assert table.section(new) == table.render(SAMPLE, "results/a.json")
    assert table.updated(new, SAMPLE, "results/a.json") == new
    with pytest.raises(ValueError, match="a document must contain"):
        table.results_path("no marks")


def test_plot_is_reproducible(tmp_path):
    pytest.importorskip("matplotlib")
    plot = benchmark_module("plot")
    for name in ("a.svg", "b.svg"):
        plot.draw(SAMPLE, tmp_path / name)
    for end in (".svg", "-roofline.svg"):
        picture = (tmp_path / f"a{end}").read_bytes()
        assert picture == (tmp_path / f"b{end}").read_bytes()
    assert b"<svg" in picture


def test_check_refuses_a_wrong_result():
    timing = benchmark_module("timing")
    expected = torch.ones(2, 3, dtype=torch.float64)

    def contender(output):
        return Contender("name", lambda: output, lambda: output)

    assert timing.check([contender(expected.float())], expected, 1e-4) == {"name": 0}
    assert timing.check([contender(expected.bfloat16())], expected, 1e-4) == {"name": 0}
    for wrong in (expected + 2e-4, expected[:1], expected * float("nan")):
        with pytest.raises(AssertionError, match="name"):
            timing.check([contender(wrong)], expected, 1e-4)


def test_ours_rounds_as_well_as_eager():
    timing = benchmark_module("timing")
    errors = {"fastconv": 0.02, "eager": 0.01, "eager_channels_last": 0.009, "openvino": 0.2}
    timing.check_rounding(errors, ["fastconv"])
    with pytest.raises(
        AssertionError, match=r"fastconv is wrong by 2\.1e-02 .* PyTorch by 1\.0e-02"
    ):
        timing.check_rounding(errors | {"fastconv": 0.021}, ["fastconv"])


def test_truth_covers_every_image():
    timing, layers = benchmark_module("timing"), benchmark_module("layers")
    input = layers.random_input((13, 2, 4, 4))
    assert input.is_contiguous(memory_format=torch.channels_last)
    assert len({tuple(image.flatten().tolist()) for image in input}) == timing.IMAGES
    module = torch.nn.Conv2d(2, 3, 3).requires_grad_(False)
    expected = timing.truth(timing.Work("id", 1, module, (), input, 0))
    assert expected.dtype == torch.float64
    torch.testing.assert_close(expected, module.double()(input.double()))


def test_traffic_counts_input_weights_and_output_once():
    layers = benchmark_module("layers")
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1, bias=False), torch.nn.BatchNorm2d(3))
    assert layers.traffic(module.eval(), (1, 2, 5, 7)) == 4 * (2 * 35 + 2 * 3 + 3 + 3 * 35)


def test_bandwidths_are_of_each_cache_and_memory():
    bandwidth = benchmark_module("bandwidth")
    threads = torch.get_num_threads()
    try:
        found = bandwidth.measure_bandwidths({"L1": "32K", "L2": "64K"}, seconds=0.001)
    finally:
        torch.set_num_threads(threads)
    assert found.keys() == {"L2", "memory"}
    assert all(rate > 0 for rate in found.values())


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
