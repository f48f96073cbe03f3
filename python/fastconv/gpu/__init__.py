"""The ops on a GPU: which of several kernels runs each call, and CUDA graphs."""

from .graphs import graphed
from .ops import register

__all__ = ["graphed"]

register()
