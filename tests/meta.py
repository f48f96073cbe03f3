"""Networks without memory."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _NoNumbers(TorchFunctionMode):
    """Draws nothing: on the meta device PyTorch does that in Python, a millisecond a tensor."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_):
            return kwargs["tensor"]
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def meta_device() -> Iterator[None]:
    """What is built within has shapes and dtypes only."""
    with torch.device("meta"), _NoNumbers():
        yield
