"""Several native forms, one after the other, as one."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ..folding import pack_buffer
from ..ops._sequential import Step, sequential, steps_text
from ._fused import Native

Maker = Callable[[], Native | None]


def native_chain(makers: Sequence[Maker], weights: Sequence[Tensor]) -> Native | None:
    """One native call for what the makers give, all of them packed and with steps.

    There is one copy of the packed weights: each form is made when its turn comes, moved into its
    place, and told of that. From the end, where the largest is, to need less memory meanwhile.

    Args:
        weights: of all the forms, unpacked: they say how much room is needed
    """
    if any(weight.is_cuda for weight in weights):
        return _row_on_gpu(makers)
    room = pack_buffer(weights)
    steps: tuple[Step, ...] = ()
    begin = len(room)
    adopters: list[tuple[Callable[[Tensor], None], int, int]] = []
    for make in reversed(makers):
        native = make()
        if native is None or native.steps is None or native.packed is None:
            return None
        steps = native.steps + steps
        end, begin = begin, begin - len(native.packed)
        if begin < 0:
            return None
        moved = room[begin:end].copy_(native.packed)
        if native.adopt is not None:
            native.adopt(moved)
            adopters.append((native.adopt, begin, end))
    first = begin

    def adopt(packed: Tensor) -> None:
        for adopt_part, begin, end in adopters:
            adopt_part(packed[begin - first : end - first])

    return row_of_steps(steps, room[first:], adopt)


def _row_on_gpu(makers: Sequence[Maker]) -> Native | None:
    """The same on a GPU, where nothing is packed and every form is a call."""
    natives = [native for make in makers if (native := make()) is not None]
    if len(natives) < len(makers):
        return None
    run = composed([native.run() for native in natives])
    return Native(lambda _, x: run(x), None, None)


def row_of_steps(
    steps: tuple[Step, ...], packed: Tensor, adopt: Callable[[Tensor], None] | None = None
) -> Native:
    """One native call for steps whose packed weights lie one after the other."""
    text = steps_text(steps)

    def call(packed: Tensor | None, input: Tensor) -> Tensor:
        assert packed is not None
        return sequential(input, text, packed)

    return Native(call, packed, steps, adopt)


def composed(natives: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """One function for several, one after the other."""
    parts = tuple(natives)

    def run(input: Tensor) -> Tensor:
        for part in parts:
            input = part(input)
        return input

    return run
