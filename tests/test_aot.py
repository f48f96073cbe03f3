"""Triton's kernels compiled for GPUs that are not there: registers, spills, shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastconv import backend

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(backend.triton_missing() is not None, reason=str(backend.triton_missing()))
def test_all_kernels_fit(tmp_path):
    """In processes of their own: in this one Triton's functions may be made for its interpreter.
    Each configuration for one of the two architectures; `python -m tests.aot` does it for both,
    with `--share rest` for the other one."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    file = tmp_path / "usages.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.aot", "--share", "half", "--json", str(file)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(process.stdout)  # the table, which pytest shows where something is wrong
    assert process.returncode == 0
    found = json.loads(file.read_text())
    files = {path.stem for path in (ROOT / "kernels").glob("*.py")}
    for arch in (80, 90):
        usages = [usage for usage in found if usage["arch"] == arch]
        kernels = {usage["kernel"].split()[0] for usage in usages}
        assert kernels == files - {"__init__", "activation", "launch"}
        for usage in usages:
            assert usage["spilled"] <= 16
            assert usage["wide"]
            assert 0 < usage["registers"] <= 255
        # Products of matrices use the tensor cores' pipeline: tiles wait in shared memory.
        assert any(usage["shared"] > 0 for usage in usages if "pointwise" in usage["kernel"])
