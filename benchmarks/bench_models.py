"""Times whole networks at 224x224."""

from collections.abc import Callable


def test_networks(run: Callable[[], None]) -> None:
    run()
