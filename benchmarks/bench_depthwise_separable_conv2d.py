"""Times the depthwise-separable block of MobileNetV2 at 224x224."""

from collections.abc import Callable


def test_depthwise_separable_conv2d(run: Callable[[], None]) -> None:
    run()
