"""Fused convolution kernels for efficient CNNs: PyTorch functions, layers and networks."""

from . import cost, models, nn
from .backend import BackendError, use_backend
from .gpu import graphed
from .info import info
from .ops import (
    conv2d_bias_act,
    depthwise_conv2d,
    depthwise_separable_conv2d,
    inverted_residual,
    linear,
    pointwise_conv2d,
    pointwise_conv2d_pool,
    squeeze_excite,
)
from .predict import predict
from .report import report
from .summary import summary
from .swap import fold, restore, swap

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "__version__",
    "conv2d_bias_act",
    "cost",
    "depthwise_conv2d",
    "depthwise_separable_conv2d",
    "fold",
    "graphed",
    "info",
    "inverted_residual",
    "linear",
    "models",
    "nn",
    "pointwise_conv2d",
    "pointwise_conv2d_pool",
    "predict",
    "report",
    "restore",
    "squeeze_excite",
    "summary",
    "swap",
    "use_backend",
]
