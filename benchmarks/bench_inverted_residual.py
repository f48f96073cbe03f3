"""Times whole inverted residual blocks of MobileNetV2 at 224x224."""

from collections.abc import Callable


def test_inverted_residual(run: Callable[[], None]) -> None:
    run()
