"""Times 1x1 convolutions of MobileNetV2 at 224x224."""

from collections.abc import Callable


def test_pointwise_conv2d(run: Callable[[], None]) -> None:
    run()
