"""Times the 1x1 head with global pooling of MobileNetV2 at 224x224."""

from collections.abc import Callable


def test_pointwise_conv2d_pool(run: Callable[[], None]) -> None:
    run()
