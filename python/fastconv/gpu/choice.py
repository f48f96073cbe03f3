"""Which of several kernels runs a call: the cost model leaves a few, their measured times decide.

The first call of each shape measures; the result is kept in memory and on disk. Where measuring is
not possible (inside a CUDA graph's capture) or not wanted (``torch.use_deterministic_algorithms``,
because candidates sum in different orders), the cost model decides alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backend
from . import store
from .device import Gpu
from .timing import measure

_HOPELESS = 2.5  # times the fastest prediction; PyTorch's own kernels are measured nevertheless
_MOST = 6


class Candidate(NamedTuple):
    """A way to run an op.

    Args:
        backend: "triton", "cuda" or "aten" (PyTorch's own kernels); "mixed" for several ops that
            choose for themselves
        detail: what tells it from others of this backend, such as block sizes
        seconds: that the cost model expects
        run: called with the op's arguments, as one tuple
    """

    backend: str
    detail: str
    seconds: float
    run: Callable[[Any], Any]

    @property
    def name(self) -> str:
        return f"{self.backend} {self.detail}".strip()


class Choice(NamedTuple):
    """What was chosen for an op and a shape, and why."""

    name: str
    reason: str
    run: Callable[[Any], Any]
    is_final: bool = True


_choices: dict[tuple[Any, ...], Choice] = {}


def forget() -> None:
    """Measures everything anew, in this process."""
    _choices.clear()
    store.forget()


def choose(
    op: str,
    gpu: Gpu,
    key: tuple[Any, ...],
    make: Callable[[], Sequence[Candidate]],
    call: Any,
) -> Choice:
    """The kernel for a call.

    Args:
        op: name
        gpu: that runs it
        key: all that the speed depends on
        make: gives the candidates, for the first call of this key
        call: the arguments, with which candidates are measured

    Raises:
        BackendError: if the backend that was asked for has no kernel for this call.
    """
    wish = backend.wish()
    place = (wish, gpu.name, op, *key)
    found = _choices.get(place)
    if found is not None and (found.is_final or not may_measure(call.input)):
        return found
    candidates = plausible(op, wish, make())
    name = f"{wish}: {op}{key}"
    found = _choices[place] = _decide(name, gpu, candidates, call)
    return found


def plausible(op: str, wish: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates of the wanted backend that may be the fastest, the best guess first."""
    allowed = [c for c in candidates if wish in ("auto", c.backend)]
    # Ops made of others ask again for each of them.
    allowed = allowed or [c for c in candidates if c.backend == "mixed"]
    if not allowed:
        raise backend.BackendError(
            f"{op}: backend {wish!r} cannot run this call: it has no kernel for these arguments"
        )
    allowed.sort(key=lambda candidate: candidate.seconds)
    limit = _HOPELESS * allowed[0].seconds
    kernels = [c for c in allowed if c.backend != "aten" and c.seconds <= limit][:_MOST]
    return kernels + [c for c in allowed if c.backend == "aten"]


def may_measure(input: Tensor) -> bool:
    """Whether candidates can be run and timed where this call happens."""
    if not input.is_cuda or torch.are_deterministic_algorithms_enabled():
        return False
    return not torch.cuda.is_current_stream_capturing()


def _decide(name: str, gpu: Gpu, candidates: Sequence[Candidate], call: Any) -> Choice:
    if len(candidates) == 1:
        only = candidates[0]
        return Choice(only.name, "the only candidate", only.run)
    by_name = {candidate.name: candidate for candidate in candidates}
    known = store.lookup(gpu, name)
    if known is not None and known.name in by_name:
        return Choice(known.name, known.reason, by_name[known.name].run)
    if not may_measure(call.input):
        first = candidates[0]
        return Choice(first.name, _expected(candidates), first.run, is_final=False)
    times = measure([candidate.run for candidate in candidates], call)
    ranked = sorted(zip(times, candidates, strict=True), key=lambda pair: pair[0])
    texts = [f"{c.name} {1e6 * t:.1f} us" for t, c in ranked if t != float("inf")]
    reason = "measured: " + ", ".join(texts)
    failed = [c.name for t, c in ranked if t == float("inf")]
    if failed:
        reason += f"; failed: {', '.join(failed)}"
    best = ranked[0][1]
    store.remember(gpu, name, store.Known(best.name, reason))
    return Choice(best.name, reason, best.run)


def _expected(candidates: Sequence[Candidate]) -> str:
    texts = [f"{c.name} {1e6 * c.seconds:.1f} us" for c in candidates]
    return "expected: " + ", ".join(texts)
