"""Times the classifier of MobileNetV2 at 224x224."""

from collections.abc import Callable


def test_linear(run: Callable[[], None]) -> None:
    run()
