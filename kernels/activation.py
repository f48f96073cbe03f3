"""Activations in float32 registers, by the codes of ``csrc/activation.h``."""

import triton
import triton.language as tl

NONE, RELU, RELU6, HARDSWISH, SILU, SIGMOID, HARDSIGMOID = (tl.constexpr(code) for code in range(7))


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
    else:
        x = tl.full(x.shape, 1.0, tl.float32)
    return x


@triton.jit
def _clamp6(x):
    x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, 6.0, propagate_nan=tl.PropagateNan.ALL)
