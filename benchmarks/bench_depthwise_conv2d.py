"""Times depthwise convolutions of MobileNetV2 at 224x224."""

from collections.abc import Callable


def test_depthwise_conv2d(run: Callable[[], None]) -> None:
    run()
