"""Backends and instruction sets to test on, and NaN in all memory that nobody wrote to."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"

import fastconv
from fastconv import _library, backend
from fastconv._torchvision import import_torchvision
from fastconv.classify import ClassifyError, find_weights
from fastconv.classify import demo_photos as find_demo_photos

from . import cases

# What --device cuda runs; everything else is about the CPU, its packed weights, files or commands.
ON_CUDA = {f"test_{op}" for op in fastconv.ops.__all__}
ON_CUDA |= {"test_gpu_graphs", "test_gpu_kernels", "test_gpu_train"}
ON_CUDA |= {"test_large_tensors", "test_on_gpu"}
ONLY_ON_CUDA = {"test_large_tensors", "test_on_gpu"}
# Of the former, what says why the CPU's kernels refuse a call.
OF_THE_CPU = {"test_a_multiplier_is_not_native", "test_groups_and_dilation_are_not_native"}

ISA_LEVELS = {"scalar": 0, "avx2": 1, "avx512": 2, "neon": 3}


def usable_levels() -> list[str]:
    """The instruction sets of this CPU, asked from the library by trying."""
    usable = []
    for name, level in ISA_LEVELS.items():
        with contextlib.suppress(RuntimeError), backend.use_isa(level):
            usable.append(name)
    return usable


LEVELS = usable_levels() if _library.is_loaded() else []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="of the ops' tensors")


def pytest_configure(config: pytest.Config) -> None:
    # Processes side by side share the cores.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    cases.DEVICE = config.getoption("--device")
    if cases.DEVICE == "cpu":
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda needs a GPU that PyTorch can use")
    # What makes cuBLAS deterministic; read when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def off_device(file: str, test: str, device: str) -> str | None:
    """Why a test does not run on this device, None if it does."""
    if device == "cpu":
        return "runs with --device cuda" if file in ONLY_ON_CUDA else None
    return None if file in ON_CUDA and test not in OF_THE_CPU else "has nothing to do with a GPU"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        name = getattr(item, "originalname", item.name)
        if item.path.parent == config.rootpath / "tests":
            reason = off_device(item.path.stem, name, cases.DEVICE)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random numbers are the same ones in whatever order and process tests run."""
    torch.manual_seed(0)


def refusal(error: BaseException | None) -> str | None:
    """What a backend said of a call that it cannot run, also where a compiler heard it."""
    while error is not None and not isinstance(error, fastconv.BackendError):
        error = error.__cause__
    return None if error is None else str(error)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """On a GPU, skips what one of its backends has no kernel for; the other ones have."""
    torch.manual_seed(1)  # not the fixtures' numbers again
    try:
        return (yield)
    except Exception as error:
        reason = refusal(error)
        if cases.DEVICE == "cuda" and reason and "any_backend" in item.fixturenames:
            pytest.skip(reason)
        raise


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """any_backend: the reference, and the native ops with each instruction set that this CPU has;
    or all that there is for a GPU."""
    if "any_backend" in metafunc.fixturenames:
        names = ["reference", *(f"native-{level}" for level in LEVELS or ["scalar"])]
        if cases.DEVICE == "cuda":
            names = ["reference", "auto", "triton", "cuda"]
        metafunc.parametrize("any_backend", names, indirect=True)


@contextlib.contextmanager
def running_on(name: str) -> Iterator[str]:
    """Runs calls on a backend, or "native-<instruction set>"."""
    kind, _, level = name.partition("-")
    if kind == "native" and cases.DEVICE == "cuda":
        kind, level = "auto", ""
    if kind == "native" and not LEVELS:
        pytest.skip(f"no native ops: {_library.load_error()}")
    isa = backend.use_isa(ISA_LEVELS[level]) if level else contextlib.nullcontext()
    with fastconv.use_backend(kind), isa:
        yield name


@pytest.fixture
def any_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the backends for the device of the tests."""
    with running_on(request.param) as name:
        yield name


@pytest.fixture
def device() -> str:
    """Of the tensors of the tests."""
    return cases.DEVICE


@pytest.fixture
def native() -> Iterator[str]:
    """The native ops with the best instruction set."""
    with running_on("native") as name:
        yield name


@pytest.fixture
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter, which makes its language anew at every call of a function in a kernel,
    does it once: most of its time."""
    if not backend.interprets():
        return
    from triton.runtime import interpreter

    patched = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The kernel that is interpreted has done it for the modules that it sees.
        module = self.fn.__module__
        if module.startswith("triton.") and module not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(module)
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


@pytest.fixture(scope="session")
def torchvision() -> Any:
    """The package, whose networks ours are compared with."""
    module = import_torchvision()
    if module is None:
        pytest.skip("torchvision is not installed")
    return module


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For PyTorch's small operations, which many threads slow down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pretrained_weights() -> str:
    """The file of the published MobileNetV2."""
    try:
        return str(find_weights(None))
    except ClassifyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def demo_photos() -> list[Path]:
    """Real photos, of installed packages."""
    try:
        return find_demo_photos()
    except ClassifyError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Without TF32: results are compared with those of float32."""
    owners = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [owner.allow_tf32 for owner in owners]
    for owner in owners:
        owner.allow_tf32 = False
    yield
    for owner, allowed in zip(owners, before, strict=True):
        owner.allow_tf32 = allowed


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Fills every new tensor with NaN, also those that the C++ ops allocate."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
