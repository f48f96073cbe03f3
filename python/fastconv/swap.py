"""The drop-in swap: a model's own blocks become native, and everything else about it stays."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import backend as backends
from ._sequence import is_sequential
from ._swapped import (
    Form,
    Swapped,
    Verdicts,
    evaluating,
    find_forms,
    remember,
    swapped_class,
    verified_error,
)
from .nn._fused import FusedModule, original_class
from .nn._parts import is_norm, norm_activation, read_stage
from .nn._unit import Unit
from .summary import drop_hooks, unchanged

Model = TypeVar("Model", bound=nn.Module)
Filter = Callable[[nn.Module, str], bool]

_STRIDES = "_fastconv_strides"  # that the weights had


def swap(
    model: Model,
    *,
    backend: str = "auto",
    filter_fn: Filter | None = None,
    memory_format: torch.memory_format | None = torch.channels_last,
    dtype: torch.dtype | None = None,
    verify: bool = False,
    example_inputs: Any = None,
) -> Model:
    """Makes a model's convolutions and blocks native, in place; says so if it finds none.

    Blocks are recognized by their structure: inverted residuals, depthwise-separable and residual
    blocks, squeeze-and-excitations, a convolution with its BatchNorm and activation, whatever their
    classes are called; where the structure leaves a doubt, a copy with random weights is run and
    compared. Parameters, buffers, keys of the state_dict, submodules, names, hooks and modes stay
    what they are: each swapped module becomes an object of a subclass of its class.

    In eval mode, where no gradient is wanted, it runs native ops on folded and packed weights,
    which are made anew when a parameter, a statistic or a submodule changes. Everywhere else
    (training, float64, other devices than CPU and GPU, export, tracing, hooks inside) its own
    forward runs.

    Args:
        model: any module, in train or eval mode
        backend: as for :func:`use_backend`, for this model's blocks where no other is active
        filter_fn: called with a module and its name; False leaves it and all inside alone
        memory_format: for the weights of what is swapped. Outputs are then channels_last, as
            those of every network in that format: ``flatten`` them, where ``view`` would need
            contiguous ones. None leaves the weights, and contiguous inputs give contiguous
            outputs, at the price of conversions.
        dtype: converts the model to it first. bfloat16 has kernels of its own where the CPU has
            AVX512_BF16; elsewhere, and for float16, the native kernels compute in float32
        verify: compare each swapped block with its own forward, on `example_inputs`; the errors are
            in the report
        example_inputs: a tensor, or a tuple of the arguments of the model; by default one random
            image of 224 x 224

    Returns:
        the same model

    Raises:
        TypeError: if the model is not a torch.nn.Module.
        ValueError: for an unknown backend.
        RuntimeError: with `verify`, if a block computes something else than its own forward.

    Example:
        >>> model = fastconv.swap(torchvision.models.mobilenet_v2().eval())
        >>> print(fastconv.report(model))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"swap: model must be a torch.nn.Module, got {type(model).__name__}")
    backends.checked(backend, "swap: backend")
    if dtype is not None:
        model.to(dtype)
    before = {id(m) for m in model.modules() if isinstance(m, Swapped)}
    with evaluating(model):
        _swap_inside(model, "", filter_fn or (lambda module, name: True), {})
    swapped = [m for m in model.modules() if isinstance(m, Swapped)]
    for module in swapped:
        remember(module, backend=backend, keeps_format=memory_format is None)
    if not any(isinstance(module, FusedModule) for module in model.modules()):
        warnings.warn(
            f"swap: {type(model).__name__} has nothing that fastconv could run: it is unchanged. "
            "fastconv.report(model) says why",
            stacklevel=2,
        )
        return model
    if memory_format is not None:
        _lay_out(model, [m for m in swapped if id(m) not in before], memory_format)
    if verify:
        _verify(model, example_inputs)
    return model


def restore(model: Model) -> Model:
    """Undoes :func:`swap`, exactly: classes, and where in memory each weight's elements lie.

    Args:
        model: any module; the values of parameters and buffers are not touched

    Returns:
        the same model

    Raises:
        TypeError: if the model is not a torch.nn.Module.
        RuntimeError: if a swapped module has got another class since, such as a parametrization's.

    Example:
        >>> model = fastconv.restore(fastconv.swap(model))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    swapped = [module for module in model.modules() if isinstance(module, Swapped)]
    for module in swapped:
        if "_fastconv_original" not in type(module).__dict__:
            raise RuntimeError(
                "restore: modules must have the classes that swap gave them, got a "
                f"{type(module).__name__} with another, such as a parametrization's"
            )
    for module in swapped:
        strides = module.__dict__.get(_STRIDES, {})
        for name, weight in _weights(module):
            if name in strides and len(strides[name]) == weight.dim():
                with torch.inference_mode(False):
                    data = weight.data
                    weight.data = data.new_empty_strided(data.shape, strides[name]).copy_(data)
        module._forget()
        original = original_class(module)
        for name in [n for n in module.__dict__ if n.startswith("_fastconv_")]:
            del module.__dict__[name]
        module.__dict__.pop("_backend", None)
        module.__class__ = original
    return model


def fold(model: Model) -> Model:
    """A copy to deploy: swapped, in eval mode, its BatchNorms folded for good.

    The keys of the state_dict are no longer the model's: folded norms are gone (their activations
    stay), convolutions have biases. It cannot be trained as the model can, and what is read
    between a convolution and its norm is no longer what it was.

    Args:
        model: swapped or not; it is not changed

    Raises:
        RuntimeError: as :func:`restore`.

    Example:
        >>> deployed = fastconv.fold(model)
    """
    deployed = swap(copy.deepcopy(model).eval())
    parents = {id(child): (m, n) for m in deployed.modules() for n, child in m._modules.items()}
    found = [u for m in deployed.modules() if isinstance(m, Swapped) for u in _units_of(m)]
    # A convolution is also swapped alone, for those who call it alone.
    units = [unit for unit in found if unit.norm is not None]
    uses = Counter(id(module) for unit in units for module in (unit.convolution, unit.norm))
    places = Counter(id(child) for m in deployed.modules() for child in m._modules.values())
    with torch.no_grad():
        for unit in units:
            pair = unit.convolution, unit.norm
            # What is used twice is folded nowhere.
            once = all(uses[id(m)] == 1 and places[id(m)] == 1 for m in pair)
            if once and unit.norm is not None and is_norm(unit.norm):
                _fold_unit(unit.convolution, unit.norm, parents)
    for module in deployed.modules():
        if isinstance(module, FusedModule):
            module._forget()
    return swap(restore(deployed))


def _units_of(module: Swapped) -> list[Unit]:
    """Each once, also those that two methods of the module run."""
    found = [unit for recipe in module.forms().values() for unit in recipe.units]
    return list({id(unit.convolution): unit for unit in found}.values())


def _fold_unit(
    convolution: nn.Module, norm: nn.Module, parents: dict[int, tuple[nn.Module, str]]
) -> None:
    stage = read_stage(convolution, norm)
    if stage is None or stage.bias is None or id(norm) not in parents:
        return
    convolution.weight = nn.Parameter(stage.weight.detach(), requires_grad=False)
    convolution.bias = nn.Parameter(stage.bias.detach(), requires_grad=False)
    owner, name = parents[id(norm)]
    owner._modules[name] = norm_activation(norm) or nn.Identity()


def _swap_inside(module: nn.Module, name: str, wanted: Filter, verdicts: Verdicts) -> None:
    """Swaps a module, or what it can inside: blocks before their parts, sequences after theirs."""
    if isinstance(module, Swapped):
        _swap_children(module, name, wanted, verdicts)
    scripted = isinstance(module, torch.jit.ScriptModule)
    if scripted or isinstance(module, FusedModule) or not wanted(module, name):
        return
    found = find_forms(module, verdicts)
    form = found.get("forward")
    if is_sequential(module) or form is None or form.order is not None:
        _swap_children(module, name, wanted, verdicts)
        found = find_forms(module, verdicts)
    elif module._modules.get("downsample") is not None:  # a residual block's other branch
        inner = f"{name}.downsample" if name else "downsample"
        _swap_inside(module.downsample, inner, wanted, verdicts)  # type: ignore[arg-type]
    if found:
        _take(module, found)


def _swap_children(module: nn.Module, name: str, wanted: Filter, verdicts: Verdicts) -> None:
    for child_name, child in module._modules.items():
        if child is not None:
            inner = f"{name}.{child_name}" if name else child_name
            _swap_inside(child, inner, wanted, verdicts)


def _take(module: nn.Module, forms: dict[str, Form]) -> None:
    if _copies_in_its_own_way(type(module)) or _has_our_names(module):
        return
    try:
        module.__class__ = swapped_class(type(module), tuple(forms))
    except TypeError:  # a class whose objects cannot change theirs, such as a scripted module's
        return
    remember(module, forms=forms)


def _has_our_names(module: nn.Module) -> bool:
    """Whether a name of ours would hide one of the module's."""
    ours = set(dir(Swapped)) - set(dir(nn.Module))
    places = (module.__dict__, module._modules, module._parameters, module._buffers)
    taken = set(dir(type(module))) - set(dir(nn.Module))
    return bool(ours & taken) or any(ours & set(place) for place in places)


def _copies_in_its_own_way(kind: type) -> bool:
    """Whether objects of this class, such as a GraphModule, could not be copied as another's."""
    names = {"__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__"}
    return any(names & base.__dict__.keys() for base in kind.__mro__ if base is not object)


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, inner in module.named_modules():
        if isinstance(inner, nn.Conv2d) and isinstance(inner.weight, nn.Parameter):
            yield name, inner.weight


def _lay_out(
    model: nn.Module, modules: list[nn.Module], memory_format: torch.memory_format
) -> None:
    """Only weights that have their memory for themselves: others would be torn apart."""
    places = Counter(
        tensor.untyped_storage().data_ptr()
        for tensor in (*model.parameters(), *model.buffers())
        if not nn.parameter.is_lazy(tensor)
    )
    with torch.inference_mode(False):
        for module in modules:
            strides = module.__dict__[_STRIDES] = {}
            for name, weight in _weights(module):
                if nn.parameter.is_lazy(weight) or weight.is_contiguous(
                    memory_format=memory_format
                ):
                    continue
                storage = weight.untyped_storage()
                whole = storage.nbytes() == weight.numel() * weight.element_size()
                if whole and places[storage.data_ptr()] == 1 and not weight.is_shared():
                    strides[name] = weight.stride()
                    weight.data = weight.data.contiguous(memory_format=memory_format)


def _verify(model: nn.Module, example_inputs: Any) -> None:
    """Runs the model once, each swapped module both ways on the same input."""
    inputs = example_inputs
    if inputs is None:
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        generator = torch.Generator().manual_seed(0)
        shape = 1, 3 if first is None else first.in_channels, 224, 224
        inputs = torch.randn(shape, generator=generator)
        if first is not None:
            inputs = inputs.to(first.weight.device)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    busy = False
    errors: dict[nn.Module, float | None] = {}

    def compare(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal busy
        if not busy and isinstance(module, Swapped) and len(args) == 1:
            busy = True
            try:
                errors[module] = verified_error(module, args[0])
            finally:
                busy = False

    with unchanged(model), evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        drop_hooks(model)
        for module in model.modules():
            if isinstance(module, Swapped):
                module.register_forward_pre_hook(compare)
        model(*arguments)
    for module, error in errors.items():
        remember(module, error=error)
