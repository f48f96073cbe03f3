"""Reads what nvcc says of registers and spills, prints a table, and ends with 1 if a kernel spills.

Used by ``make cuda``, which pipes the build of the CUDA library, the argument, through this.
"""

import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

# A thread of the generic kernels may : they run what the others do not.
_COLD = ("generic",)


class Kernel(NamedTuple):
    """One kernel for one architecture, and what a thread of it needs."""

    name: str
    arch: str
    registers: int
    spilled: int  # bytes, stored and loaded


_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


def parse(lines: list[str]) -> list[Kernel]:
    """The kernels in the output of ``nvcc -Xptxas=-v``."""
    found = []
    name, arch, spilled = "", "", 0
    for line in lines:
        if entry := _ENTRY.search(line):
            name, arch, spilled = entry[1], entry[2], 0
        elif spills := _SPILLS.search(line):
            spilled = int(spills[1]) + int(spills[2])
        elif used := _USED.search(line):
            found.append(Kernel(name, arch, int(used[1]), spilled))
    return found


def readable(names: list[str]) -> list[str]:
    """Without the compiler's mangling, and without the arguments."""
    text = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout
    plain = [line.replace("fastconv::(anonymous namespace)::", "") for line in text.splitlines()]
    return [re.sub(r"^void |\(\w+\)(?=\d)|\([^()]*\)$", "", line) for line in plain]


def main() -> int:
    lines = sys.stdin.readlines()
    kernels = parse(lines)
    if not kernels:
        print("".join(lines))
        print("no kernel was compiled")
        return 1
    library = pathlib.Path(sys.argv[1])
    if not library.exists() or b"libtorch_cuda.so\0" not in library.read_bytes():
        print("".join(lines[-20:]))
        print(f"{library} was not linked to libtorch_cuda.so")
        return 1
    names = readable([kernel.name for kernel in kernels])
    broken = 0
    for name, kernel in sorted(zip(names, kernels, strict=True)):
        is_broken = kernel.spilled > 0 and not any(cold in name for cold in _COLD)
        broken += is_broken
        mark = f"  spills {kernel.spilled} bytes" if kernel.spilled else ""
        print(f"{kernel.arch}  {kernel.registers:3d} registers  {name}{mark}")
    print(f"{len(kernels)} kernels, {broken} of those that must not spill do")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
