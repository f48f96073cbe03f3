"""Times on a GPU: every contender checked, then all in turns, by events around several calls."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

DEVICE = "cuda"
IMAGES = 3  # that differ in a batch. Odd: tiles of 2, 4, 8 ... images meet different ones
_MOST_CALLS = 200
_CHUNK = 16

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Contender:
    """One way to compute.

    Args:
        make: gives the function to call; compiles and records what there is to
        captured: whether calls are recorded in a CUDA graph, whose replays are timed; otherwise
            Python launches each kernel
    """

    name: str
    make: Callable[[], Call]
    captured: bool = True


@dataclass
class Measured:
    """Seconds of one call of each contender, and why the others have none.

    Args:
        deviations: largest difference to float64, relative to the largest value
        peak_bytes: that a call needs beside what is there already
    """

    seconds: dict[str, float] = field(default_factory=dict)
    quartiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class BrokenError(Exception):
    """After an error of this contender nothing can run in this process any more."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name, self.reason = name, reason


def compare(
    contenders: Sequence[Contender],
    truth: Tensor | None,
    tolerance: float,
    *,
    rounds: int = 15,
    target: float = 2e-3,
    flush: Tensor | None = None,
    begin: Callable[[str], object] = lambda name: None,
) -> Measured:
    """Checks each contender's result, then times all of them.

    Args:
        truth: the results of the images that differ, see repeated(); None for no check
        tolerance: the largest deviation that counts as right
        target: seconds that one timed block should take
        flush: written to before each block, larger than the L2 cache, so that inputs come from
            memory; then a block is one call
        begin: called with a contender's name before anything of it runs, "" before the rounds
    """
    found = Measured()
    blocks: dict[str, tuple[Callable[[], object], int]] = {}
    for contender in contenders:
        name = contender.name
        begin(name)
        try:
            call = contender.make()
            found.peak_bytes[name] = _peak_bytes(call)
            if truth is not None:
                found.deviations[name] = checked(call, truth, tolerance)
            blocks[name] = _block(call, contender.captured, target, flush is not None)
        except Exception as error:
            found.errors[name] = shortened(error)
            found.peak_bytes.pop(name, None)
            raise_if_broken(name, found.errors[name])
    begin("")
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for index in range(rounds):
        first = index % max(1, len(blocks))
        for name in [*blocks][first:] + [*blocks][:first]:
            if flush is not None:
                flush.zero_()
            times[name].append(_seconds(blocks[name]))
    for name, values in times.items():
        found.seconds[name] = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        found.quartiles[name] = (low, high)
    return found


def shortened(error: BaseException) -> str:
    """What the results say of a failure."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}"[:300]


def raise_if_broken(name: str, reason: str) -> None:
    """An illegal access ends the context of its process: everything after it would fail too."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except Exception:
        raise BrokenError(name, reason) from None


def repeated(images: Tensor, batch: int) -> Tensor:
    """A batch of these images again and again, so that float64 need not compute all of them."""
    return images[torch.arange(batch, device=images.device) % len(images)]


def checked(call: Call, truth: Tensor, tolerance: float) -> float:
    """The deviation of a result, where the memory that it may come to lie in holds NaN before.

    Raises:
        ValueError: if the result is wrong.
    """
    output = call()
    torch.full_like(output, torch.nan)  # freed at once: the next result may get its memory
    del output
    output = call()
    scale = truth.abs().max().clamp(min=1e-30)
    worst = 0.0
    for start in range(0, len(output), _CHUNK):
        part = output[start : start + _CHUNK].double()
        index = torch.arange(start, start + len(part), device=truth.device) % len(truth)
        expected = truth[index].to(part.device)
        if part.shape != expected.shape:
            raise ValueError(f"the result has shape {list(output.shape)}")
        deviation = float((part - expected).abs().max() / scale)
        worst = deviation if deviation != deviation else max(worst, deviation)  # NaN stays
        if not worst <= tolerance:
            raise ValueError(f"the result is wrong by {worst:.2g} of the largest value")
    return float(f"{worst:.2g}")


def _peak_bytes(call: Call) -> int:
    """Of the second call: the first one chooses, compiles and folds."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _block(
    call: Call, captured: bool, target: float, single: bool
) -> tuple[Callable[[], object], int]:
    """What to time, and how many calls that are: about as many as take `target` seconds."""
    _warm(call, captured)
    one = _recorded(call, 1).replay if captured else call
    one()
    count = 1
    if not single:
        estimate = min(_seconds((one, 1)) for _ in range(3))
        count = max(1, min(_MOST_CALLS, round(target / max(1e-6, estimate))))
    if captured and count > 1:
        one = _recorded(call, count).replay
    elif count > 1:
        one = _repeating(call, count)
    one()
    torch.cuda.synchronize()
    return one, count


def _repeating(call: Call, count: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(count):
            call()

    return run


def _warm(call: Call, captured: bool) -> None:
    """On another stream before a capture."""
    current = torch.cuda.current_stream()
    stream = torch.cuda.Stream() if captured else current
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    current.wait_stream(stream)


def _recorded(call: Call, count: int) -> torch.cuda.CUDAGraph:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            call()
    return graph


def _seconds(block: tuple[Callable[[], object], int]) -> float:
    run, count = block
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / count
