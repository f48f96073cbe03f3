"""The ops on a GPU: which of several kernels runs each call."""
