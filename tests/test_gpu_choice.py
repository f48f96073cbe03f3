"""Which kernel runs a call on a GPU: cost model, measured choice, its file. No GPU is needed."""

import json
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fastconv
from fastconv.gpu import choice, cost, store
from fastconv.gpu.choice import Candidate
from fastconv.gpu.device import H200, from_properties


class Call(NamedTuple):
    input: Tensor


CALL = Call(torch.zeros(1))


def candidate(backend: str, seconds: float, detail: str = "") -> Candidate:
    return Candidate(backend, detail, seconds, lambda call: f"{backend} {detail}".strip())


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Lets candidates be measured by made-up times, and the results be kept in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "may_measure", lambda input: True)
    times: dict[str, float] = {}
    calls = []

    def measure(functions: Any, call: Any) -> list[float]:
        calls.append(len(functions))
        return [times.get(function(call), 1.0) for function in functions]

    monkeypatch.setattr(choice, "measure", measure)
    choice.forget()
    yield SimpleNamespace(times=times, calls=calls)
    choice.forget()


def pick(make, key=(1,), op="an_op") -> choice.Choice:
    return choice.choose(op, H200, key, make, CALL)


def make() -> list[Candidate]:
    return [
        candidate("aten", 2.0),
        candidate("triton", 1.0, "a"),
        candidate("triton", 1.1, "b"),
        candidate("cuda", 1.2),
        candidate("cuda", 9.0, "hopeless"),
    ]


def test_the_fastest_is_chosen(measured):
    measured.times.update({"triton b": 0.25, "aten": 0.5})
    chosen = pick(make)
    assert chosen.name == "triton b"
    assert chosen.run(CALL) == "triton b"
    assert "triton b 250000.0 us, aten 500000.0 us" in chosen.reason
    assert measured.calls == [4]  # without the hopeless one
    assert pick(make) is chosen
    assert measured.calls == [4]


def test_pytorch_is_measured_however_slow_it_should_be(measured):
    measured.times["aten"] = 0.1
    assert pick(lambda: [candidate("aten", 50.0), candidate("cuda", 1.0)]).name == "aten"


def test_failing_candidates_are_not_chosen(measured):
    measured.times["triton a"] = float("inf")
    chosen = pick(make)
    assert chosen.name != "triton a"
    assert "failed: triton a" in chosen.reason


def test_results_outlive_the_process(measured, tmp_path):
    measured.times["cuda"] = 0.1
    assert pick(make).name == "cuda"
    (file,) = tmp_path.rglob("*.json")
    assert file.parent.name == "fastconv"
    choice.forget()
    measured.times["cuda"] = 5.0
    assert pick(make).name == "cuda"
    assert measured.calls == [4]
    assert pick(make, key=(2,)).name != "cuda"
    # What has become unknown is measured again.
    content = {key: ["triton z", "gone"] for key in json.loads(file.read_text())}
    file.write_text(json.dumps(content))
    choice.forget()
    assert pick(make).name != "triton z"
    assert measured.calls == [4, 4, 4]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": ["b"]}'])
def test_damaged_files_are_ignored(measured, tmp_path, content):
    file = store.path(H200)
    assert tmp_path in file.parents
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert pick(make).name == "triton a"
    assert len(json.loads(file.read_text())) == 1


def test_other_processes_results_are_kept(measured, tmp_path):
    pick(make, key=(1,))
    file = store.path(H200)
    other = json.loads(file.read_text()) | {"theirs": ["aten", "measured"]}
    file.write_text(json.dumps(other))
    pick(make, key=(2,))
    assert "theirs" in json.loads(file.read_text())


def test_a_cache_that_cannot_be_written_to_is_no_error(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert pick(make).name == "triton a"


def test_without_measuring_the_cost_model_decides_for_now(measured, monkeypatch):
    monkeypatch.setattr(choice, "may_measure", lambda input: False)
    chosen = pick(make)
    assert chosen.name == "triton a"
    assert chosen.reason.startswith("expected: triton a")
    assert measured.calls == []
    monkeypatch.setattr(choice, "may_measure", lambda input: True)
    measured.times["cuda"] = 0.1
    assert pick(make).name == "cuda"


def test_nothing_is_measured_on_a_cpu():
    assert not choice.may_measure(CALL.input)


def test_a_backend_can_be_forced(measured):
    with fastconv.use_backend("cuda"):
        assert pick(make).name == "cuda"
        mixed = candidate("mixed", 3.0)
        assert pick(lambda: [candidate("aten", 1.0), mixed], key=(3,)).name == "mixed"
        message = "an_op: backend 'cuda' cannot run this call: it has no kernel"
        with pytest.raises(fastconv.BackendError, match=message):
            pick(lambda: [candidate("aten", 1.0)], key=(4,))
    measured.times["triton b"] = 0.1
    assert pick(make).name == "triton b"


def test_a_modules_wish_holds_where_none_is_active(measured):
    from fastconv import backend

    with backend.wishing("cuda"):
        assert pick(make).name == "cuda"
        with fastconv.use_backend("triton"):
            assert pick(make).name == "triton a"
    assert backend.wish() == "auto"


def test_bytes_of_a_block():
    # MobileNetV2's 24 -> 144 -> 24 at 56 x 56, one image, float16.
    block = cost.Block(1, 24, 144, 24, 56, 56, 56, 56, 9, True, 2)
    pixels = 56 * 56
    expand = cost.pointwise(block.in_pixels, 24, 144, 2)
    assert expand.bytes == 2 * (pixels * (24 + 144) + 24 * 144)
    assert expand.tensor_flops == 2 * pixels * 24 * 144
    depthwise = cost.depthwise(block)
    assert depthwise.bytes == 2 * 2 * pixels * 144
    assert depthwise.float_flops == 2 * pixels * 144 * 9
    fused = cost.fused(block, halo=1.0)
    assert fused.bytes == 2 * (pixels * 48 + 144 * (24 + 24 + 9))
    parts = expand + depthwise + cost.pointwise(block.out_pixels, 144, 24, 2)
    assert parts.launches == 3
    assert cost.seconds(fused, H200, 2) < cost.seconds(parts, H200, 2)


def test_seconds_are_a_roofline():
    launch = cost.seconds(cost.Work(0), H200, 2)
    assert launch == cost.LAUNCH
    large = cost.seconds(cost.Work(48e9), H200, 2)
    assert 0.010 < large < 0.012  # 48 GB at 4.8 TB/s is 10 ms at best
    assert cost.seconds(cost.Work(48e9, tensor_flops=989e12), H200, 2) > 1
    assert cost.seconds(cost.Work(0, float_flops=67e12), H200, 2) > 1


def test_what_the_driver_says_of_a_gpu():
    properties = SimpleNamespace(
        name="NVIDIA H200",
        major=9,
        minor=0,
        multi_processor_count=132,
        clock_rate=1_980_000,
        memory_clock_rate=3_201_000,
        memory_bus_width=6144,
        L2_cache_size=60 << 20,
        shared_memory_per_block_optin=232448,
    )
    gpu = from_properties(properties)
    assert gpu.bandwidth == pytest.approx(4.9e12, rel=0.02)
    assert gpu.tensor_flops == pytest.approx(1.07e15, rel=0.02)
    assert gpu.has_triton
    assert gpu.has_bfloat16
    old = from_properties(
        SimpleNamespace(name="Tesla T4", major=7, minor=5, multi_processor_count=40)
    )
    assert not old.has_triton
    assert not old.has_bfloat16
    assert 1e11 < old.bandwidth < 5e12
