"""Triton kernels, installed as ``fastconv.kernels`` and imported only when one is launched."""
