"""Backends and instruction sets to test on, and NaN in all memory that nobody wrote to."""

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"

import fastconv
from fastconv import _library, backend

ISA_LEVELS = {"scalar": 0, "avx2": 1, "avx512": 2, "neon": 3}


def usable_levels() -> list[str]:
    """The instruction sets of this CPU, asked from the library by trying."""
    usable = []
    for name, level in ISA_LEVELS.items():
        with contextlib.suppress(RuntimeError), backend.use_isa(level):
            usable.append(name)
    return usable


LEVELS = usable_levels() if _library.is_loaded() else []


@contextlib.contextmanager
def running_on(name: str) -> Iterator[str]:
    """Runs calls on "reference", "native", or "native-<instruction set>"."""
    kind, _, level = name.partition("-")
    if kind == "native" and not LEVELS:
        pytest.skip(f"no native ops: {_library.load_error()}")
    isa = backend.use_isa(ISA_LEVELS[level]) if level else contextlib.nullcontext()
    with fastconv.use_backend(kind), isa:
        yield name


@pytest.fixture(params=["reference", *(f"native-{level}" for level in LEVELS or ["scalar"])])
def any_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the native ops with each instruction set that this CPU has."""
    with running_on(request.param) as name:
        yield name


@pytest.fixture
def native() -> Iterator[str]:
    """The native ops with the best instruction set."""
    with running_on("native") as name:
        yield name


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Fills every new tensor with NaN, also those that the C++ ops allocate."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
