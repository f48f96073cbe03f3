"""Other ways to run a module on a CPU, set up as their own documentation recommends.

Each function returns a :class:`~fastconv._timing.Contender` or raises :class:`UnavailableError`.
The dtype of the input is the precision to compute in: float32 or bfloat16.
"""

from __future__ import annotations

import copy
import importlib
import pathlib
import subprocess
import tempfile
import warnings
from typing import Any

import torch

from ._timing import Contender


class UnavailableError(Exception):
    """Says why a runtime cannot be compared here."""


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{name} is not installed") from error


def eager(
    module: torch.nn.Module,
    input: torch.Tensor,
    memory_format: torch.memory_format = torch.channels_last,
    name: str = "eager",
) -> Contender:
    """PyTorch as it comes, in one memory format."""
    module = copy.deepcopy(module).eval().to(input.dtype)
    if input.dim() == 4:
        module = module.to(memory_format=memory_format)  # type: ignore[call-overload]
        input = input.contiguous(memory_format=memory_format)
    return Contender(name, lambda: module(input), lambda: module(input))


def torch_compile(
    module: torch.nn.Module, input: torch.Tensor, name: str = "torch_compile"
) -> Contender:
    """torch.compile with frozen weights, channels_last."""
    from torch._inductor import config

    module = copy.deepcopy(module).eval().to(input.dtype)
    if input.dim() == 4:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        input = input.contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    compiled = torch.compile(module)
    try:
        with config.patch(freezing=True), torch.inference_mode():
            compiled(input)
    except Exception as error:  # no C++ compiler, an unsupported Python, ...
        raise UnavailableError(f"torch.compile failed: {str(error).splitlines()[0]}") from error
    return Contender(name, lambda: compiled(input), lambda: compiled(input))


def export_onnx(module: torch.nn.Module, input: torch.Tensor) -> bytes:
    """Float32 ONNX of the module in eval mode, with BatchNorm folded into the convolutions."""
    _optional("onnx")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but needs fewer packages than the new one.
        warnings.simplefilter("ignore")
        path = pathlib.Path(folder) / "model.onnx"
        torch.onnx.export(
            copy.deepcopy(module).eval(),
            (input.float().contiguous(),),
            path,
            input_names=["input"],
            output_names=["output"],
            dynamo=False,
        )
        return path.read_bytes()


def onnxruntime(
    model: bytes,
    input: torch.Tensor,
    threads: int,
    *,
    spinning: bool = True,
    name: str = "onnxruntime",
) -> Contender:
    """ONNX Runtime on its CPU provider; input and output stay bound, so no call copies them."""
    if input.dtype == torch.bfloat16:
        raise UnavailableError("ONNX Runtime has no bfloat16 convolution on the CPU")
    runtime = _optional("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    array = input.contiguous().numpy()
    bound_input = runtime.OrtValue.ortvalue_from_numpy(array)
    shape = [int(size) for size in session.get_outputs()[0].shape]
    output = torch.empty(shape)
    binding = session.io_binding()
    binding.bind_ortvalue_input("input", bound_input)
    binding.bind_output("output", "cpu", 0, "float32", shape, output.data_ptr())

    def call() -> object:
        return session.run_with_iobinding(binding)

    def result() -> torch.Tensor:
        call()
        return output.clone()

    return Contender(name, call, result, buffers=(array, output))


def openvino(
    model: bytes, input: torch.Tensor, threads: int, *, name: str = "openvino"
) -> Contender:
    """OpenVINO's CPU plugin, tuned for latency; input and output are float32 and not copied."""
    runtime = _optional("openvino")
    precision = "bf16" if input.dtype == torch.bfloat16 else "f32"
    core = runtime.Core()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        path.write_bytes(model)
        network = core.read_model(path)
        compiled = core.compile_model(
            network,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
            },
        )
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != precision:
        raise UnavailableError(f"OpenVINO computes in {used} on this CPU")
    array = input.float().contiguous().numpy()
    request = compiled.create_infer_request()
    request.set_input_tensor(runtime.Tensor(array, shared_memory=True))

    def call() -> object:
        return request.infer(share_outputs=True)

    def result() -> torch.Tensor:
        call()
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return Contender(name, call, result, buffers=array)


def ncnn(
    module: torch.nn.Module, input: torch.Tensor, threads: int, *, name: str = "ncnn"
) -> Contender:
    """ncnn on the CPU, of a module that pnnx converts; one image, its output float32."""
    runtime, numpy = _optional("ncnn"), _optional("numpy")
    if input.shape[0] != 1:
        raise UnavailableError("ncnn computes one image at a time")
    is_bfloat16 = input.dtype == torch.bfloat16
    network = runtime.Net()
    options = network.opt
    options.num_threads = threads
    options.lightmode = True
    options.use_packing_layout = True
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_packed = options.use_bf16_storage = is_bfloat16
    with tempfile.TemporaryDirectory() as folder:
        path = _convert_to_ncnn(module, input.float().contiguous(), pathlib.Path(folder))
        if network.load_param(f"{path}.param") != 0 or network.load_model(f"{path}.bin") != 0:
            raise UnavailableError("ncnn cannot load what pnnx converted")
    array = input.float().contiguous().numpy()
    image = runtime.Mat(array[0])

    def call() -> Any:
        extractor = network.create_extractor()
        extractor.input("in0", image)
        return extractor.extract("out0")[1]

    def result() -> torch.Tensor:
        return torch.from_numpy(numpy.array(call()))[None]

    return Contender(name, call, result, buffers=array)


def _convert_to_ncnn(
    module: torch.nn.Module, input: torch.Tensor, folder: pathlib.Path
) -> pathlib.Path:
    """Writes the module for ncnn, with float32 weights; returns the path without its suffix."""
    pnnx = _optional("pnnx")
    path = folder / "model.pt"
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but pnnx reads nothing else
        torch.jit.trace(copy.deepcopy(module).eval(), input).save(path)
    shape = ",".join(str(size) for size in input.shape)
    command = [pnnx.EXEC_PATH, path.name, f"inputshape=[{shape}]", "fp16=0"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnavailableError(f"pnnx cannot convert the module: {error}") from error
    return folder / "model.ncnn"
