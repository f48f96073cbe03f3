"""Activations in float32 registers, by the codes of ``csrc/activation.h``."""

import triton
import triton.language as tl

NONE, RELU, RELU6, HARDSWISH, SILU, SIGMOID, HARDSIGMOID, TANH, GELU = (
    tl.constexpr(code) for code in range(9)
)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """x is float32; minimum and maximum keep NaN, as PyTorch's do."""
    if ACTIVATION == RELU:
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == RELU6:
        x = _clamp6(x)
    elif ACTIVATION == HARDSWISH:
        x = x * (_clamp6(x + 3.0) * (1.0 / 6.0))
    elif ACTIVATION == SILU:
        x = x * tl.sigmoid(x)
    elif ACTIVATION == SIGMOID:
        x = tl.sigmoid(x)
    elif ACTIVATION == HARDSIGMOID:
        x = _clamp6(x + 3.0) * (1.0 / 6.0)
    elif ACTIVATION == TANH:
        x = _tanh(x)
    elif ACTIVATION == GELU:
        x = x * _normal(x)
    return x


@triton.jit
def activation_slope(x, ACTIVATION: tl.constexpr):
    """The derivative at x, [P, C] in float32, as PyTorch has it at the corners and for NaN."""
    if ACTIVATION == RELU:
        x = tl.where(x <= 0.0, 0.0, 1.0)
    elif ACTIVATION == RELU6:
        x = tl.where((x <= 0.0) | (x >= 6.0), 0.0, 1.0)
    elif ACTIVATION == HARDSWISH:
        x = tl.where(x <= -3.0, 0.0, tl.where(x >= 3.0, 1.0, x * (1.0 / 3.0) + 0.5))
    elif ACTIVATION == SILU:
        gate = tl.sigmoid(x)
        x = gate * x * (1.0 - gate) + gate
    elif ACTIVATION == SIGMOID:
        gate = tl.sigmoid(x)
        x = gate * (1.0 - gate)
    elif ACTIVATION == HARDSIGMOID:
        x = tl.where((x <= -3.0) | (x >= 3.0), 0.0, 1.0 / 6.0)
    elif ACTIVATION == TANH:
        value = _tanh(x)
        x = 1.0 - value * value
    elif ACTIVATION == GELU:
        x = _normal(x) + x * (0.3989422804014327 * tl.exp(-0.5 * x * x))
    else:
        x = tl.full(x.shape, 1.0, tl.float32)
    return x


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _normal(x):
    """The normal distribution's function."""
    return 0.5 + 0.5 * tl.erf(0.7071067811865476 * x)


@triton.jit
def _clamp6(x):
    x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, 6.0, propagate_nan=tl.PropagateNan.ALL)
