"""All ops on a GPU, by name, and their registration as PyTorch's CUDA implementations."""

import torch

from .. import backend
from .conv2d_bias_act import conv2d_bias_act
from .depthwise_conv2d import depthwise_conv2d
from .depthwise_separable_conv2d import depthwise_separable_conv2d
from .inverted_residual import inverted_residual
from .linear import linear
from .pointwise_conv2d import pointwise_conv2d
from .pointwise_conv2d_pool import pointwise_conv2d_pool
from .squeeze_excite import squeeze_excite
from .train_depthwise_conv2d import train_depthwise_conv2d, train_depthwise_conv2d_backward
from .train_maps import (
    train_gradient,
    train_gradient_sums,
    train_moments,
    train_normalize,
    train_normalized_mean,
)
from .train_pointwise_conv2d import train_pointwise_conv2d, train_pointwise_conv2d_backward

ALL = {
    function.__name__: function
    for function in (
        conv2d_bias_act,
        depthwise_conv2d,
        depthwise_separable_conv2d,
        inverted_residual,
        linear,
        pointwise_conv2d,
        pointwise_conv2d_pool,
        squeeze_excite,
    )
}
# What a row of layers in training is made of.
TRAIN = {
    function.__name__: function
    for function in (
        train_depthwise_conv2d,
        train_depthwise_conv2d_backward,
        train_gradient,
        train_gradient_sums,
        train_moments,
        train_normalize,
        train_normalized_mean,
        train_pointwise_conv2d,
        train_pointwise_conv2d_backward,
    )
}


def register() -> None:
    """Makes the functions what the dispatcher calls for tensors on a GPU."""
    if backend.NATIVE_MISSING is not None:
        return
    for name, function in ALL.items():
        for end in ("", "_infer"):
            torch.library.impl(f"fastconv::{name}{end}", "CUDA", function)
    for name, train_function in TRAIN.items():
        torch.library.impl(f"fastconv::{name}", "CUDA", train_function)
