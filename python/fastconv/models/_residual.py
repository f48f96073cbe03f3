"""The native form of ResNet's blocks."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..folding import pack_pointwise
from ..nn._fused import Native
from ..nn._parts import native_convolution, read_sequence, read_stage
from ..ops.pointwise_conv2d import OPS as POINTWISE

Pair = tuple[nn.Module, nn.Module]  # a convolution and its norm


def native_residual(
    pairs: Sequence[Pair], activation: nn.Module, downsample: nn.Module | None, pack: bool
) -> Native | None:
    """Convolutions with norms, the activation behind each, and a residual before the last one.

    Args:
        downsample: a row of convolution and norm that makes the residual of the input, or None
    """
    *front, last = pairs
    row = [native_convolution(read_stage(*pair, activation), pack) for pair in front]
    if downsample is not None:
        row.append(native_convolution(read_sequence(downsample), pack))
    runs = [native.run() for native in row if native is not None]
    end = _native_end(*last, activation, pack)
    if len(runs) < len(row) or end is None:
        return None
    shortcut = None if downsample is None else runs.pop()

    def call(_: Tensor | None, input: Tensor) -> Tensor:
        residual = input if shortcut is None else shortcut(input)
        output = input
        for run in runs:
            output = run(output)
        return end(output, residual)

    return Native(call, None, None)


def _native_end(
    convolution: nn.Module, norm: nn.Module, activation: nn.Module, pack: bool
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """activation(norm(convolution(input)) + residual)"""
    stage = read_stage(convolution, norm, activation)
    if stage is None:
        return None
    if stage.is_pointwise:
        weight, bias = stage.operands(pack)
        packed = pack_pointwise(stage.weight, stage.bias) if pack else None
        stride, code = stage.stride, stage.activation
        return lambda input, residual: POINTWISE.infer(
            input, weight, bias, stride, code, residual, None, packed
        )
    native = native_convolution(read_stage(convolution, norm), pack)
    if native is None:
        return None
    run = native.run()
    return lambda input, residual: activation(run(input).add_(residual))
