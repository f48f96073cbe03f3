"""What runs before measuring: small calls for the sanitizers, and Triton's compilations."""

import pickle

import pytest
import torch

import fastconv
from fastconv.gpu.choice import Candidate

from .test_benchmark_results import benchmark_module

layers, prepare, small = (benchmark_module(f"gpu.{n}") for n in ("layers", "prepare", "small"))


def test_small_calls_of_every_op():
    every = small.calls((2, 17, 9, 7), torch.float32, "cpu")
    before = small.choice.plausible
    with fastconv.use_backend("reference"):
        shapes = {name: list(call().shape) for name, call in every.items()}
    assert shapes["block, stride"] == shapes["1x1, stride"] == [2, 17, 5, 4]
    assert shapes["1x1, mean"] == [2, 51]
    assert small.run(("cuda", "reference"), "cpu") == {"cuda": 0, "reference": 9 * 3 * len(every)}
    assert small.choice.plausible is before


def test_small_steps_of_training():
    every = small.training((2, 17, 9, 7), torch.float32, "cpu")
    found = {name: step() for name, step in every.items()}
    assert all(grad.shape == (2, 17, 9, 7) for grad in found.values())
    assert all(grad.isfinite().all() for grad in found.values())
    assert small.run(("auto",), "cpu", small.training) == {"auto": 3 * 9 * len(every)}


def test_every_candidate_is_compiled_ahead(monkeypatch):
    seen = []

    def candidates(op, wish, made):
        return [Candidate(name, "", 0.0, None) for name in ("cuda", "triton", "aten", "mixed")]

    def attempt(layer, batch, dtype):
        (found,) = prepare.choice.plausible("op", "auto", [])
        seen.append((layer, batch, found.backend))
        return found.backend == "triton"

    monkeypatch.setattr(prepare.choice, "plausible", candidates)
    monkeypatch.setattr(prepare, "_attempt", attempt)
    settings = [(2, "float32", False), (1, "float32", False)]
    assert prepare.prepared(["a", "b"], settings, 60) == 4
    assert [s for s in seen if s[:2] == ("a", 2)] == [
        ("a", 2, backend) for backend in ("triton", "mixed")
    ]
    assert {s[:2] for s in seen} == {("a", 2), ("b", 2), ("a", 1), ("b", 1)}
    assert prepare.choice.plausible is candidates
    assert prepare.prepared(["a"], settings, -1) == 0


def test_layers_are_trained_ahead(monkeypatch):
    monkeypatch.setattr(prepare.timing, "DEVICE", "cpu")
    layer = layers.layers("mobilenet_v2")[3]
    calls = []
    monkeypatch.setattr(prepare, "_attempt", lambda *_: pytest.fail("it is to be trained"))
    train = prepare._attempt_to_train
    monkeypatch.setattr(
        prepare, "_attempt_to_train", lambda *args: calls.append(train(*args)) or calls[-1]
    )
    settings = [(2, "float32", True), (2, "bfloat16", True)]
    assert prepare.prepared([layer], settings, 60, [layer.name]) == 2
    assert prepare.prepared([layer], settings, 60, ["another"]) == 0
    assert calls == [True, True]


def test_layers_can_be_sent_to_other_processes(monkeypatch):
    monkeypatch.setattr(prepare.timing, "DEVICE", "cpu")
    layer = layers.layers("mobilenet_v3_large")[5]
    sent = pickle.loads(pickle.dumps(layer))
    assert prepare.prepared([sent], [(2, "float32", False)], 60) == 1  # on a CPU there is no choice
