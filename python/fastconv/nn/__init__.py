"""Layers with native inference.

All have the arguments, parameters and state_dict keys that PyTorch and torchvision users know. In
train mode, where a gradient is wanted, for other dtypes and devices, while exporting, and where an
inner module has hooks, a layer runs its ordinary PyTorch submodules. Otherwise it is one native op
on folded and packed weights, which are remembered until a parameter, a statistic or the mode
changes. Writes past PyTorch's version counter (``.data``, NumPy) are seen after ``.eval()``.
"""

from .conv2d import Conv2d, Conv2dNormAct
from .depthwise_separable_conv2d import DepthwiseSeparableConv2d
from .inverted_residual import InvertedResidual
from .linear import Linear
from .mbconv import FusedMBConv, MBConv, StochasticDepth
from .squeeze_excite import SqueezeExcite

__all__ = [
    "Conv2d",
    "Conv2dNormAct",
    "DepthwiseSeparableConv2d",
    "FusedMBConv",
    "InvertedResidual",
    "Linear",
    "MBConv",
    "SqueezeExcite",
    "StochasticDepth",
]
