"""Times squeeze-excites of MobileNetV3-Large."""

from collections.abc import Callable


def test_squeeze_excite(run: Callable[[], None]) -> None:
    run()
