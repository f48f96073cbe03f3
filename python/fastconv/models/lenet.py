"""LeNet-5 (http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .._sequence import Part, Pool
from ..nn import Conv2d, Linear
from ._common import Network, check_in_chans
from ._weights import Weights, load_weights

_SIDE = 32


class LeNet5(Network):
    """LeNet-5, for images of 32x32; the layers have the names of the paper.

    As it is built today, it differs from the paper's in three places: every map of C3 sees all maps
    of S2, the subsampling S2 and S4 is a plain average, and the output layer is linear.

    Args:
        num_classes: of the output layer
        activation_layer: a module class, behind all layers with weights but the last
        in_chans: input channels

    Raises:
        ValueError: for fewer than one input channel, and for images of another size.

    Example:
        >>> model = fastconv.models.LeNet5().eval()
        >>> with torch.inference_mode():
        ...     model(torch.randn(1, 1, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        activation_layer: Callable[..., nn.Module] = nn.Tanh,
        in_chans: int = 1,
    ) -> None:
        super().__init__()
        check_in_chans("LeNet5", in_chans)
        self.c1 = Conv2d(in_chans, 6, 5)
        self.s2 = nn.AvgPool2d(2)
        self.c3 = Conv2d(6, 16, 5)
        self.s4 = nn.AvgPool2d(2)
        self.c5 = Conv2d(16, 120, 5)
        self.f6 = Linear(120, 84)
        self.output = Linear(84, num_classes)
        self.activation = activation_layer()
        self.flatten = nn.Flatten()

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or input.shape[2:] != (_SIDE, _SIDE):
            raise ValueError(
                f"LeNet5: input must have shape (N, {self.c1.in_channels}, {_SIDE}, {_SIDE}), "
                f"got {list(input.shape)}"
            )
        return super().forward(input)

    def _parts(self) -> list[nn.Module]:
        first = [self.c1, self.activation, self.s2, self.c3, self.activation, self.s4]
        last = [self.c5, self.activation, self.flatten, self.f6, self.activation, self.output]
        return first + last

    def _row(self) -> list[Part]:
        # The mean of C5's maps of one pixel is what flattens them.
        return [Pool() if part is self.flatten else part for part in self._parts()]

    def _plain_forward(self, input: Tensor) -> Tensor:
        for part in self._parts():
            input = part(input)
        return input


def lenet5(weights: Weights = None, **kwargs: Any) -> LeNet5:
    """LeNet-5.

    Args:
        weights: None (random), a state_dict, or the path of one
        kwargs: for :class:`LeNet5`, such as num_classes

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the keys, if the weights do not fit; see :func:`load_weights`.

    Example:
        >>> model = fastconv.models.lenet5(activation_layer=torch.nn.ReLU)
    """
    model = LeNet5(**kwargs)
    return model if weights is None else load_weights(model, weights)
