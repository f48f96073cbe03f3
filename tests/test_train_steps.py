"""Steps of training with fastconv's layers: compiled, accumulated, scaled, checkpointed."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastconv
from fastconv.nn import Conv2dNormAct, InvertedResidual, MBConv, SqueezeExcite

from .conftest import LEVELS

pytestmark = pytest.mark.skipif(not LEVELS, reason="the native library is missing")


def _step(model, input, target):
    return F.cross_entropy(model(input), target)


def _small(p: float = 0.0, **activation: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        Conv2dNormAct(3, 16, 3, 2, **activation),
        InvertedResidual(16, 16, 1, 3, **activation),
        MBConv(16, 48, 24, stride=2, squeeze_excite=lambda mid: SqueezeExcite(mid, 8)),
        MBConv(24, 48, 24, stochastic_depth_prob=p),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def test_compile_a_step_without_graph_breaks():
    model, input, target = _small(), torch.randn(4, 3, 24, 24), torch.tensor([0, 1, 2, 3])
    eager = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(_step, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(model, input, target), _step(eager, input, target)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for (name, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")
    for a, b in zip(model.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def _losses(backend_name, dtype):
    model = _small(activation_layer=nn.SiLU).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(5, 3, 1, 1, generator=generator)

    def draw(count):
        target = torch.randint(0, 5, (count,), generator=generator)
        noise = torch.randn(count, 3, 24, 24, generator=generator)
        return (means[target] + noise).to(dtype), target

    losses = []
    with fastconv.use_backend(backend_name):
        for _ in range(50):
            loss = _step(model, *draw(16))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        input, target = draw(100)
        with torch.no_grad():
            right = (model.eval()(input).argmax(1) == target).sum().item()
    return torch.tensor(losses), right


def test_fifty_steps_are_pytorch_s():
    ours, right = _losses("native", torch.float32)
    theirs, expected = _losses("reference", torch.float32)
    truth, _ = _losses("reference", torch.float64)
    # Rounding grows along the way, for both. Hardly an activation has a bend, on whose other side
    # one of two runs may fall.
    assert (ours - truth).abs().max() <= 10 * (theirs - truth).abs().max() + 1e-3
    torch.testing.assert_close(ours[:20], theirs[:20], rtol=1e-4, atol=1e-5)
    assert ours[-1] < 0.2 * ours[0]
    assert right == expected
    assert right >= 95


def test_accumulated_gradients_and_scaled_losses():
    input, target = torch.randn(8, 3, 24, 24), torch.arange(8) % 5
    found = []
    for name in ("native", "reference"):
        model = _small()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with fastconv.use_backend(name):
            for part, labels in zip(input.split(4), target.split(4), strict=True):
                scaler.scale(_step(model, part, labels) / 2).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=lambda text, name=name: name + text)


def test_checkpointing():
    found = []
    for checkpoints in (False, True):
        model, input = _small(), torch.randn(4, 3, 24, 24).requires_grad_()
        front = model[:4]
        if checkpoints:
            map_ = torch.utils.checkpoint.checkpoint(front, input, use_reentrant=False)
        else:
            map_ = front(input)
        map_.square().sum().backward()
        found.append([p.grad for p in front.parameters()])
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)
