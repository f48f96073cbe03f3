"""Freed memory that a process keeps."""

import platform
import subprocess
import sys

import pytest

# Page faults of a tensor of 64 MB after some like it: a hole may be too small for the second.
_FAULTS = """
import resource, sys, torch
from fastconv._memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(5)][-1])
"""


def _faults(argument: str) -> int:
    command = [sys.executable, "-c", _FAULTS, argument]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")
def test_freed_memory_is_not_cleared_again() -> None:
    kept = _faults("keep")
    assert 5 * kept < _faults("default")
    assert kept < 16


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastconv import _memory

    monkeypatch.setattr(_memory.ctypes, "CDLL", lambda _: object())
    assert not _memory.keep_freed_memory()
    monkeypatch.setattr(_memory.sys, "platform", "darwin")
    assert not _memory.keep_freed_memory()
