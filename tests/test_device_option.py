"""What pytest's --device changes, as far as that shows without a GPU."""

import pytest
import torch

import fastconv

from . import cases, conftest
from .assertions import _moved
from .cases import CASES, tensors_of


def test_every_test_of_an_op_runs_on_a_gpu():
    for op in fastconv.ops.__all__:
        assert conftest.off_device(f"test_{op}", "test_forward", "cuda") is None
        assert conftest.off_device(f"test_{op}", "test_forward", "cpu") is None
    assert "GPU" in conftest.off_device("test_native", "test_forward", "cuda")
    assert "GPU" in conftest.off_device("test_depthwise_conv2d", min(conftest.OF_THE_CPU), "cuda")
    assert "--device cuda" in conftest.off_device("test_on_gpu", "test_tf32", "cpu")


def test_named_files_and_tests_exist(request):
    folder = request.config.rootpath / "tests"
    files = {path.stem: path.read_text() for path in folder.glob("test_*.py")}
    assert files.keys() >= conftest.ON_CUDA >= conftest.ONLY_ON_CUDA
    for test in conftest.OF_THE_CPU:
        assert any(f"def {test}(" in files[name] for name in conftest.ON_CUDA)


def test_only_a_refusal_is_skipped():
    refusal = fastconv.BackendError("op: backend 'cuda' cannot run this call: no kernel")
    assert conftest.refusal(refusal) == str(refusal)
    outer = RuntimeError("while compiling")
    outer.__cause__ = refusal
    assert conftest.refusal(outer) == str(refusal)
    wrong = AssertionError("wrong")
    wrong.__context__ = refusal  # a test that expected another message
    assert conftest.refusal(wrong) is None


@pytest.mark.parametrize("op", CASES)
def test_arguments_are_on_the_device(monkeypatch, op):
    case = CASES[op][0]
    monkeypatch.setattr(cases, "DEVICE", "meta")
    layouts = ("contiguous", "channels_last", "sliced", "expanded")
    for layout in layouts if len(case.shapes["input"]) == 4 else layouts[:1]:
        arguments = case.arguments(torch.bfloat16, layout)
        assert {t.device.type for t in tensors_of(arguments).values()} == {"meta"}
        assert {t.dtype for t in tensors_of(arguments).values()} == {torch.bfloat16}
    exact = tensors_of(case.arguments(torch.float64, device="cpu"))
    assert {t.device.type for t in exact.values()} == {"cpu"}
    moved = tensors_of(_moved(case.arguments(device="cpu"), "meta", torch.float64))
    assert {(t.device.type, t.dtype) for t in moved.values()} == {("meta", torch.float64)}
