"""The fully connected layer at a network's end."""

from torch import Tensor, nn

from ..folding import pack_pointwise
from ..ops._sequential import Step, StepKind
from ..ops.linear import OPS
from ._fused import FusedModule, Native
from ._parts import are_native


class Linear(FusedModule, nn.Linear):
    """:class:`torch.nn.Linear` with native inference: same arguments, same state_dict.

    In eval mode, where no gradient is wanted, 2-D inputs on the CPU run as one native op on
    packed weights. Everything else is torch.nn.Linear.

    Example:
        >>> fastconv.nn.Linear(1280, 1000)(torch.randn(1, 1280)).shape
        torch.Size([1, 1000])

    See :func:`fastconv.linear`.
    """

    _input_dims = 2

    def _plain_forward(self, input: Tensor) -> Tensor:
        return nn.Linear.forward(self, input)

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        return native_linear(self, pack)


def native_linear(module: nn.Linear, pack: bool) -> Native | None:
    """The native op for a fully connected layer, of 2-D inputs."""
    weight, bias = module.weight, module.bias
    if not are_native(weight, bias):
        return None
    op = OPS.inference(pack)
    return Native(
        lambda packed, x: op(x, weight, bias, packed),
        pack_pointwise(weight, bias) if pack else None,
        (Step(StepKind.LINEAR, weight.shape[0]),),
    )
