"""Times ten crops and an ensemble in one batch, and one by one."""

from collections.abc import Callable


def test_predict(run: Callable[[], None]) -> None:
    run()
