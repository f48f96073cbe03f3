"""Measuring on a GPU, as far as that runs without one: order, failures, processes that die."""

import json
import os
import time

import pytest
import torch
from torch import nn

from .test_benchmark_results import ROOT, benchmark_module

layers, networks, plan, timing, worker = (
    benchmark_module(f"gpu.{name}") for name in ("layers", "networks", "plan", "timing", "worker")
)
main = benchmark_module("gpu.__main__")
training = benchmark_module("gpu.training")
origin = benchmark_module("gpu.origin")
Contender, Job = timing.Contender, plan.Job


class Graph:
    """A graph that is not recorded: calls when it is replayed."""

    def __init__(self, call, count):
        self.replay = lambda: [call() for _ in range(count)]


def seconds(block):
    run, count = block
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / count


@pytest.fixture
def no_gpu(monkeypatch):
    """Everything runs on the CPU, with its clock."""
    monkeypatch.setattr(timing, "DEVICE", "cpu")
    monkeypatch.setattr(timing, "_seconds", seconds)
    monkeypatch.setattr(timing, "_recorded", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(timing, "_warm", lambda call, captured: call())
    monkeypatch.setattr(timing, "_peak_bytes", lambda call: call().nbytes)


def test_the_most_important_comes_first():
    found = plan.jobs([("mobilenet_v2", "one"), ("efficientnet_b0", "two")])
    steps = 2 * 2 * 2  # two networks, in two dtypes, without torch.compile and with it
    assert found[0].id == "ceilings"
    assert [job.id for job in found[1:5]] == [f"{n}, batch 256, bfloat16" for n in plan.NETWORKS]
    assert [job.batch for job in found[5:9]] == [1] * 4
    assert [job.id for job in found[9:11]] == [f"{n}, batch 128, bfloat16" for n in plan.TRAINED]
    assert [job.id for job in found[11:13]] == [f"{n}, batch 256, bfloat16" for n in ("one", "two")]
    assert len(set(found)) == len(found) == 1 + steps + 2 * (4 * 3 * 3 + 2 * 3 * 2)
    place = {(job.id, job.compiled): index for index, job in enumerate(found)}
    assert all(place[id, False] < place[id, True] for id, compiled in place if compiled)
    assert all(job.limit > 200 for job in found if job.compiled)
    assert {job.part for job in plan.jobs([], ["networks"])} == {"networks"}


def test_rows_take_the_place_of_those_without_torch_compile():
    results = {}
    job = Job("networks", "mobilenet_v1", "", 1, "float32")
    later = Job("networks", "mobilenet_v1", "", 1, "float32", compiled=True)
    layer = Job("layers", "mobilenet_v1", "a layer", 1, "float32")
    every = [Job("ceilings"), job, later, layer]
    assert plan.pending(every, results) == every
    plan.put(results, job, {"x": 1})
    plan.put(results, layer, {"x": 2})
    plan.put(results, Job("ceilings"), {"copy": {}})
    assert plan.pending(every, results) == [later]
    plan.put(results, later, {"x": 3})
    assert plan.pending(every, results) == []
    (row,) = results["networks"]
    assert (row["id"], row["x"], row["compiled"]) == ("mobilenet_v1, batch 1, float32", 3, True)
    assert results["layers"][0]["layer"] == "a layer"


def test_budget():
    assert 9 < plan.Budget(10).left() <= 10
    assert plan.Budget(-1).left() < 0


def test_compare(no_gpu):
    truth = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 8.0]], dtype=torch.float64)
    right = timing.repeated(truth.float(), 7)
    wrong, begun = right.clone(), []
    wrong[6, 0] = 1.5  # in the last image alone

    def fails():
        raise RuntimeError("no kernel\nsecond line")

    outputs = {"right": right, "wrong": wrong, "nan": right * torch.nan, "short": right[:, :1]}
    contenders = [Contender(n, lambda o=o: lambda: o, n == "right") for n, o in outputs.items()]
    contenders.append(Contender("fails", fails))
    found = timing.compare(contenders, truth, 1e-3, rounds=4, target=1e-5, begin=begun.append)
    assert found.errors.keys() == {"wrong", "nan", "short", "fails"}, found.errors
    assert found.seconds.keys() == found.quartiles.keys() == found.peak_bytes.keys() == {"right"}
    assert found.deviations == {"right": 0.0}
    assert begun == [*outputs, "fails", ""]
    assert found.errors["fails"] == "RuntimeError: no kernel"
    assert "wrong by 0.062 of" in found.errors["wrong"]
    assert "wrong by nan of" in found.errors["nan"]
    assert "has shape [7, 1]" in found.errors["short"]
    low, high = found.quartiles["right"]
    assert 0 < low <= found.seconds["right"] <= high


def test_everybody_has_every_round_and_the_order_changes(no_gpu, monkeypatch):
    order = []
    monkeypatch.setattr(timing, "_seconds", lambda block: order.append(block[0]()) or 1e-3)
    ones = torch.ones(1)
    contenders = [Contender(n, lambda n=n: lambda: ones * n, False) for n in (1, 2, 3)]
    timing.compare(contenders, None, 0, rounds=3, flush=torch.ones(4))
    assert [int(value) for value in order] == [1, 2, 3, 2, 3, 1, 3, 1, 2]


def test_ceilings(no_gpu, monkeypatch):
    ceilings = benchmark_module("gpu.ceilings")
    monkeypatch.setattr(ceilings, "MEGABYTES", (1, 2, 3))
    monkeypatch.setattr(ceilings, "SIZES", (16, 32))
    found = worker.measure(Job("ceilings"), print)
    assert found["copy"].keys() == {"1 MB", "2 MB", "3 MB"}
    assert found["copy_bytes_per_second"] == max(found["copy"]["2 MB"], found["copy"]["3 MB"])
    assert found["matmul_flops_per_second"] == max(found["matmul"].values())
    assert found["launch_seconds"] > 0
    assert found["python_launch_seconds"] > 0


def test_a_layer(no_gpu):
    name = "InvertedResidual 7x7-160-960-960-160-k3s1-relu6"
    row = worker.measure(Job("layers", "mobilenet_v2", name, 4, "float32"), print)
    assert row["seconds"].keys() == {"fastconv", "eager channels_last", "eager"}
    assert row["cold_seconds"].keys() == {"fastconv", "eager channels_last"}
    assert all("cannot run this call" in row["errors"][f"fastconv {b}"] for b in ("triton", "cuda"))
    assert all(deviation < 1e-4 for deviation in row["deviations"].values())
    assert row["bytes"] == 4 * (4 * 2 * 160 * 49 + 960 * (160 + 9 + 160) + 960 + 960 + 160)
    assert row["flops"] == 4 * 2 * 49 * 960 * (160 + 9 + 160)


def test_a_network(no_gpu, monkeypatch):
    monkeypatch.setattr(networks, "SIZE", 32)
    job = Job("networks", "mobilenet_v1", "", 4, "float32", without=(("eager, graph", "broke"),))
    row = worker.measure(job, print)
    assert row["images_per_second"].keys() == {"fastconv", "fastconv, graph", "eager"}
    assert row["errors"]["eager, graph"] == "broke"
    assert "graphed: example must be on a GPU" in row["errors"]["fastconv.graphed"]
    json.dumps(row)


# In maps of one pixel, one value beyond a relu's corner is 5 % of the gradients; bfloat16 changes
# them by more than that at either size.
@pytest.mark.parametrize(("dtype", "size"), [("float32", 64), ("bfloat16", 32)])
def test_a_step_of_training(no_gpu, monkeypatch, dtype, size):
    monkeypatch.setattr(training, "SIZE", size)
    job = Job("training", "mobilenet_v2", "", 4, dtype, without=(("eager, graph", "broke"),))
    row = worker.measure(job, print)
    assert row["errors"] == {"eager, graph": "broke"}
    assert row["images_per_second"].keys() == {"fastconv", "fastconv, graph", "eager"}
    assert row["peak_bytes"].keys() == row["seconds"].keys()
    assert row["gradient_errors"].keys() == {"fastconv", "eager"}
    assert all(error > 0 for error in row["gradient_errors"].values())  # float64 is the truth
    json.dumps(row)


def test_wrong_gradients_have_no_time(no_gpu, monkeypatch):
    monkeypatch.setattr(training, "SIZE", 32)
    wrong = {"fastconv": 0.3, "eager": 0.1}
    monkeypatch.setattr(training, "gradient_errors", lambda *_: wrong)
    row = worker.measure(Job("training", "mobilenet_v2", "", 2, "float32"), print)
    assert "gradients differ from PyTorch's" in row["errors"]["fastconv"]
    assert row["images_per_second"].keys() == {"eager", "eager, graph"}


def test_nothing_is_dropped_where_gradients_are_compared():
    model = training._without_drops(training._network("efficientnet_b0"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))


def test_rivals_are_measured_where_there_is_nothing_of_ours(no_gpu, monkeypatch):
    monkeypatch.setattr(layers, "missing", lambda: "not built")
    name = "Conv2dNormAct 7x7-160-960-relu6"
    row = layers.measure_layer(Job("layers", "mobilenet_v2", name, 1, "float32"), print)
    assert row["seconds"].keys() == {"eager channels_last", "eager"}
    assert row["errors"] == {"fastconv": "not built"}


def test_all_layers():
    found = dict(reversed(pair) for pair in layers.all_layers())
    assert found["Conv2dNormAct 112x112-32-32-k3s1-relu6"] == "mobilenet_v1"
    assert found["Conv2dNormAct 7x7-1024-1024-relu6"] == "mobilenet_v1"
    assert found["InvertedResidual 7x7-160-960-960-160-k3s1-relu6"] == "mobilenet_v2"
    assert any(name.startswith("SqueezeExcite 7x7-1152-48") for name in found)
    shape = layers.layers("mobilenet_v1")[-1].shape
    sizes = {layer.name: layer.map_values for n in plan.NETWORKS for layer in layers.layers(n)}
    moved = [sizes[name] for name in found]
    assert len(shape) == 3
    assert moved == sorted(moved, reverse=True)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_folded_rivals_compute_the_same(layout):
    model = layers.random_network("mobilenet_v3_large")
    plain, folded = (layers.plain_copy(model, layout, fold) for fold in (False, True))
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (plain, folded)]
    assert norms[0] > 0
    assert norms[1] == 0
    input = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(input), plain(input), rtol=1e-3, atol=1e-3)


def rehearse(job, begin):
    """Stands for measuring; what happens, the job's name says."""
    for name in ("first", "second"):
        if name in dict(job.without):
            continue
        begin(name)
        if job.network == name:
            os._exit(7)
        if job.network == "hangs" and name == "second":
            time.sleep(60)
    if job.network == "raises":
        raise ValueError("no memory")
    if job.network == "breaks" and not job.without:
        raise timing.BrokenError("second", "RuntimeError: an illegal memory access")
    return {"process": os.getpid(), "errors": dict(job.without)}


@pytest.fixture(scope="module")
def watched():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        with worker.Watched(rehearse) as process:
            yield process


def test_a_process_that_dies_is_replaced(watched):
    first, _ = watched.run(Job("layers", "fine"), 60)
    assert first["errors"] == {}
    assert watched.run(Job("layers", "fine"), 60)[0] == first
    row, _ = watched.run(Job("layers", "second"), 60)
    assert row["errors"] == {"second": "ended its process: exit code 7"}
    assert row["process"] != first["process"]
    again, _ = watched.run(Job("layers", "breaks"), 60)
    assert again["errors"] == {"second": "RuntimeError: an illegal memory access"}
    assert again["process"] not in (row["process"], first["process"])
    assert watched.run(Job("layers", "raises"), 60) == (None, "ValueError: no memory")
    assert watched.run(Job("layers", "fine"), 60)[0]["process"] == again["process"]


def test_a_process_that_hangs_is_ended(watched, monkeypatch):
    monkeypatch.setitem(plan._SECONDS, "layers", 2.0)
    row, _ = watched.run(Job("layers", "hangs"), 60)
    assert row["errors"] == {"second": "did not end within 2 s"}
    monkeypatch.setitem(plan._SECONDS, "layers", 60.0)
    assert watched.run(Job("layers", "hangs"), 1) == (None, worker.OVER)


def test_run_writes_every_row(tmp_path):
    path, results = tmp_path / "gpu.json", {}
    answers = iter([({"errors": {"eager": "e"}}, ""), (None, "no memory"), (None, worker.OVER)])
    waiting = [Job("layers", "n", f"l{i}", 1, "float32") for i in range(4)]
    main.run(waiting, results, plan.Budget(100), lambda job, left: next(answers), path)
    written = json.loads(path.read_text())
    assert [row["layer"] for row in written["layers"]] == ["l0"]
    assert written["failed"] == {"l1, batch 1, float32": "no memory"}
    assert len(plan.pending(waiting, written)) == 3
    main.run(waiting, results, plan.Budget(0), None, path)


def test_results_go_on_only_of_the_same_things(tmp_path, monkeypatch):
    path = tmp_path / "gpu.json"
    now = {"gpu": "NVIDIA Imaginary", "versions": {"torch": "1"}, "sources_hash": "a", "commit": ""}
    monkeypatch.setattr(origin, "of_this_gpu", lambda: dict(now))
    assert main.begin(path, False) == now
    path.write_text(json.dumps(now | {"commit": "old", "layers": [1]}))
    assert main.begin(path, False) == now | {"layers": [1]}
    assert main.begin(path, True) == now
    for name, other in (("sources_hash", "b"), ("versions", {"torch": "2"}), ("gpu", "another")):
        path.write_text(json.dumps(now | {name: other, "layers": [1]}))
        assert main.begin(path, False) == now


def test_origin_without_a_gpu(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert list(origin.readings()) == ["nvidia-smi"]
    assert origin.versions()["torch"] == torch.__version__
