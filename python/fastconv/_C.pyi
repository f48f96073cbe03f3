from typing import Any

from torch import Tensor

def cpu_features() -> dict[str, bool]: ...
def isa() -> str: ...
def isa_levels() -> list[str]: ...
def cache_sizes() -> dict[str, int]: ...
def build_info() -> dict[str, str]: ...
def measure_fma_peak(level: int, seconds: float) -> float: ...
def plan_inverted_residual(
    height: int,
    width: int,
    in_channels: int,
    mid_channels: int,
    out_channels: int,
    kernel: int,
    stride: int,
    squeeze_excite: bool,
    lanes: int,
    l1: int,
    l2: int,
) -> dict[str, str | int]: ...

class Watch:
    def __init__(
        self,
        slots: list[tuple[dict[str, Any], str, object]],
        sizes: list[tuple[dict[str, Any], int]],
        tensors: list[Tensor],
    ) -> None: ...
    def holds(self) -> bool: ...
