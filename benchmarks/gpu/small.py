"""Calls every op on small odd shapes, on the kernels of both backends, and trains some blocks: for
compute-sanitizer.

compute-sanitizer --tool memcheck python -m benchmarks.gpu.small
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fastconv
from fastconv.gpu import choice

SHAPES = ((1, 24, 9, 7), (2, 17, 14, 13), (3, 40, 7, 7))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CONFIGURATIONS = 3  # of each kernel, the most promising ones


def calls(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cuda"
) -> dict[str, Callable[[], Tensor]]:
    """Every op that has kernels of its own."""
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device, dtype)

    x, mid = random(n, c, h, w), 3 * c
    nhwc = x.contiguous(memory_format=torch.channels_last)
    expand, filters, project = random(mid, c, 1, 1), random(mid, 1, 3, 3), random(c, mid, 1, 1)
    bias, own, wide = random(c), random(c, 1, 3, 3), random(c, 1, 5, 5)
    pointwise, dense, scale = random(c, c, 1, 1), random(c, c, 3, 3), random(n, c)
    block = (expand, None, filters, None, project, bias)
    excite = (random(8, mid, 1, 1), None, random(mid, 8, 1, 1), None, "relu", "hardsigmoid")
    gates = (random(8, c, 1, 1), None, random(c, 8, 1, 1), None)
    ops = fastconv
    return {
        "1x1": lambda: ops.pointwise_conv2d(x, expand, activation="relu6"),
        "1x1 with all": lambda: ops.pointwise_conv2d(
            nhwc, pointwise, bias, residual=nhwc, input_scale=scale
        ),
        "1x1, stride": lambda: ops.pointwise_conv2d(nhwc, pointwise, bias, 2),
        "depthwise": lambda: ops.depthwise_conv2d(nhwc, wide, bias, 2, 2, activation="silu"),
        "depthwise, NCHW": lambda: ops.depthwise_conv2d(x, own, bias, 1, 1),
        "separable": lambda: ops.depthwise_separable_conv2d(
            nhwc, own, None, pointwise, bias, padding=1, residual=nhwc
        ),
        "block": lambda: ops.inverted_residual(nhwc, *block, padding=1, residual=nhwc),
        "block, stride": lambda: ops.inverted_residual(nhwc, *block, stride=2, padding=1),
        "block with gates": lambda: ops.inverted_residual(
            nhwc, *block, padding=1, squeeze_excite=excite
        ),
        "gates": lambda: ops.squeeze_excite(nhwc, *gates),
        "dense": lambda: ops.conv2d_bias_act(nhwc, dense, bias, 2, 1),
        "1x1, mean": lambda: ops.pointwise_conv2d_pool(nhwc, expand),
    }


def training(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cuda"
) -> dict[str, Callable[[], Tensor]]:
    """Blocks forward and backward, which together call every op of training."""
    torch.manual_seed(0)
    c = shape[1]
    blocks = {
        "block, trained": fastconv.nn.InvertedResidual(c, c, 1, 3),
        "block with gates, trained": fastconv.nn.MBConv(
            c, 3 * c, c, squeeze_excite=lambda mid: fastconv.nn.SqueezeExcite(mid, 8)
        ),
        "1x1, stride, trained": fastconv.nn.Conv2dNormAct(c, c, 1, stride=2),
    }
    x = torch.randn(shape).to(device, dtype)

    def step(block: nn.Module) -> Tensor:
        input = x.clone(memory_format=torch.channels_last).requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(block(input).float().square().mean(), [input])
        return grad

    return {
        name: functools.partial(step, block.train().to(device, dtype))
        for name, block in blocks.items()
    }


def run(
    backends: tuple[str, ...],
    device: str = "cuda",
    make: Callable[..., dict[str, Callable[[], Tensor]]] = calls,
) -> dict[str, int]:
    """How often each backend ran a call, with each of its configurations in turn.

    Args:
        make: gives the calls for a shape, a dtype and the device
    """
    counts = dict.fromkeys(backends, 0)
    plausible = choice.plausible
    try:
        for index in range(CONFIGURATIONS):

            def one(op, wish, made, index=index):
                found = plausible(op, wish, made)
                return [found[index % len(found)]]

            choice.plausible = one
            for name in backends:
                choice.forget()
                for dtype in DTYPES:
                    for shape in SHAPES:
                        counts[name] += _run_all(make(shape, dtype, device), name)
    finally:
        choice.plausible = plausible
        choice.forget()
    return counts


def _run_all(every: dict[str, Callable[[], Tensor]], name: str) -> int:
    count = 0
    for text, call in every.items():
        try:
            with torch.no_grad(), fastconv.use_backend(name):
                output = call()
        except fastconv.BackendError:  # it has no kernel for this
            continue
        count += 1
        if not output.isfinite().all():
            raise ValueError(f"{text} on {name}, {output.dtype}: not all of it was written")
    return count


def main() -> None:
    # Nothing is measured, and what nobody writes is NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    counts = run(("triton", "cuda")) | run(("auto",), make=training)
    torch.cuda.synchronize()
    for name, count in counts.items():
        print(f"{name}: {count} calls")


if __name__ == "__main__":
    main()
