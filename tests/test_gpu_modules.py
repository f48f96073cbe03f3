"""Layers and networks on a GPU, without one: tensors say that they are on it, and the native ops
compute. What is tested is that folded weights reach the ops, in the right dtype, with nothing
packed, and that a change of a weight does."""

import pytest
import torch
from torch import Tensor, nn

import fastconv
from fastconv import backend
from fastconv.gpu import weights
from fastconv.nn import _parts, _train

from .test_nn import Calls
from .train_cases import assert_trains_as_accurately, prepared

NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")


@pytest.fixture
def pretended_gpu(monkeypatch, native):
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setattr(Tensor, "is_cpu", property(lambda tensor: False))
    monkeypatch.setattr(backend, "has_bfloat16", True)  # whatever this CPU has


def randomized(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, pretended_gpu):
    torch.manual_seed(0)
    model = randomized(fastconv.models.create_model(name, num_classes=10))
    input = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model._plain_forward(input)
        output = model(input)
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)
        parameter = next(p for p in model.parameters() if p.dim() == 4)
        parameter.mul_(2)
        changed = model(input)
        torch.testing.assert_close(changed, model._plain_forward(input), rtol=1e-3, atol=1e-4)
    assert not torch.equal(changed, output)
    native = model._current_fused("network", None).native
    assert native is not None
    assert native.packed is None
    assert weights._records.get(parameter) is not None


@pytest.fixture
def calls(monkeypatch):
    """What 1x1 convolutions in modules are called with, and the backend that is wished for."""
    seen = []

    def record(x, weight, bias, *rest):
        seen.append((x.dtype, weight.dtype, bias.dtype, backend.wish()))
        return x.new_zeros(x.shape[0], weight.shape[0], *x.shape[2:])

    class Recorder:
        @staticmethod
        def inference(pack):
            return record

    monkeypatch.setattr(_parts, "POINTWISE", Recorder)
    return seen


def test_folded_weights_have_the_dtype_of_the_maps(pretended_gpu, calls):
    layer = randomized(fastconv.nn.Conv2dNormAct(8, 16, 1).bfloat16())
    with torch.no_grad():
        layer(torch.randn(1, 8, 5, 5).bfloat16())
    # The bias stays in the precision of the fold.
    assert [call[:3] for call in calls] == [(torch.bfloat16, torch.bfloat16, torch.float32)]


def test_autocast(pretended_gpu, calls):
    layer = randomized(fastconv.nn.Conv2dNormAct(8, 16, 1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.randn(1, 8, 5, 5))
    assert [call[:2] for call in calls] == [(torch.bfloat16, torch.bfloat16)]
    assert output.dtype is torch.bfloat16


def test_a_swapped_model_s_backend_reaches_the_choice(pretended_gpu, calls, monkeypatch):
    monkeypatch.setattr(backend, "misfit", lambda wish, device: None)
    model = fastconv.swap(nn.Sequential(nn.Conv2d(8, 8, 1)).eval(), backend="cuda")
    with fastconv.use_backend("auto"), torch.no_grad():
        model(torch.randn(1, 8, 5, 5))
    assert [call[3] for call in calls] == ["cuda"]
    assert backend.wish() == "native"


@pytest.mark.parametrize("name", ["inverted-stride", "mbconv"])
def test_training(name, pretended_gpu, monkeypatch):
    monkeypatch.setattr(_train, "has_triton", lambda gpu: True)
    module, input = prepared(name, "train")
    with Calls() as calls:
        assert_trains_as_accurately(module, input)
    assert "train_depthwise_conv2d_backward" in calls.names


def test_training_without_triton(pretended_gpu, monkeypatch):
    monkeypatch.setattr(_train, "has_triton", lambda gpu: False)
    module, input = prepared("inverted", "train")
    with Calls() as calls, fastconv.use_backend("auto"):
        module(input).sum().backward()
    assert not calls.names
    with fastconv.use_backend("auto"):
        reasons = {row.train_reason for row in fastconv.report(module).rows}
    assert reasons == {"training on a GPU needs Triton, and a GPU that it compiles for"}
    with pytest.raises(fastconv.BackendError, match="training on a GPU needs Triton"):
        module(input)


def test_what_is_elsewhere_is_not_trained(monkeypatch):
    monkeypatch.setattr(_train, "has_triton", lambda gpu: True)
    module, input = prepared("inverted", "train")
    row = module._train_row()
    assert _train.train_limit(module, row, input) is None
    elsewhere = "the weights have a type or device that the kernels do not have"
    assert _train.train_limit(module, row, input.to("meta")) == elsewhere
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.to("meta")
    elsewhere = "a norm has a type or device that the kernels do not have"
    assert _train.train_limit(module, row, input) == elsewhere
