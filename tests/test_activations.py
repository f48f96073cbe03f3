"""Activations in registers: how far from float64, in units of the last place."""

import pytest
import torch
from torch import Tensor

import fastconv
from fastconv import backend

from .conftest import LEVELS, running_on

EXACT = {
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "hardsigmoid": lambda x: (x + 3).clamp(0, 6) / 6,
    "tanh": torch.tanh,
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-(0.5**0.5) * x),
}
# As csrc/cpu/activate.h states them: for |x| <= 16, and for |x| <= 87 (gelu: 4, and 13, where it
# ends). Without fused multiply-add the argument of the exponential is rounded once more.
FUSED = {
    "hardswish": (3, 3),
    "hardsigmoid": (2, 2),
    "silu": (6, 22),
    "sigmoid": (6, 22),
    "tanh": (4, 4),
    "gelu": (8, 24),
}
TWICE_ROUNDED = FUSED | {"silu": (17, 63), "sigmoid": (17, 63), "gelu": (16, 128)}


@pytest.fixture(params=[f"native-{level}" for level in LEVELS or ["scalar"]])
def any_level(request):
    with running_on(request.param) as name:
        yield name


def applied(name: str, x: Tensor) -> Tensor:
    """The activation of every number: a 1x1 convolution by 1 changes nothing else."""
    input = x.reshape(1, 1, -1, 1000)
    weight = torch.ones(1, 1, 1, 1, dtype=x.dtype)
    return fastconv.pointwise_conv2d(input, weight, None, activation=name).flatten()


def ulps(actual: Tensor, truth: Tensor) -> float:
    near = truth.float().abs().clamp(min=torch.finfo(torch.float32).tiny)
    unit = torch.nextafter(near, torch.tensor(torch.inf)).double() - near.double()
    return float(((actual.double() - truth).abs() / unit).max())


@pytest.mark.parametrize("name", EXACT)
def test_float32(any_level, name):
    bounds = (TWICE_ROUNDED if any_level == "native-scalar" else FUSED)[name]
    limits = (4, 12.99) if name == "gelu" else (16, 87)
    for limit, bound in zip(limits, bounds, strict=True):
        x = torch.linspace(-limit, limit, 1_000_000)
        assert ulps(applied(name, x), EXACT[name](x.double())) <= bound


@pytest.mark.parametrize("name", EXACT)
def test_bfloat16(any_level, name):
    """Every number of bfloat16 up to 80: rounded, after an error that is small against that."""
    x = torch.arange(0, 0x42A0, dtype=torch.int16).view(torch.bfloat16)
    x = torch.cat([x, -x])
    x = x[: len(x) // 1000 * 1000]
    truth = EXACT[name](x.double())
    error = (applied(name, x).double() - truth).abs()
    half_unit, estimate = 2.0**-8, 2.0**-11 if backend.has_bfloat16 else 2.0**-18
    # hardswish and hardsigmoid end in a difference near -3.
    cancelled = 2.0**-22 if name.startswith("hard") else 0
    assert bool((error <= (half_unit + estimate) * truth.abs() + cancelled + 1e-37).all())


@pytest.mark.parametrize("name", EXACT)
def test_limits(any_level, name):
    x = torch.tensor([torch.inf, torch.nan, 1e30, -1e30, 200.0, -200.0, 0.0, -0.0]).repeat(125)
    got = applied(name, x)[:8]
    is_gate = name in ("sigmoid", "hardsigmoid")
    is_bounded = is_gate or name == "tanh"
    high = torch.ones(3) if is_bounded else torch.tensor([torch.inf, 1e30, 200.0])
    torch.testing.assert_close(got[[0, 2, 4]], high)
    assert got[1].isnan()
    if name == "tanh":
        assert float(got[5]) == -1
    else:
        assert float(got[5].abs()) <= 1e-35
    assert float(got[6]) == (0.5 if is_gate else 0)
