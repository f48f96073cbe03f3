"""Compiles Triton's kernels ahead of time, without a GPU, and prints what they need of one.

Every kernel is launched as usual, on tensors that have no memory; in the place of the launch what
it would run is compiled, for sm_80 and sm_90. Run from the repository's root, not in the
interpreter: ``python -m tests.aot``. It ends with 1 where a kernel needs too much.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from fastconv.kernels import conv2d_bias_act as stem
from fastconv.kernels import depthwise_conv2d as depthwise
from fastconv.kernels import depthwise_separable_conv2d as separable
from fastconv.kernels import pointwise_conv2d as pointwise
from fastconv.kernels import pointwise_conv2d_pool as pool
from fastconv.kernels import squeeze_excite as excite
from fastconv.kernels import train_maps as maps
from fastconv.kernels import train_pointwise_conv2d as train_pointwise
from fastconv.kernels import train_pointwise_conv2d_input as train_input
from fastconv.kernels import train_pointwise_conv2d_weight as train_weight
from fastconv.kernels import train_sums as sums
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Of one block of threads, from NVIDIA's tables of compute capabilities.
SHARED = {80: 163 << 10, 90: 227 << 10}
REGISTERS = 65536
# Bytes of a thread. Each release of the compiler shares out registers anew; a few that move to the
# L1 cache cost less than a smaller tile would.
SPILLED = 16
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel needs.

    Args:
        kernel, layer, dtype, config, arch: what was compiled
        registers: of a thread
        spilled: bytes of a thread's local memory
        shared: bytes of shared memory of a block of threads
        threads: of a block
        wide: whether it computes 64-bit offsets, for tensors of more than 2^31 elements
    """

    kernel: str
    layer: str
    dtype: str
    config: str
    arch: int
    registers: int
    spilled: int
    shared: int
    threads: int
    wide: bool

    @property
    def faults(self) -> list[str]:
        """Which limits it breaks."""
        found = []
        if self.spilled > SPILLED:
            found.append(f"spills {self.spilled} bytes")
        if self.shared > SHARED[self.arch]:
            found.append(f"{self.shared} bytes of shared memory")
        if self.registers * self.threads > REGISTERS:
            found.append(f"{self.registers} registers for {self.threads} threads")
        return found


class _Driver:
    """As much of a GPU's driver as compiling asks for."""

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(launch: Callable[[], Any], arch: int) -> list[Any]:
    """The kernels that a launch would run on a GPU of this architecture."""
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))
        return kernels[-1]

    driver.set_active(_Driver(arch))  # type: ignore[arg-type]
    JITFunction.run = compile_only  # type: ignore[method-assign]
    try:
        launch()
    finally:
        JITFunction.run = run  # type: ignore[method-assign]
    return kernels


def resources(kernel: Any) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (
        int(re.search(rf"{name}:(\d+)", text)[1])  # type: ignore[index]
        for name in ("REG", "STACK", "LOCAL")
    )
    return registers, stack + local


def channels_last(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)


def plain(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _pointwise(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for n, c, k, size, residual, scaled in (
        (256, 16, 96, 112, False, False),
        (256, 144, 24, 56, True, False),
        (256, 240, 40, 28, False, True),
        (256, 112, 672, 14, False, False),
        (1, 1152, 320, 7, False, True),
        (2, 23, 17, 13, True, True),
    ):
        x, w, b = (
            channels_last(n, c, size, size, dtype=dtype),
            plain(k, c, 1, 1, dtype=dtype),
            plain(k),
        )
        r = channels_last(n, k, size, size, dtype=dtype) if residual else None
        s = plain(n, c) if scaled else None
        for config in pointwise.configs(n, size * size, c, k, dtype):
            yield (
                f"{n}x{c}to{k}x{size}" + "+r" * residual + "+s" * scaled,
                str(config),
                lambda x=x, w=w, b=b, r=r, s=s, config=config: pointwise.pointwise_conv2d(
                    x, w, b, (1, 1), 4, r, s, config
                ),
            )


def _pool(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for n, c, k in ((256, 320, 1280), (3, 23, 45)):
        x, w, b = channels_last(n, c, 7, 7, dtype=dtype), plain(k, c, 1, 1, dtype=dtype), plain(k)
        for config in pool.configs(n, 49, c, k, dtype):
            yield (
                f"{n}x{c}to{k}",
                str(config),
                lambda x=x, w=w, b=b, config=config: pool.pointwise_conv2d_pool(x, w, b, 2, config),
            )


def _stem(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    x, w = plain(256, 3, 224, 224, dtype=dtype), plain(32, 3, 3, 3, dtype=dtype)
    for config in stem.configs(256 * 112 * 112, 3, 32, (3, 3), dtype):
        yield (
            "256x3to32x224s2",
            str(config),
            lambda config=config: stem.conv2d_bias_act(
                x, w, plain(32), (2, 2), (1, 1, 1, 1), 3, config
            ),
        )


def _filters(c: int, k: int) -> Tensor:
    return plain(k, k, c, 1).permute(2, 3, 0, 1)


def _depthwise(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for n, c, size, k, stride, pooled in (
        (256, 32, 112, 3, 1, False),
        (256, 144, 56, 3, 2, False),
        (256, 240, 28, 5, 2, True),
        (1, 672, 14, 5, 1, True),
        (3, 23, 13, 7, 1, False),
    ):
        x, p, s = channels_last(n, c, size, size, dtype=dtype), k // 2, (stride, stride)
        for config in depthwise.configs(n, c, (-(-size // stride),) * 2, (k, k), s, dtype):
            yield (
                f"{n}x{c}x{size}k{k}s{stride}" + "+sums" * pooled,
                str(config),
                lambda x=x, c=c, k=k, s=s, p=p, config=config, pooled=pooled: (
                    depthwise.depthwise_conv2d(
                        x, _filters(c, k), plain(c), s, (p,) * 4, (1, 1), 4, config, pooled
                    )
                ),
            )


def _separable(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for n, c, k, size, stride in ((256, 32, 16, 112, 1), (256, 128, 256, 56, 2)):
        x, w = channels_last(n, c, size, size, dtype=dtype), plain(k, c, 1, 1, dtype=dtype)
        s = (stride, stride)
        for config in separable.configs(n, c, k, (size // stride,) * 2, (3, 3), s, dtype):
            yield (
                f"{n}x{c}to{k}x{size}s{stride}",
                str(config),
                lambda x=x, w=w, c=c, k=k, s=s, config=config: separable.depthwise_separable_conv2d(
                    *(x, _filters(c, 3), plain(c), w, plain(k), s, (1,) * 4, (1, 1), 2, 0, None),
                    config,
                ),
            )


def _excite(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for n, c, r, size in ((256, 240, 10, 28), (256, 1152, 48, 7), (1, 3840, 160, 7)):
        x, w1, w2 = (
            channels_last(n, c, size, size, dtype=dtype),
            plain(r, c, 1, 1, dtype=dtype),
            plain(c, r, 1, 1, dtype=dtype),
        )

        def launch(x: Any = x, w1: Any = w1, w2: Any = w2, config: Any = None) -> None:
            sums = excite.channel_sums(x, config)
            pixels = x.shape[2] * x.shape[3]
            biases = plain(w1.shape[0]), plain(w2.shape[0])
            excite.scale(x, excite.gates(sums, pixels, w1, biases[0], w2, biases[1], 4, 5), config)

        for config in excite.configs(n, c, size * size, dtype):
            yield (
                f"{n}x{c}x{size}r{r}",
                str(config),
                lambda launch=launch, config=config: launch(config=config),
            )


def _train_maps(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for n, c, size, gated in ((128, 240, 28, True), (3, 23, 13, True)):
        x, per_image = channels_last(n, c, size, size, dtype=dtype), plain(n, c) if gated else None
        affine, last = plain(2, c), (6, plain(4, c))
        for config in maps.configs(c, dtype):
            yield (
                f"{n}x{c}x{size}" + "+s" * gated,
                str(config),
                lambda x=x, affine=affine, gate=per_image, last=last, config=config: (
                    maps.normalize(x, affine, gate, 4, x, config),
                    maps.gradient(x, x, affine, gate, gate, *last, config),
                ),
            )


def _train_sums(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for n, c, size, gated in ((128, 240, 28, True), (3, 23, 13, True)):
        x, per_image = channels_last(n, c, size, size, dtype=dtype), plain(n, c) if gated else None
        affine, mean = plain(2, c), plain(c)
        for config in sums.configs(c, dtype):
            yield (
                f"{n}x{c}x{size}" + "+s" * gated,
                str(config),
                lambda x=x, affine=affine, gate=per_image, mean=mean, config=config: (
                    sums.moments(x, config),
                    sums.normalized_mean(x, affine, 4, config),
                    sums.gradient_sums(x, x, affine, gate, gate, 4, mean, config),
                ),
            )


# Batch, C, K, size, and whether a squeeze-and-excitation stands before and behind the convolution.
_TRAINED = (
    (128, 16, 96, 112, False, False),
    (128, 240, 40, 28, True, False),
    (128, 112, 672, 14, False, True),
    (2, 23, 17, 13, True, True),
)


def _train_pointwise(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for n, c, k, size, gated, _ in _TRAINED:
        x, w = channels_last(n, c, size, size, dtype=dtype), plain(k, c, 1, 1, dtype=dtype)
        affine, gate = plain(2, c), plain(n, c) if gated else None
        for config in train_pointwise.configs(n * size * size, c, k, dtype):
            yield (
                f"{n}x{c}to{k}x{size}" + "+s" * gated,
                str(config),
                lambda x=x, w=w, affine=affine, gate=gate, config=config: (
                    train_pointwise.train_pointwise_conv2d(x, affine, gate, 4, w, True, config)
                ),
            )


def _trained(dtype: torch.dtype) -> Iterator[tuple[str, Any, Any, Tensor]]:
    """Layer, gradient of its output, what it read, and its weight."""
    for n, c, k, size, gated, behind in _TRAINED:
        x, g = (channels_last(n, i, size, size, dtype=dtype) for i in (c, k))
        per_image, gate = plain(n, k) if behind else None, plain(n, c) if gated else None
        gradient = maps.Gradient(g, g, plain(2, k), per_image, per_image, 4, plain(4, k))
        source = maps.Source(x, plain(2, c), gate, 4, plain(c))
        layer = f"{n}x{c}to{k}x{size}" + "+s" * gated
        yield layer, gradient, source, plain(k, c, 1, 1, dtype=dtype)


def _train_input(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for layer, gradient, source, w in _trained(dtype):
        (k, c), x = w.shape[:2], source.input
        for config in train_input.configs(x.numel() // c, c, k, dtype):
            yield (
                layer,
                str(config),
                lambda args=(gradient, source, w, x, True, config): train_input.input_gradient(
                    *args
                ),
            )


def _train_weight(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for layer, gradient, source, w in _trained(dtype):
        k, c = w.shape[:2]
        for config in train_weight.configs(source.input.numel() // c, c, k, dtype):
            yield (
                layer,
                str(config),
                lambda args=(gradient, source, k, True, config): train_weight.weight_gradient(
                    *args
                ),
            )


KERNELS = {
    "pointwise_conv2d": _pointwise,
    "pointwise_conv2d_pool": _pool,
    "conv2d_bias_act": _stem,
    "depthwise_conv2d": _depthwise,
    "depthwise_separable_conv2d": _separable,
    "squeeze_excite": _excite,
    "train_maps": _train_maps,
    "train_sums": _train_sums,
    "train_pointwise_conv2d": _train_pointwise,
    "train_pointwise_conv2d_input": _train_input,
    "train_pointwise_conv2d_weight": _train_weight,
}


# Which of a configuration's two architectures: both, or one in turn, or the other one.
SHARES = ("all", "half", "rest")


def usages(names: list[str], share: str, arch: int) -> list[Usage]:
    """Compiles the configurations for all layers, each for one of the dtypes in turn, and this
    share of the architectures."""
    found = []
    for name in names:
        for turn, (dtype_name, dtype) in enumerate(DTYPES.items()):
            for index, (layer, config, launch) in enumerate(KERNELS[name](dtype)):
                if index % len(DTYPES) != turn:
                    continue
                in_turn = arch == list(SHARED)[(index // len(DTYPES) + turn) % len(SHARED)]
                if share != "all" and in_turn != (share == "half"):
                    continue
                for kernel in compiled(launch, arch):
                    registers, spilled = resources(kernel)
                    found.append(
                        Usage(
                            f"{name} {kernel.metadata.name}",
                            layer,
                            dtype_name,
                            re.sub(r"\w+=|Config", "", config),
                            arch,
                            registers,
                            spilled,
                            kernel.metadata.shared,
                            32 * kernel.metadata.num_warps,
                            re.search(r"tt\.addptr .*i64", kernel.asm["ttir"]) is not None,
                        )
                    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="*", default=list(KERNELS), choices=list(KERNELS))
    parser.add_argument("--arch", nargs="*", type=int, default=list(SHARED), choices=list(SHARED))
    parser.add_argument(
        "--share",
        default="all",
        choices=SHARES,
        help="each configuration for both architectures, for one in turn, or for the other one",
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    of_arch = functools.partial(usages, options.kernels, options.share)
    # Processes that have no threads of this one's.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(options.arch), mp_context=context) as pool:
        found = [usage for several in pool.map(of_arch, options.arch) for usage in several]
    for usage in found:
        print(
            f"{usage.kernel:42s} {usage.layer:24s} {usage.dtype:9s} {usage.config:22s} "
            f"sm_{usage.arch} {usage.registers:4d} registers {usage.shared:7d} shared "
            f"{' '.join(usage.faults)}"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(usage) for usage in found]))
    broken = [usage for usage in found if usage.faults]
    print(f"{len(found)} kernels, {len(broken)} need too much")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
