"""A model as one CUDA graph."""

import copy

import pytest
import torch
from torch import nn

import fastconv
from fastconv.gpu.graphs import Graphed

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="records a CUDA graph: no GPU")


def test_rejects():
    model, example = nn.Conv2d(3, 4, 1).eval(), torch.zeros(1, 3, 5, 5)
    with pytest.raises(TypeError, match=r"^graphed: model must be a torch.nn.Module, got int"):
        fastconv.graphed(3, example)
    with pytest.raises(TypeError, match=r"^graphed: example must be a Tensor, got list"):
        fastconv.graphed(model, [example])
    with pytest.raises(ValueError, match=r"^graphed: example must be on a GPU, got one on cpu"):
        fastconv.graphed(model, example)


def test_other_calls_run_the_model():
    model = nn.Conv2d(3, 4, 1).eval()
    graphed = Graphed(model, torch.zeros(1, 3, 5, 5))
    other = torch.randn(2, 3, 5, 5)
    assert torch.equal(graphed(other), model(other))
    recorded = torch.randn(1, 3, 5, 5)
    graphed(recorded).sum().backward()  # gradients are wanted
    assert model.weight.grad is not None
    with torch.no_grad():
        graphed.train()
        assert torch.equal(graphed(recorded), model(recorded))
        graphed.eval()
        assert graphed._fits(recorded)
        assert not graphed._fits(recorded.double())


def test_changes_are_noticed():
    from fastconv.gpu.graphs import _watch

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()

    def change_a_number():
        with torch.no_grad():
            model[0].weight[0, 0] = 1

    def put_another_module():
        model[1] = nn.BatchNorm2d(4).eval()

    def hook():
        model[0].register_forward_hook(lambda *_: None)

    for change in (
        change_a_number,
        lambda: model[1].running_mean.add_(1),
        lambda: setattr(model[0], "bias", None),
        put_another_module,
        lambda: model[1].train(),
        hook,
    ):
        watch = _watch(model)
        assert watch.holds()
        change()
        assert not watch.holds()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_compute_what_the_model_does(dtype):
    torch.manual_seed(0)
    model = fastconv.models.mobilenet_v2(num_classes=10).eval().cuda().to(dtype)
    example = torch.randn(1, 3, 96, 96, device="cuda", dtype=dtype)
    graphed = fastconv.graphed(model, example)
    with torch.inference_mode():
        for _ in range(3):
            input = torch.randn_like(example)
            assert torch.equal(graphed(input), model(input))
        next(model.parameters()).mul_(2)
        assert torch.equal(graphed(example), model(example))
        twin = copy.deepcopy(graphed)
        assert torch.equal(twin(example), graphed(example))
