"""An op is a slice through the folders: one file name in each, so that nobody has to search."""

from pathlib import Path

import pytest

import fastconv.ops
from fastconv import reference

ROOT = Path(__file__).parents[1]
SLICE = [
    "csrc/{}.h",
    "csrc/ops/{}.cpp",
    "csrc/cpu/{}.cpp",
    "python/fastconv/ops/{}.py",
    "tests/test_{}.py",
    "benchmarks/bench_{}.py",
]
# A depthwise-separable block is an inverted residual without expansion, and runs its kernel.
SHARED = {"csrc/depthwise_separable_conv2d.h", "csrc/cpu/depthwise_separable_conv2d.cpp"}


@pytest.mark.parametrize("op", fastconv.ops.__all__)
def test_every_op_has_its_files(op):
    assert callable(getattr(reference, op))
    names = {name.format(op) for name in SLICE} - SHARED
    missing = [name for name in names if not (ROOT / name).is_file()]
    assert not missing
