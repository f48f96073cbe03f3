"""The package as installed: imports, loading, `fastconv info`, the build backend."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fastconv
from fastconv import _library, cli

ROOT = Path(__file__).parents[1]
PACKAGE = Path(fastconv.__file__).parent

# Ends with one printed line: the output of a 1x1 convolution against PyTorch's.
USE = """
import torch, fastconv
x, w = torch.randn(1, 8, 5, 5), torch.randn(4, 8, 1, 1)
y = fastconv.pointwise_conv2d(x, w)
print(torch.allclose(y, torch.nn.functional.conv2d(x, w), atol=1e-5))
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def copy_without_library(folder: Path) -> Path:
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    return Path(shutil.copytree(PACKAGE, folder / "fastconv", ignore=ignore))


def test_import_needs_no_triton_and_starts_no_gpu():
    code = """
import sys
sys.modules["triton"] = None
import torch, fastconv
assert not torch.cuda.is_initialized()
assert not [name for name in sys.modules if name.startswith("fastconv.kernels")]
"""
    result = run(code + USE)
    assert result.stdout == "True\n", result.stderr


def test_works_without_the_library(tmp_path):
    copy_without_library(tmp_path)
    result = run("import fastconv; print(fastconv.__file__)" + USE, PYTHONPATH=str(tmp_path))
    assert result.stdout.splitlines() == [str(tmp_path / "fastconv/__init__.py"), "True"]
    assert result.stderr.count("RuntimeWarning") == 1
    assert "libfastconv_cpu.so does not exist" in result.stderr


def test_works_with_a_broken_library(tmp_path):
    (copy_without_library(tmp_path) / "libfastconv_cpu.so").write_text("not a library" * 100)
    result = run(USE, PYTHONPATH=str(tmp_path))
    assert result.stdout == "True\n", result.stderr
    assert result.stderr.count("RuntimeWarning") == 1
    assert "invalid ELF header" in result.stderr


def test_kernels_are_a_package():
    assert importlib.util.find_spec("fastconv.kernels") is not None


def test_public_names():
    ops = {
        "pointwise_conv2d",
        "depthwise_conv2d",
        "depthwise_separable_conv2d",
        "inverted_residual",
        "squeeze_excite",
        "conv2d_bias_act",
        "pointwise_conv2d_pool",
        "linear",
    }
    others = {"cost", "nn", "models", "use_backend", "BackendError", "info", "__version__"}
    models = {"swap", "restore", "fold", "graphed", "report", "summary", "predict"}
    assert set(fastconv.__all__) == ops | models | others
    for name in set(fastconv.__all__) - {"__version__"}:
        assert getattr(fastconv, name).__doc__, f"fastconv.{name} needs a docstring"


def test_versions_agree():
    assert fastconv.__version__ == metadata.version("fastconv")
    if _library._C is not None:
        assert _library._C.build_info()["version"] == fastconv.__version__


def test_type_stub_names_what_the_extension_has():
    extension = pytest.importorskip("fastconv._C")
    stub = re.findall(r"^(?:def|class) (\w+)", (PACKAGE / "_C.pyi").read_text(), re.MULTILINE)
    assert sorted(stub) == [name for name in dir(extension) if not name.startswith("_")]


@pytest.mark.skipif(not _library.is_loaded(), reason="no compiled library")
def test_library_has_no_python_symbols():
    """One library serves every Python version."""
    assert b"PyObject" not in _library.library_path().read_bytes()


@pytest.mark.skipif(_library._C is None, reason="no fastconv._C")
def test_isa_override():
    levels = _library._C.isa_levels()
    assert levels[0] == "scalar"
    others = sorted({"foo", "AVX2", "avx512", "neon"} - set(levels))
    # One process for each, forked where PyTorch is there already: importing that takes seconds.
    code = f"""
import os, torch
for name in {[*levels, *others]}:
    print(name, end=" ", flush=True)
    if os.fork() == 0:
        os.environ["FASTCONV_ISA"] = name
        try:
            import fastconv
            print(fastconv.info()["isa"], flush=True)
            exec({USE!r})
        except RuntimeError as error:
            print("RuntimeError:", error)
        os.sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0
"""
    result = run(code)
    lines = iter(result.stdout.splitlines())
    for level in levels:
        assert (next(lines), next(lines)) == (f"{level} {level}", "True"), result.stderr
    for name in others:
        message = f"FASTCONV_ISA must be one of {', '.join(levels)} on this CPU, got {name}"
        assert next(lines) == f"{name} RuntimeError: {message}"


def test_info_command(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert text.strip() == str(fastconv.info())
    assert cli.main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fastconv"] == fastconv.__version__
    assert report["torch"].startswith(torch.__version__)
    for name in ("library", "python", "os", "cpu", "isa", "torch threads", "triton", "onnxruntime"):
        assert report[name]
        assert name in text


def test_command_is_a_module_too():
    result = subprocess.run([sys.executable, "-m", "fastconv", "info"], capture_output=True)
    assert result.returncode == 0
    assert b"fastconv" in result.stdout


def test_command_without_arguments_explains_itself(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "usage: fastconv" in capsys.readouterr().err


@pytest.fixture
def backend(monkeypatch):
    pytest.importorskip("setuptools")
    monkeypatch.syspath_prepend(str(ROOT / "build_backend"))
    for name in ("CUDA_HOME", "CUDA_PATH", "FORCE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    return importlib.import_module("fastconv_build")


def fake_torch(folder: Path, version: str, cuda: str | None = None) -> str:
    (folder / "include/torch/csrc/stable").mkdir(parents=True)
    (folder / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    return str(folder / "__init__.py")


def test_backend_finds_torch(backend):
    found = backend.find_torch()
    assert found.directory == Path(torch.__file__).parent
    assert found.version == torch.__version__
    assert found.cuda == (torch.version.cuda or "")
    assert backend.TORCH_REQUIREMENT not in backend.get_requires_for_build_wheel()
    assert backend.TORCH_REQUIREMENT not in backend.get_requires_for_build_editable()


def test_backend_asks_the_interpreter_outside(backend, monkeypatch):
    """As in pip's isolated environment, where torch cannot be imported."""
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert backend.find_torch().directory == Path(torch.__file__).parent


@pytest.mark.parametrize("version", [None, "2.9.1", "1.13.0+cu117"])
def test_backend_requires_torch_if_there_is_none(backend, monkeypatch, tmp_path, version):
    origin = fake_torch(tmp_path, version) if version else None
    monkeypatch.setattr(backend, "_origins", lambda: iter([origin]))
    assert backend.find_torch() is None
    assert backend.TORCH_REQUIREMENT in backend.get_requires_for_build_wheel()
    with pytest.raises(SystemExit, match=r"needs torch>=2\.10"):
        backend.check_build_tools()


def test_backend_skips_an_old_torch(backend, monkeypatch, tmp_path):
    old = fake_torch(tmp_path / "old", "2.9.0")
    new = fake_torch(tmp_path / "new", "2.10.0a0+git1234", "12.8")
    monkeypatch.setattr(backend, "_origins", lambda: iter([None, "", old, new]))
    assert backend.find_torch() == backend.Torch(tmp_path / "new", "2.10.0a0+git1234", "12.8")


def test_backend_names_a_missing_compiler(backend, monkeypatch):
    monkeypatch.setattr(backend.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler found; install"):
        backend.check_build_tools()


@pytest.mark.parametrize(
    ("force", "torch_cuda", "nvcc", "built"),
    [
        ("", "", "13.0", False),
        ("", "13.2", "13.0", True),
        ("", "12.8", "13.0", False),
        ("", "13.0", None, False),
        ("0", "13.0", "13.0", False),
        ("1", "", "13.0", True),
        ("1", "12.8", "13.0", True),
    ],
)
def test_backend_decides_on_cuda(backend, monkeypatch, tmp_path, force, torch_cuda, nvcc, built):
    monkeypatch.setenv("FORCE_CUDA", force)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    compiler = tmp_path / "bin/nvcc"
    if nvcc:
        compiler.parent.mkdir()
        compiler.write_text(f"#!/bin/sh\necho 'Cuda tools, release {nvcc}, V{nvcc}.1'\n")
        compiler.chmod(0o755)
    chosen = backend.choose_nvcc(backend.Torch(tmp_path, "2.13.0", torch_cuda))
    assert chosen == (str(compiler) if built else None)


def test_backend_names_a_missing_nvcc(backend, monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match="have no nvcc"):
        backend.choose_nvcc(backend.Torch(tmp_path, "2.13.0", ""))


def test_cuda_half_is_configured(backend, tmp_path):
    """Beside any torch, CPU builds included; `make cuda` builds it."""
    nvcc, cmake = backend.find_nvcc(), shutil.which("cmake")
    if nvcc is None or cmake is None:
        pytest.skip("needs nvcc and cmake")
    configure = [cmake, "-S", ROOT, "-B", tmp_path, "-DFASTCONV_CUDA=ON"]
    configure += ["-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    configure += ["-DFASTCONV_CUDA_ARCH_LIST=8.0;9.0+PTX"]
    configure += [f"-DFASTCONV_TORCH_DIR={Path(torch.__file__).parent}"]
    subprocess.run(configure, check=True)
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    kernels = [entry["command"] for entry in commands if entry["file"].endswith(".cu")]
    assert kernels
    for command in kernels:
        assert re.search(r"CUDA \d+\.\d+\.\d+ for 80-real 90\b", command)
        assert "arch=compute_90,code=[compute_90,sm_90]" in command
        assert "arch=compute_80,code=[sm_80]" in command
