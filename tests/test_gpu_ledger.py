"""The ledger of GPU results, and the other tools that read what a compiler or a GPU said."""

import importlib.util
import io
import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from .test_benchmark_results import benchmark_module

layers, ledger, tables = (
    benchmark_module(f"gpu.{name}") for name in ("layers", "ledger", "tables")
)
ROOT = Path(__file__).parents[1]

LAYER = {
    "id": "a layer, batch 256, bfloat16",
    "layer": "a layer",
    "batch": 256,
    "dtype": "bfloat16",
    "bytes": 2_000_000,
    "flops": 3_000_000,
    "seconds": {"fastconv": 1e-6, "eager channels_last": 2e-6, "eager": 3e-6},
    "quartiles": {
        "fastconv": [0.9e-6, 1.1e-6],
        "eager channels_last": [1.9e-6, 2.1e-6],
        "eager": [3e-6, 3e-6],
    },
    "cold_seconds": {"fastconv": 4e-6},
    "errors": {},
    "chosen": "cuda 14 x 14",
}
FAILED = LAYER | {"id": "another, batch 256, bfloat16", "layer": "another", "seconds": {}}
FAILED |= {"quartiles": {}, "errors": {"fastconv": "broken | twice"}}

RESULTS = {  # made up, as a file would have it
    "gpu": "NVIDIA Imaginary",
    "versions": {"torch": "2.11.0"},
    "commit": "0123456789abcdef",
    "sources_hash": "a hash",
    "ceilings": {
        "copy_bytes_per_second": 4e12,
        "matmul_flops_per_second": 7e14,
        "launch_seconds": 1.5e-6,
    },
    "networks": [
        {
            "id": "mobilenet_v2, batch 256, bfloat16",
            "images_per_second": {"fastconv": 1000.0, "eager": 400.0, "torch.compile": 500.0},
        }
    ],
    "training": [
        {
            "id": "mobilenet_v2, batch 128, float32",
            "images_per_second": {"fastconv": 300.0, "eager": 200.0},
            "peak_bytes": {"fastconv": 2_000_000_000},
        }
    ],
    "layers": [LAYER, FAILED],
}


def test_tables():
    text = ledger.render(RESULTS, "a hash")
    assert "| mobilenet_v2, batch 256, bfloat16 | 1,000 | 400 | 500 | 2.00 |" in text
    assert "| mobilenet_v2, batch 128, float32 | 300 | 200 | 1.50 | 2,000 | - |" in text
    assert "| a layer | 1.0 | 4.0 | 2000 | 50 | 3.0 | 2.00 | - | cuda 14 x 14 |" in text
    assert "| another | failed | - | - | - | - | - | - | broken / twice |" in text
    assert "| batch 256, bfloat16 | 1 of 2 | 50 | 2.00 | 2.00 | 0 |" in text
    assert "Slower than eager" not in text
    assert "copy 4.00 TB/s, bfloat16 product 700 TFLOP/s, 1.5 us from kernel to kernel" in text
    assert "NVIDIA Imaginary. torch 2.11.0." in text
    assert text.endswith("Commit 0123456789.\n")
    assert ledger.OLDER not in text
    assert ledger.OLDER in ledger.render(RESULTS, "another hash")


def test_tables_of_what_there_is():
    """A run may end early: no ceilings, no networks, no fastconv."""
    some = {name: RESULTS[name] for name in ("gpu", "versions", "sources_hash")} | {"commit": ""}
    assert ledger.render(some, "a hash") == "NVIDIA Imaginary. torch 2.11.0.\n"
    text = ledger.render(some | {"layers": [LAYER | {"batch": 1}, FAILED]}, "a hash")
    assert "| batch 1, bfloat16 | 1 of 1 | - | 2.00 | 2.00 | 0 |" in text
    assert "| batch 256, bfloat16 | 0 of 1 | - | - | - | 0 |" in text
    rivals = {"id": "n", "images_per_second": {"eager": 400.0}}
    assert "| n | 400 | - |" in ledger.render(some | {"networks": [rivals]}, "a hash")


@pytest.mark.parametrize(
    ("eager", "quartiles", "slower"),
    [
        (0.99e-6, (0.9e-6, 1e-6), False),  # within two percent
        (0.8e-6, (0.7e-6, 0.95e-6), False),  # they overlap
        (0.8e-6, (0.7e-6, 0.85e-6), True),
    ],
)
def test_no_layer_is_slower_than_eager(eager, quartiles, slower):
    """The faster one of its two layouts."""
    row = LAYER | {
        "seconds": LAYER["seconds"] | {"eager": eager},
        "quartiles": LAYER["quartiles"] | {"eager": quartiles},
    }
    assert tables.is_slower(row) == slower
    assert not tables.is_slower(FAILED)
    assert tables.eager(row) == eager
    text = ledger.render(RESULTS | {"layers": [row]}, "a hash")
    assert ("Slower than eager: a layer, batch 256, bfloat16." in text) == slower


def test_readme_shows_the_ledger():
    readme = (ROOT / "README.md").read_text()
    path, text = ledger.shown(readme)
    now = ledger.sources_hash()
    if path is None:
        assert text == ledger.render(None, now) == ledger.NOT_MEASURED
        found = [p for p in ledger.RESULTS.glob("*.json") if "gpu" in json.loads(p.read_text())]
        assert found == []
        return
    results = json.loads((ROOT / path).read_text())
    # The line about older sources comes and goes with them: the numbers must be the file's.
    current = {text, ledger.render(results, now), ledger.render(results, results["sources_hash"])}
    assert text in current
    assert re.sub(r"\*\*.*\*\*\n\n", "", text) == ledger.render(results, results["sources_hash"])
    if results["sources_hash"] != now:
        warnings.warn(ledger.OLDER, stacklevel=1)


def test_readme_is_updated():
    readme = "before\n<!-- gpu: none -->\nold\n<!-- /gpu -->\nafter\n"
    new = ledger.updated(readme, RESULTS, "benchmarks/results/x.json", "a hash")
    assert ledger.shown(new) == ("benchmarks/results/x.json", ledger.render(RESULTS, "a hash"))
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert ledger.shown(ledger.updated(new, None, "", "a hash")) == (None, ledger.NOT_MEASURED)
    with pytest.raises(ValueError, match=r"^README.md must contain"):
        ledger.shown("nothing")


def test_results_that_readme_does_not_show_yet(tmp_path):
    nothing = "<!-- gpu: none -->\n<!-- /gpu -->"
    assert ledger.path(nothing, tmp_path) is None
    for name, date in (("a", "2026-01-02"), ("b", "2026-01-01")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"gpu": name, "date": date}))
    (tmp_path / "cpu.json").write_text(json.dumps({"machine": {}}))
    assert ledger.path(nothing, tmp_path) == tmp_path / "a.json"
    shown = nothing.replace("none", "benchmarks/results/x.json")
    assert ledger.path(shown, tmp_path) == ROOT / "benchmarks/results/x.json"


def test_hash_of_the_sources(tmp_path):
    for folder in ledger.SOURCES:
        (tmp_path / folder).mkdir(parents=True)
    source = tmp_path / "csrc" / "a.cu"
    source.write_text("one")
    first = ledger.sources_hash(tmp_path)
    (tmp_path / "csrc" / "notes.txt").write_text("of no effect")
    assert ledger.sources_hash(tmp_path) == first
    source.write_text("two")
    assert ledger.sources_hash(tmp_path) != first
    source.write_text("one")
    assert ledger.sources_hash(tmp_path) == first
    source.rename(source.with_name("b.cu"))
    assert ledger.sources_hash(tmp_path) != first


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA H200", "h200.json"),
        ("NVIDIA H100 80GB HBM3", "h100.json"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090.json"),
        ("Tesla T4", "t4.json"),
    ],
)
def test_file_names(gpu, name):
    assert ledger.file_name(gpu) == name


def test_layers_of_a_network():
    found = {layer.name: layer for layer in layers.layers("mobilenet_v2", 64)}
    block = found["InvertedResidual 16x16-24-144-144-24-k3s1-relu6"]
    pixels = 16 * 16
    assert block.map_values == 2 * 24 * pixels
    assert block.weight_values == 144 * (24 + 9 + 24) + 144 + 144 + 24
    assert block.bytes(8, torch.bfloat16) == 2 * (8 * block.map_values + block.weight_values)
    assert block.flops == 2 * pixels * 144 * (24 + 9 + 24)


def _ptxas_report():
    path = ROOT / "tests" / "cuda" / "ptxas_report.py"
    spec = importlib.util.spec_from_file_location("ptxas_report", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_compiler_says_of_registers(monkeypatch, capsys, tmp_path):
    report = _ptxas_report()
    library = tmp_path / "libfastconv_cuda.so"
    library.write_bytes(b"libtorch_cuda.so\0")
    monkeypatch.setattr(report.sys, "argv", ["ptxas_report", str(library)])
    text = """[1/2] nvcc
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4kernIfEvi' for 'sm_90'
ptxas info    : Function properties for _Z4kernIfEvi
    8 bytes stack frame, {} bytes spill stores, {} bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
"""
    for spilled, status in ((0, 0), (4, 1)):
        lines = text.format(spilled, spilled).splitlines(keepends=True)
        expected = report.Kernel("_Z4kernIfEvi", "sm_90", 40, 2 * spilled)
        assert report.parse(lines) == [expected]
        monkeypatch.setattr(report.sys, "stdin", io.StringIO("".join(lines)))
        monkeypatch.setattr(report, "readable", lambda names: names)
        assert report.main() == status
        assert "40 registers" in capsys.readouterr().out
    lines = text.format(0, 0).splitlines(keepends=True)
    library.write_bytes(b"")
    monkeypatch.setattr(report.sys, "stdin", io.StringIO("".join(lines)))
    assert report.main() == 1
    assert "was not linked to libtorch_cuda.so" in capsys.readouterr().out
    monkeypatch.setattr(report.sys, "stdin", io.StringIO("error\n"))
    assert report.main() == 1  # a build that compiled nothing


def test_the_rival_is_plain_pytorch():
    model = layers.random_network("mobilenet_v2")
    plain = layers.plain_copy(model)
    input = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = plain(input)
        assert not any("_fused_cache" in module.__dict__ for module in plain.modules())
        torch.testing.assert_close(model(input), expected, rtol=1e-3, atol=1e-4)
