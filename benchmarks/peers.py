"""The rivals of a module: the same weights on everything else that runs on this CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch

from fastconv import _runtimes
from fastconv._runtimes import UnavailableError
from fastconv._timing import Contender

OURS = "fastconv"
SWAPPED = "fastconv_swap"  # the original after fastconv.swap
EAGER = ("eager", "eager_channels_last")
RUNTIMES = ("onnxruntime", "openvino", "ncnn")
RIVALS = (*EAGER, "torch_compile", *RUNTIMES)
# What the ratios of the results are taken against; spinning is ONNX Runtime's default.
FASTEST_OF = (*RUNTIMES, "onnxruntime_no_spinning")


def rivals(
    module: torch.nn.Module, input: torch.Tensor, names: Iterable[str] = RIVALS
) -> tuple[list[Contender], dict[str, str]]:
    """The rivals that can run here, and for the others the reason why not.

    ONNX Runtime runs twice with more than one thread, with and without spinning threads: which is
    faster depends on the machine, and it is measured at its best. All compute in the dtype of the
    input; OpenVINO and ncnn take and give float32 also then, as their users do.
    """
    threads = torch.get_num_threads()
    names = list(names)
    onnx = functools.cache(lambda: _runtimes.export_onnx(module, input))
    builders: dict[str, Callable[[], Contender]] = {
        "eager": lambda: _runtimes.eager(module, input, torch.contiguous_format),
        "eager_channels_last": lambda: _runtimes.eager(module, input, name="eager_channels_last"),
        "torch_compile": lambda: _runtimes.torch_compile(module, input),
        "onnxruntime": lambda: _runtimes.onnxruntime(onnx(), input, threads),
        "openvino": lambda: _runtimes.openvino(onnx(), input, threads),
        "ncnn": lambda: _runtimes.ncnn(module, input, threads),
        "onnxruntime_no_spinning": lambda: _runtimes.onnxruntime(
            onnx(), input, threads, spinning=False, name="onnxruntime_no_spinning"
        ),
    }
    if threads > 1 and "onnxruntime" in names:
        names.append("onnxruntime_no_spinning")
    found, skipped = [], {}
    for name in names:
        try:
            found.append(builders[name]())
        except UnavailableError as reason:
            skipped[name] = str(reason)
    return found, skipped
