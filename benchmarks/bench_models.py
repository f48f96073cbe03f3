"""Times whole networks."""

from collections.abc import Callable


def test_networks(run: Callable[[], None]) -> None:
    run()
