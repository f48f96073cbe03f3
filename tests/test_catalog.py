"""docs/models.md: every network is in its table, and the numbers are those of the results."""

import json
from pathlib import Path

import pytest
import torch

import fastconv
from fastconv import _resolve, models
from fastconv.summary import input_channels

from .meta import meta_device
from .test_benchmark_results import ORIGIN, SAMPLE, benchmark_module

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "models.md"
MEASURED = {
    **ORIGIN,
    "threads": 2,
    "rounds": 3,
    "rows": {
        "fastconv": {"median_ms": 2.0, "iqr_ms": 0.1, "difference": 1e-7},
        "channels_last": {"median_ms": 8.0, "iqr_ms": 0.1, "difference": 0.0},
    },
    "skipped": {"onnxruntime": "it is not installed"},
}
ENTRY = {
    "id": "resnet18",
    "size": 224,
    "parameters": 11_689_512,
    "macs": 1_814_073_344,
    "keys": "torchvision",
    "native_macs": 907_036_672,
}
RESULTS = {name: SAMPLE[name] for name in ("machine", "versions", "measured")}


@pytest.fixture
def catalog():
    return benchmark_module("catalog")


@pytest.fixture(scope="module")
def stored():
    """The results that the document shows."""
    path = benchmark_module("table").results_path(DOCUMENT.read_text())
    return json.loads((ROOT / path).read_text())["models"]


def test_the_document_shows_the_results(catalog):
    table = benchmark_module("table")
    text = DOCUMENT.read_text()
    path = table.results_path(text)
    results = json.loads((ROOT / path).read_text())
    assert table.section(text) == catalog.render(results, path), "run: make models"


def test_every_network_is_in_it(stored):
    assert sorted(entry["id"] for entry in stored) == models.list_models(), "run: make models"
    shown = [line.split(" | ")[0] for line in DOCUMENT.read_text().splitlines()]
    assert [f"| {entry['id']}" for entry in stored] == [
        line for line in shown if line[2:] in models.list_models()
    ]


@pytest.mark.parametrize("name", models.list_models())
def test_sizes_and_costs_are_the_networks(stored, name):
    (entry,) = [entry for entry in stored if entry["id"] == name]
    with meta_device():
        model = models.create_model(name)
    assert entry["size"] == models.image_size(name)
    assert entry["parameters"] == sum(p.numel() for p in model.parameters())
    assert 0 <= entry["native_macs"] <= entry["macs"]
    if entry["macs"] < 2e9:  # counting takes long in deep networks
        size = (1, input_channels(model), entry["size"], entry["size"])
        assert entry["macs"] == fastconv.summary(model, size).total_macs


@pytest.mark.parametrize("name", models.list_models())
def test_keys_are_whose_they_are_said_to_be(stored, torchvision, name):
    (entry,) = [entry for entry in stored if entry["id"] == name]
    with meta_device():
        ours = models.create_model(name)
        if entry["keys"] == "torchvision":
            extra = {"init_weights": False} if hasattr(ours, "transform_input") else {}
            theirs = torchvision.models.get_model(name, weights=None, **extra)
        elif entry["keys"] == "timm":
            theirs = pytest.importorskip("timm").create_model("mobilenetv1_100")
        else:
            assert name not in torchvision.models.list_models()
            return
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_coverage_counts_convolutions_and_linear_layers(catalog, native):
    network = _resolve.resolve("fastconv:mobilenet_v3_small")
    found = catalog.facts("mobilenet_v3_small", network)
    assert found["native_macs"] == found["macs"]
    network.module.classifier[0].register_forward_hook(lambda *_: None)
    network.module.features[0][0].register_forward_hook(lambda *_: None)
    hooked = catalog.facts("mobilenet_v3_small", network)
    assert 0 < hooked["native_macs"] < found["native_macs"]


def test_times_are_of_everybody(catalog, native):
    network = _resolve.resolve("fastconv:lenet5")
    threads = torch.get_num_threads()
    found = catalog.times(network, 32, 416_520, rounds=1)
    assert torch.get_num_threads() == threads
    assert {"fastconv", "channels_last"} <= found["rows"].keys()
    assert found["rows"].keys() | found["skipped"].keys() == {"fastconv", *catalog._RIVALS}
    assert all(row["median_ms"] > 0 and row["difference"] < 1e-3 for row in found["rows"].values())


def test_render_shows_what_was_measured(catalog):
    results = RESULTS | {"models": [ENTRY | {"measured": MEASURED}, ENTRY | {"id": "resnet34"}]}
    text = catalog.render(results, "benchmarks/results/a-models.json")
    about = "224 | 11.7 | 1814 | torchvision | 50.0"
    assert f"| resnet18 | {about} | 2 | 8 | - | 0.25 | - |\n" in text
    assert f"| resnet34 | {about} | - | - | - | - | - |\n" in text
    assert "\n* resnet18, ONNX Runtime: it is not installed\n" in text
    assert "One image, 2 threads, float32. A CPU (family 1, model 2)" in text
    assert "(../benchmarks/results/a-models.json)" in text
    untimed = catalog.render(RESULTS | {"models": [ENTRY]}, "benchmarks/results/a-models.json")
    assert "No times are recorded yet: `make models`" in untimed


def test_only_takes_the_place_of_what_it_measures(catalog):
    assert catalog.chosen("resnet1*,lenet5") == ["resnet101", "resnet152", "resnet18", "lenet5"]
    with pytest.raises(ValueError, match=r"--only must match alexnet .*, got lenet"):
        catalog.chosen("resnet18,lenet")
    old = [ENTRY | {"id": "resnet101"}, ENTRY | {"measured": MEASURED}, ENTRY | {"id": "gone"}]
    kept = catalog.merged(old, ENTRY | {"macs": 1})
    assert [entry["id"] for entry in kept] == ["resnet18", "resnet101"]
    assert kept[0] == ENTRY | {"macs": 1, "measured": MEASURED}
    again = catalog.merged(old, ENTRY | {"measured": MEASURED | {"rounds": 9}})
    assert again[0]["measured"]["rounds"] == 9
