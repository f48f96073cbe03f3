"""Times the 3-channel stem of MobileNetV2 at 224x224."""

from collections.abc import Callable


def test_conv2d_bias_act(run: Callable[[], None]) -> None:
    run()
