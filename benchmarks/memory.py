"""Resident memory of this process."""

import re
from pathlib import Path

from fastconv import _runtimes


def resident(field: str) -> float:
    """VmRSS, or VmHWM for its peak, in MB."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise _runtimes.UnavailableError(f"/proc/self/status has no {field}")
    return int(match[1]) / 1000
