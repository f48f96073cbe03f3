"""The commands that take networks: what they print, write and refuse. No time is looked at."""

import importlib
import importlib.util
import io
import json
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import fastconv
from fastconv import _bench, _resolve, _runtimes, cli
from fastconv._progress import Progress
from fastconv.models import MobileNetV2

from .test_nn import Calls

TINY = ["--size", "32", "--threads", "1"]
QUICK = [*TINY, "--rounds", "2", "--rivals", "eager,channels_last"]


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """One call per value: nobody looks at the times."""
    interleave = _bench._timing.interleave
    monkeypatch.setattr(
        _bench._timing, "interleave", lambda c, **more: interleave(c, block_seconds=0.0, **more)
    )


class Affine(nn.Module):
    """Cannot take small images, and returns what it is told to."""

    def __init__(self, output=None):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.output = output

    def forward(self, input):
        features = self.layer(input)
        return features.mean((2, 3)) if self.output is None else self.output


def error_of(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


def test_bench_prints_a_table(capsys):
    threads = torch.get_num_threads()
    assert cli.main(["bench", "mobilenet_v2", "fastconv:mobilenet_v2", "--batch", "2", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "mobilenet_v2, batch 2, 32x32, float32, 1 thread, median of 2 interleaved rounds" in out
    assert out.count("1.00x") >= 2
    assert out.count("PyTorch channels_last") == 2
    assert "mobilenet_v2: preparing and checking\n  fastconv\n  PyTorch\n" in err
    assert torch.get_num_threads() == threads


def test_bench_json_and_plot(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        path = tmp_path / f"times{suffix}"
        assert cli.main(["bench", "mobilenet_v2", "--json", "--plot", str(path), *QUICK]) == 0
        assert path.read_bytes().startswith(start)
    data = json.loads("{" + capsys.readouterr().out.rpartition("\n}\n{")[2])
    assert data["options"]["rivals"] == ["eager", "channels_last"]
    assert data["machine"]["torch"].startswith(torch.__version__)
    (model,) = data["models"]
    assert (model["name"], model["source"], model["skipped"]) == ("mobilenet_v2", "fastconv", {})
    rows = {row["runs_on"]: row for row in model["results"]}
    assert rows.keys() == {"fastconv", "PyTorch", "PyTorch channels_last"}
    assert rows["fastconv"]["ratio"] == 1
    for row in rows.values():
        assert row["images_per_second"] == pytest.approx(1e3 / row["ms"])
        assert row["ratio"] == pytest.approx(row["ms"] / rows["fastconv"]["ms"])
        assert 0 <= row["difference"] < 1e-4


@pytest.mark.parametrize(
    "name", ["torchvision:mobilenet_v2", "squeezenet1_1", "timm:mobilenetv2_050"]
)
def test_bench_swaps_other_networks(name, torchvision, capsys):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    assert cli.main(["bench", name, *QUICK, "--rivals", "eager"]) == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("source", ["fastconv", "torchvision"])
def test_eager_runs_no_native_op(native, source, torchvision):
    network = _resolve.resolve(f"{source}:mobilenet_v2")
    input = torch.randn(2, 3, 32, 32)
    with fastconv.use_backend("auto"):
        plain, expected = _bench._plain_form(network, input)
    with torch.inference_mode(), fastconv.use_backend("auto"):
        with Calls() as calls:
            assert torch.equal(plain(input), expected)
        assert calls.names == []
        ours = _bench._ours(network, input)
        with Calls() as calls:
            assert _bench._difference(ours.result(), expected) < 1e-4
        assert calls.names != []
        assert torch.equal(plain(input), expected)  # still: the copy shares nothing with ours
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * expected.abs().max()


def test_wrong_and_missing_rivals_are_skipped(monkeypatch, capsys):
    def missing(name):
        raise _runtimes.UnavailableError(f"{name} is not installed")

    def wrong(module, input, name):
        return _runtimes.Contender(name, lambda: None, lambda: 2 * module(input))

    monkeypatch.setattr(_runtimes, "_optional", missing)
    monkeypatch.setattr(_runtimes, "torch_compile", wrong)
    assert cli.main(["bench", "mobilenet_v2", *TINY, "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "not compared: ONNX Runtime: onnx is not installed" in out
    assert "not compared: OpenVINO: onnx is not installed" in out
    assert "not compared: ncnn: ncnn is not installed" in out
    assert "not compared: torch.compile: its output differs from PyTorch's by 1.0e+00" in out


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:mobilenetv1_100"])
def test_bench_in_bfloat16(name, torchvision, capsys):
    pytest.importorskip("timm")
    rivals = "eager,channels_last,onnxruntime"
    arguments = [name, *QUICK, "--rivals", rivals, "--dtype", "bfloat16", "--json"]
    assert cli.main(["bench", *arguments]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["options"]["dtype"] == "bfloat16"
    (model,) = data["models"]
    reasons = ["ONNX Runtime has no bfloat16 convolution on the CPU", "onnx is not installed"]
    has_onnx = importlib.util.find_spec("onnx") is not None
    assert model["skipped"] == {"ONNX Runtime": reasons[0 if has_onnx else 1]}
    # PyTorch rounded: nobody computed in float32 behind its name.
    assert all(1e-4 < row["difference"] < 0.5 for row in model["results"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["openvino", "ncnn"])
def test_runtimes_compute_in_the_dtype_of_the_input(name, dtype):
    pytest.importorskip(name)
    pytest.importorskip({"openvino": "onnx", "ncnn": "pnnx"}[name])
    module = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1)).eval()
    module.requires_grad_(False).to(torch.bfloat16).to(torch.float32)
    input = torch.randn(1, 16, 14, 14).to(dtype)
    model = module if name == "ncnn" else _runtimes.export_onnx(module, input)
    try:
        contender = getattr(_runtimes, name)(model, input, 1)
    except _runtimes.UnavailableError as reason:
        assert dtype == torch.bfloat16
        pytest.skip(str(reason))
    expected = module.double()(input.double())
    error = float((contender.result().double() - expected).abs().max() / expected.abs().max())
    assert error < 1e-5 if dtype == torch.float32 else 1e-4 < error < 2e-2
    assert contender.result().dtype == torch.float32


def test_ncnn_takes_one_image():
    pytest.importorskip("ncnn")
    with pytest.raises(_runtimes.UnavailableError, match="one image at a time"):
        _runtimes.ncnn(nn.ReLU(), torch.randn(2, 3, 8, 8), 1)


@pytest.mark.parametrize("factor", [2, float("nan")])
def test_a_wrong_result_is_not_timed(monkeypatch, capsys, factor):
    forward = MobileNetV2.forward

    def wrong(self, input):
        return forward(self, input) * (1 if self._backend == "reference" else factor)

    monkeypatch.setattr(MobileNetV2, "forward", wrong)
    message = error_of(capsys, "bench", "mobilenet_v2", *QUICK)
    assert message.startswith("bench: mobilenet_v2 runs wrong on fastconv: its output differs from")


def test_files(tmp_path, capsys):
    model, path = fastconv.models.mobilenet_v2(num_classes=7), tmp_path / "model.pt"
    torch.save(model, path)
    assert error_of(capsys, "summary", path).endswith("give --trust-file if you trust it")
    network = _resolve.resolve(str(path), trust_file=True)
    assert network.source == "file"
    assert not network.module.training
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    _bench._plain_form(network, torch.randn(1, 3, 32, 32))  # leaves real statistics alone
    assert all(torch.equal(before[k], v) for k, v in network.module.state_dict().items())
    assert cli.main(["bench", str(path), "--trust-file", *QUICK, "--rivals", "eager"]) == 0
    capsys.readouterr()
    torch.save(model.state_dict(), path)
    message = error_of(capsys, "bench", path, "--trust-file")
    assert (
        "must hold a torch.nn.Module, as torch.save(model, path) writes it, got a Ordered"
        in message
    )
    path.write_text("no module")
    assert "must hold a torch.nn.Module, got: " in error_of(capsys, "bench", path, "--trust-file")


def test_networks_that_cannot_be_timed(tmp_path, capsys):
    path = tmp_path / "model.pt"
    bench = ["bench", path, "--trust-file", *QUICK]
    for model, message in [
        (nn.Linear(5, 4), "must run on images of shape (1, 3, 32, 32), got: "),
        (Affine([1]), "must return one tensor, got a list"),
        (Affine(torch.zeros(1, 2)), "must have a finite output that is not all zero"),
    ]:
        module = importlib.import_module(__name__)
        sys.modules.setdefault(type(model).__module__, module)
        torch.save(model, path)
        assert message in error_of(capsys, *bench)


def test_summary_command(capsys, torchvision):
    assert cli.main(["summary", "mobilenet_v2"]) == 0
    assert "300.8 M MACs, 3,504,872 parameters" in capsys.readouterr().out
    assert cli.main(["summary", "torchvision:mobilenet_v2", "--batch", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["input_size"] == [2, 3, 224, 224]
    assert data["total_macs"] == 2 * 300_774_272
    message = error_of(capsys, "summary", "torchvision:alexnet", "--size", "16")
    assert message.startswith(
        "summary: torchvision:alexnet: model must run at input_size (1, 3, 16"
    )


def test_mistakes_are_explained(capsys, monkeypatch, torchvision):
    pytest.importorskip("timm")
    for name, message in [
        ("lenet", "bench: NAME must be one of "),
        ("fastconv:lenet", "bench: name must be one of "),
        ("torchvision:lenet", "bench: torchvision has no classifier 'lenet'"),
        ("timm:mobilenetv2_1", "bench: timm has no model 'mobilenetv2_1'; it has: mobilenetv2_1"),
        ("timm:lenet5", "it has: none similar"),
    ]:
        assert message in error_of(capsys, "bench", name, *QUICK)
    for path, message in [
        ("times.doc", "bench: --plot must end in one of "),
        ("none/times.png", "bench: --plot must be in a folder that exists, got none/times.png"),
    ]:
        assert message in error_of(capsys, "bench", "mobilenet_v2", "--plot", path, *QUICK)
    for arguments, message in [
        (["--rivals", "eager,caffe"], "must be of eager,channels_last,"),
        (["--threads", "0"], "must be a positive integer, got 0"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
        (["--size", "big"], "must be a positive integer, got big"),
    ]:
        with pytest.raises(SystemExit):
            cli.main(["bench", "mobilenet_v2", *arguments])
        assert message in capsys.readouterr().err
    for name in ("timm", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    message = error_of(capsys, "bench", "timm:lenet", *QUICK)
    assert message == "bench: timm:lenet needs timm: pip install --no-deps timm"
    message = error_of(capsys, "bench", "mobilenet_v2", "--plot", "a.png", *QUICK)
    assert message == "bench: --plot needs matplotlib: pip install matplotlib"
    monkeypatch.setattr(_resolve._torchvision, "import_torchvision", lambda: None)
    assert "which is not installed" in error_of(capsys, "bench", "torchvision:resnet18")
    assert "NAME must be one of" in error_of(capsys, "bench", "squeezenet1_1")


def test_progress_on_a_terminal(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    threads = threading.active_count()
    with Progress() as progress:
        for text in ("preparing", "timing"):
            progress.task(text, total=2)
            progress.step("one")
            progress.step()
            assert text in sys.stderr.getvalue()
        assert threading.active_count() == threads  # it would disturb the timing
    assert "one" not in sys.stderr.getvalue()


def test_help_imports_no_compiler():
    code = "import sys; from fastconv import cli\ntry: cli.main(['bench', '--help'])\n"
    code += (
        "except SystemExit: assert not {'torch._inductor', 'matplotlib', 'timm'} & {*sys.modules}"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--trust-file" in result.stdout
