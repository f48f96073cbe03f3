"""The public functions, one file each."""

from .conv2d_bias_act import conv2d_bias_act
from .depthwise_conv2d import depthwise_conv2d
from .depthwise_separable_conv2d import depthwise_separable_conv2d
from .inverted_residual import inverted_residual
from .linear import linear
from .pointwise_conv2d import pointwise_conv2d
from .pointwise_conv2d_pool import pointwise_conv2d_pool
from .squeeze_excite import squeeze_excite

__all__ = [
    "conv2d_bias_act",
    "depthwise_conv2d",
    "depthwise_separable_conv2d",
    "inverted_residual",
    "linear",
    "pointwise_conv2d",
    "pointwise_conv2d_pool",
    "squeeze_excite",
]
