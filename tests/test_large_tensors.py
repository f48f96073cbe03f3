"""Every op on maps of more than 2^31 elements, whose places no 32-bit number can hold."""

import math

import pytest
import torch

import fastconv
from fastconv.gpu import ops

C, SIZE, N = 64, 448, 170
ELEMENTS = N * C * SIZE * SIZE
HALF = {"device": "cuda", "dtype": torch.half}
NEIGHBOURS = 2  # images of the end that are compared


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, **HALF) / math.prod(shape[1:]) ** 0.5


@pytest.fixture(scope="module")
def input():
    """Zeros and, at the end, numbers."""
    assert ELEMENTS > 2**31
    torch.cuda.empty_cache()
    needed = 5 * 2 * ELEMENTS  # input, output, and what is between them
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed >> 30} GB of free GPU memory, there are {free >> 30}")
    torch.manual_seed(0)
    maps = torch.zeros(N, SIZE, SIZE, C, **HALF).permute(0, 3, 1, 2)
    maps[-NEIGHBOURS:] = torch.randn(NEIGHBOURS, C, SIZE, SIZE, **HALF)
    return maps


def calls() -> dict[str, tuple]:
    """The arguments behind the input, by op; no output or expanded map is larger than the input."""
    square = random(C, C, 1, 1)
    filters = random(C, 1, 3, 3)
    excite = (random(16, C, 1, 1), None, random(C, 16, 1, 1), None)
    return {
        "pointwise_conv2d": (square,),
        "pointwise_conv2d_pool": (square,),
        "depthwise_conv2d": (filters, None, 1, 1),
        "depthwise_separable_conv2d": (filters, None, square, None, 1, 1),
        "inverted_residual": (square, None, filters, None, square, None, 1, 1),
        "squeeze_excite": excite,
        "conv2d_bias_act": (random(8, C, 3, 3), None, 1, 1),
    }


def test_all_ops_are_here():
    assert calls().keys() == ops.ALL.keys() - {"linear"}


@pytest.mark.parametrize("op", [name for name in ops.ALL if name != "linear"])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_the_last_images(input, backend, op):
    """They come out as they do alone."""
    function, arguments = getattr(fastconv, op), calls()[op]
    with torch.inference_mode(), fastconv.use_backend(backend):
        try:
            alone = function(input[-NEIGHBOURS:], *arguments)
        except fastconv.BackendError as error:
            pytest.skip(str(error))
        output = function(input, *arguments)
        torch.testing.assert_close(output[-NEIGHBOURS:], alone)
    assert alone.any()
