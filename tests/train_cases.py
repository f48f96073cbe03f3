"""Blocks to train, and training of a copy on one of the backends."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

import fastconv
from fastconv import models
from fastconv.nn import (
    Conv2dNormAct,
    DepthwiseSeparableConv2d,
    InvertedResidual,
    MBConv,
    SqueezeExcite,
)

from .assertions import assert_as_accurate

BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "stem": lambda: Conv2dNormAct(3, 24, 3, 2),
    "pointwise": lambda: Conv2dNormAct(24, 40, 1, activation_layer=nn.SiLU),
    "pointwise-stride": lambda: Conv2dNormAct(24, 33, 1, stride=2, activation_layer=nn.GELU),
    "pointwise-bias": lambda: Conv2dNormAct(17, 40, 1, bias=True, activation_layer=None),
    "depthwise": lambda: Conv2dNormAct(24, 24, 5, 2, groups=24, activation_layer=nn.Hardswish),
    "depthwise-dilated": lambda: Conv2dNormAct(
        17, 17, 3, groups=17, dilation=2, activation_layer=nn.Tanh
    ),
    "separable": lambda: DepthwiseSeparableConv2d(17, 33, stride=2),
    "inverted": lambda: InvertedResidual(24, 24, 1, 6),
    "inverted-stride": lambda: InvertedResidual(20, 40, 2, 3),
    "inverted-narrow": lambda: InvertedResidual(24, 16, 1, 1),
    "mbconv": lambda: MBConv(
        24, 72, 24, 5, squeeze_excite=lambda mid: SqueezeExcite(mid, 6, nn.SiLU)
    ),
    "mbconv-narrow": lambda: MBConv(
        24,
        24,
        40,
        activation_layer=nn.Hardswish,
        squeeze_excite=lambda mid: SqueezeExcite(mid, 6, nn.ReLU, nn.Hardsigmoid),
    ),
    "basic-conv2d": lambda: models.BasicConv2d(17, 24, 3, padding=1),
    "mobilenet-v1": lambda: models.MobileNetV1Block(24, 40, 2),
}
MODES = ("train", "frozen", "mixed")


def randomized(module: nn.Module) -> nn.Module:
    """Norms whose weights and statistics are not those that they start with."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.normal_(norm.running_mean, 0, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return module


def prepared(name: str, mode: str) -> tuple[nn.Module, Tensor]:
    """A block and an input. mixed: every second norm is frozen."""
    torch.manual_seed(0)
    module = randomized(BLOCKS[name]()).train(mode != "frozen")
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms[1::2] if mode == "mixed" else ():
        norm.eval()
    channels = next(m for m in module.modules() if isinstance(m, nn.Conv2d)).in_channels
    return module, torch.randn(3, channels, 13, 11)


def trained(
    module: nn.Module, input: Tensor, backend: str = "native", autocast: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Output, gradients and buffers of a copy after one pass."""
    module, input = copy.deepcopy(module), input.clone().requires_grad_()
    casting = nullcontext() if autocast is None else torch.autocast(input.device.type, autocast)
    with fastconv.use_backend(backend):
        with casting:
            output = module(input)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        output.backward(grad.to(output))
    found = {"output": output.detach(), "input": input.grad}
    found |= {f"grad {name}": p.grad for name, p in module.named_parameters()}
    return found | {f"buffer {name}": b for name, b in module.named_buffers()}


def assert_trains_as_accurately(
    module: nn.Module, input: Tensor, autocast: torch.dtype | None = None, backend: str = "native"
) -> None:
    ours = trained(module, input, backend, autocast)
    theirs = trained(module, input, "reference", autocast)
    truth = trained(copy.deepcopy(module).double(), input.double(), "reference")
    for name, value in ours.items():
        if value.is_floating_point():
            assert_as_accurate(value, theirs[name], truth[name], name)
        else:
            assert torch.equal(value, theirs[name]), name


def assert_trains_like(ours: nn.Module, theirs: nn.Module, input: Tensor) -> None:
    """A whole network's gradients and statistics are those of its counterpart, as far as float32
    goes: deep inside, one value on the other side of a corner is a different gradient."""
    exact = copy.deepcopy(theirs).double()
    found = [_passed(model, input) for model in (ours, theirs)] + [_passed(exact, input.double())]
    for name, value in found[0].items():
        theirs_s, truth = found[1][name], found[2][name]
        if not value.is_floating_point():
            assert torch.equal(value, theirs_s), name
            continue
        error, allowed = ((v.double() - truth).norm() for v in (value, theirs_s))
        assert error <= 10 * allowed + 5e-2 * truth.norm() + 1e-5, name


def _passed(model: nn.Module, input: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(input)
    output.square().mean().backward()
    found = {"output": output.detach()}
    found |= {f"grad {name}": p.grad for name, p in model.named_parameters()}
    return found | dict(model.named_buffers())
