"""Measures one thing in a process of its own and writes JSON: python -m benchmarks.measure ...

A fresh process for each: thread pools and compiled code of one setting do not touch the next.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from pathlib import Path
from typing import Any

import torch

from fastconv._profile import profile as fastconv_profile
from fastconv._progress import Progress
from fastconv._resolve import Network

from . import machine, peers, timing, training
from .bandwidth import measure_bandwidths
from .layers import layers, random_input, unfitted_network
from .memory import resident
from .networks import Setting, fast_network, find


def _numbers(comparison: timing.Comparison) -> dict[str, Any]:
    return {
        "id": comparison.work.id,
        "threads": comparison.work.threads,
        "dtype": str(comparison.work.input.dtype).removeprefix("torch."),
        "mflop": round(comparison.work.flops / 1e6, 2),
        "peak_gflops": comparison.peak_gflops,
        "rows": {name: comparison.row(name) for name in comparison.timings},
        "skipped": comparison.skipped,
    }


def _ratios(comparison: timing.Comparison) -> dict[str, Any]:
    return {
        "isa": timing.isa_name(),
        "ratio_to_fastest_runtime": comparison.ratio(peers.OURS, peers.FASTEST_OF),
        "ratio_to_eager_channels_last": comparison.ratio(peers.OURS, ["eager_channels_last"]),
    }


def measure_network(setting: Setting, quick: bool) -> dict[str, Any]:
    """One network against all rivals."""
    names = [name for name in peers.RIVALS if not (quick and name == "torch_compile")]
    comparison = timing.compare(setting.work(), names, timing.QUICK if quick else setting.speed)
    about = {"network": setting.network, "batch": setting.batch, "size": setting.size}
    return _numbers(comparison) | about | _ratios(comparison)


def measure_isa(setting: Setting, quick: bool) -> dict[str, Any]:
    """One network at every ISA level of this CPU."""
    work = setting.isa_work()
    if not work.ours:
        return {"id": setting.id, "rows": {}}
    return _numbers(timing.compare(work, (), timing.QUICK if quick else timing.FULL))


def measure_layers(op: str, quick: bool) -> list[dict[str, Any]]:
    """Every layer of one op, one thread, batch 1."""
    names = [name for name in peers.RIVALS if not (quick and name == "torch_compile")]
    found = layers(op)[:1] if quick else layers(op)
    results = []
    for layer in found:
        comparison = timing.compare(layer.work(), names, timing.QUICK if quick else layer.speed)
        about = {"op": op, "layer": layer.name, "mbytes": round(layer.bytes / 1e6, 4)}
        results.append(about | _numbers(comparison) | _ratios(comparison))
    return results


def measure_memory(setting: Setting, contender: str) -> dict[str, float]:
    """Resident memory of inference: what it grows by at its peak, and the process's peak, in MB."""
    torch.set_num_threads(setting.threads)
    module = unfitted_network(setting.network)
    input = random_input(setting.shape)
    if contender == peers.OURS:
        model = fast_network(setting.network, module)
        del module
    elif contender == "eager_channels_last":
        model = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        model, input = module, input.contiguous()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    with torch.inference_mode():
        for _ in range(5):
            model(input)
    peak = resident("VmHWM")
    return {"growth_mb": round(peak - before, 1), "peak_mb": round(peak, 1)}


def measure_profile(setting: Setting, quick: bool) -> dict[str, Any]:
    """Where the time of one network goes, step by step."""
    model = fast_network(setting.network, unfitted_network(setting.network))
    with Progress() as progress:
        profile = fastconv_profile(
            Network(setting.network, "fastconv", model),
            batch=setting.batch,
            size=setting.size,
            threads=setting.threads,
            rounds=2 if quick else 30,
            dtype=setting.dtype,
            progress=progress,
        )
    return {"id": setting.id} | profile.to_dict()


KINDS = (
    "network",
    "isa",
    "layers",
    "memory",
    "profile",
    "bandwidths",
    "training",
    "training_memory",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("subject", help="the id of a network setting, or an op")
    parser.add_argument("--contender", choices=(peers.OURS, *peers.EAGER), help="for memory")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.kind == "layers":
        result: Any = measure_layers(arguments.subject, arguments.quick)
    elif arguments.kind == "training":
        result = training.measure(training.find(arguments.subject), arguments.quick)
    elif arguments.kind == "training_memory":
        result = training.measure_memory(training.find(arguments.subject), arguments.contender)
    elif arguments.kind == "bandwidths":
        caches = machine.machine()["caches"]
        result = measure_bandwidths(caches, seconds=0.05 if arguments.quick else 1.0)
    else:
        setting = find(arguments.subject)
        if arguments.kind == "memory":
            result = measure_memory(setting, arguments.contender)
        else:
            function = {
                "network": measure_network,
                "isa": measure_isa,
                "profile": measure_profile,
            }[arguments.kind]
            result = function(setting, arguments.quick)
    arguments.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
