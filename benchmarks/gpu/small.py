"""Calls every op on small odd shapes, on all its kernels: for compute-sanitizer.

compute-sanitizer --tool memcheck python -m benchmarks.gpu.small
"""

from __future__ import annotations

import torch

import fastconv
from fastconv.gpu import choice

SHAPES = ((1, 24, 9, 7), (2, 17, 14, 13), (3, 40, 7, 7))


def calls(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Every op once."""
    n, c, h, w = shape
    torch.manual_seed(0)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device="cuda", dtype=dtype)

    x, mid, k = random(n, c, h, w), 3 * c, c
    expand, filters, project = random(mid, c, 1, 1), random(mid, 1, 3, 3), random(k, mid, 1, 1)
    bias = random(k)
    fastconv.pointwise_conv2d(x, expand, activation="relu6")
    fastconv.depthwise_conv2d(x, random(c, 1, 5, 5), bias, 2, 2, activation="silu")
    fastconv.depthwise_separable_conv2d(
        x, random(c, 1, 3, 3), None, random(k, c, 1, 1), bias, padding=1, residual=x
    )
    block = (expand, None, filters, None, project, bias)
    fastconv.inverted_residual(x, *block, padding=1, residual=x)
    excite = (random(8, mid, 1, 1), None, random(mid, 8, 1, 1), None, "relu", "hardsigmoid")
    fastconv.inverted_residual(x, *block, padding=1, squeeze_excite=excite)
    fastconv.squeeze_excite(x, random(8, c, 1, 1), None, random(c, 8, 1, 1), None)
    fastconv.conv2d_bias_act(x, random(k, c, 3, 3), bias, 2, 1)
    fastconv.pointwise_conv2d_pool(x, expand)


def main() -> None:
    plausible = choice.plausible
    torch.use_deterministic_algorithms(True, warn_only=True)  # nothing is measured
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in SHAPES:
            for index in range(4):

                def one(op, wish, made, index=index):
                    found = plausible(op, wish, made)
                    return [found[index % len(found)]]

                choice.plausible = one
                choice.forget()
                with torch.no_grad():
                    calls(shape, dtype)
    torch.cuda.synchronize()
    print("every kernel has run")


if __name__ == "__main__":
    main()
