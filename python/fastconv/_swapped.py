"""A module that was swapped: its class is a subclass, made here, of the class that it had.

Its attributes, parameters, submodules and hooks stay where they are, so everything that looks at
the module finds what it found before. Only its forward (or forward_features) is another: native
where it can be, else the one of its own class.
"""

from __future__ import annotations

import copy
import functools
import itertools
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._order import Watched, call_order, fingerprint, noting
from ._recipes import Recipe, recipes, sequence_recipe
from ._sequence import Part, Pool
from .activation import of_module
from .nn._fused import PLAIN, FusedModule, Native, Run, flags, only_drops, original_class
from .nn._parts import is_convolution, is_norm, pads_like_tensorflow
from .nn._train import run_row, train_limit
from .nn._unit import TrainRow, is_identity

_FORMS = "_fastconv_forms"
_METHODS = ("forward", "forward_features")  # the second in timm's networks

# Of the largest output: the two ways round differently, and no difference in meaning is so small.
_AGREEMENT = 1e-3


class Form(NamedTuple):
    """How a method of a module was read.

    Args:
        place: of the recipe, among those of its structure
        order: the names of the children that the method calls one after the other, "" for a global
            pooling; None where a recipe of the structure was found
        structure: what the choice was made for; None where the structure leaves no doubt
        trains: whether the method computes the recipe's row in train mode
    """

    place: int
    order: tuple[str, ...] | None
    structure: tuple[Any, ...] | None
    trains: bool = False


class Swapped(FusedModule):
    """Put in front of a module's class by :func:`swapped_class`, which adds the native methods."""

    _fastconv_original: Any

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Does nothing: the class behind may register its subclasses, and this is none of them."""

    def recipe(self, method: str = "forward") -> Recipe | None:
        """The recipe that was found to compute what a method of this module does."""
        form: Form | None = self.__dict__.get(_FORMS, {}).get(method)
        if form is None or (form.structure is not None and form.structure != _structure(self)):
            return None
        if form.order is not None:
            return sequence_recipe(_parts(self, form.order))
        return next(itertools.islice(recipes(self), form.place, None), None)

    def forms(self) -> dict[str, Recipe]:
        """The recipes of all methods that are native."""
        found = {method: self.recipe(method) for method in self.__dict__.get(_FORMS, {})}
        return {method: recipe for method, recipe in found.items() if recipe is not None}

    def _may_choose(self, module: nn.Module) -> bool:
        return not _is_layer(module)

    def _native_run(self, input: Tensor, kind: str) -> Run | None:
        run = super()._native_run(input, kind)
        if run is None or not self.__dict__.get("_fastconv_keeps_format", False):
            return run
        return functools.partial(_keeping_format, run)

    def _plain_forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._fastconv_original.forward(self, input)
        return output

    def _runs_natively_as_it_is(self) -> bool:
        return "forward" in self.__dict__.get(_FORMS, {})

    def _train_row(self) -> TrainRow | None:
        form: Form | None = self.__dict__.get(_FORMS, {}).get("forward")
        recipe = None if form is None or not form.trains else self.recipe()
        if recipe is None or recipe.row is None:
            return None
        dropping = [m for m in self.modules() if only_drops(m)]
        return recipe.row._replace(drop=dropping[0] if len(dropping) == 1 else None)

    def _layers(self) -> list[nn.Module]:
        return [m for m in self.modules() if m is not self and isinstance(m, FusedModule)]

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        recipe = self.recipe(kind)
        return None if recipe is None else recipe.build(pack)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class cannot be found by its name: it is made again from the one that can be.
        methods = tuple(self.__dict__.get(_FORMS, {}))
        return _rebuild, (original_class(self), methods), self.__getstate__()


def swapped_class(original: type, methods: Sequence[str]) -> type:
    """The subclass of `original` whose `methods` are native; always the same one."""
    subclasses: list[type] = original.__subclasses__()
    for subclass in subclasses:
        ours = subclass.__bases__[0] is Swapped and subclass.__dict__["_methods"] == tuple(methods)
        same = [getattr(original, method) for method in methods]
        if ours and subclass.__dict__["_plain"] == same:
            return subclass
    names: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_fastconv_original": original,
        "_methods": tuple(methods),
        "_plain": [getattr(original, method) for method in methods],
        "forward": original.forward,  # type: ignore[attr-defined]
    }
    names |= {method: _native_method(original, method) for method in methods}
    return type(original.__name__, (Swapped, original), names)


def _native_method(original: type, method: str) -> Callable[..., Any]:
    """The native method, with the signature and documentation of the class's own."""
    known = getattr(original, method)

    @functools.wraps(known)
    def run(self: Swapped, *args: Any, **kwargs: Any) -> Any:
        plain = getattr(original, method)
        single = len(args) == 1 and len(kwargs) == 0 and isinstance(args[0], Tensor)
        if single and plain is known:  # else somebody has changed the class since
            native = self._native_run(args[0], method)
            if native is not None:
                return native(args[0])
        return plain(self, *args, **kwargs)

    return run


def _rebuild(original: type, methods: Sequence[str]) -> nn.Module:
    kind: Any = swapped_class(original, methods)
    module: nn.Module = kind.__new__(kind)
    return module


Verdicts = dict[tuple[Any, ...], bool]
"""Of :func:`_agrees`, by what distinguishes modules and recipes."""


def find_forms(module: nn.Module, verdicts: Verdicts) -> dict[str, Form]:
    """For each method that has a native form, how :class:`Swapped` can read it.

    Runs a copy of the module, or the module with stubs for its children, on random inputs; neither
    the module nor its children are called. Of modules that are alike but for their weights, one
    is run: the networks that are swapped repeat their blocks.
    """
    found: dict[str, Form] = {}
    likeness = functools.cache(lambda: _likeness(module))

    def agrees(index: int, channels: int, trains: bool) -> bool:
        key = (index, trains, *likeness())
        if key not in verdicts:
            verdicts[key] = _agrees(module, index, channels, trains)
        return verdicts[key]

    for index, recipe in enumerate(recipes(module)):
        if recipe.certain:
            return {"forward": Form(index, None, None, True)}
        if agrees(index, recipe.channels, False):
            trains = recipe.row is not None and agrees(index, recipe.channels, True)
            return {"forward": Form(index, None, _structure(module), trains)}
    for method in _METHODS:
        if callable(getattr(module, method, None)) and len(module._modules) > 1:
            order = call_order(module, getattr(original_class(module), method))
            if order is not None and sequence_recipe(_parts(module, order)) is not None:
                found[method] = Form(0, order, _structure(module))
    return found


# What a module has because it is one. Hooks do not run here, and all is in eval mode.
_OF_ALL_MODULES = frozenset(nn.Module().__dict__)
_COMPARABLE = PLAIN | {torch.dtype, torch.device, torch.Size}


def _likeness(module: nn.Module) -> tuple[Any, ...]:
    """Equal for modules that do the same with the same weights. What cannot be compared counts as
    different unless it is the same object."""
    seen: dict[int, int] = {}  # modules and tensors that occur twice, by their first place
    found: list[Any] = []

    def place(one: object) -> int:
        return seen.setdefault(id(one), len(seen))

    for name, part in module.named_modules(remove_duplicate=False):
        found += (name, place(part), type(part), original_class(part).forward)
        for key, tensor in (*part._parameters.items(), *part._buffers.items()):
            if key == "num_batches_tracked":
                continue
            random = tensor is not None and tensor.is_floating_point()
            facts = (type(tensor), tensor.shape, tensor.dtype) if random else (id(tensor),)
            found += (key, place(tensor), *facts)
        drops = only_drops(part)  # which does nothing here, with whatever probability
        for key, value in part.__dict__.items():
            if key not in _OF_ALL_MODULES:
                found += (key, _comparable(value > 0 if drops and type(value) is float else value))
    return tuple(found)


def _comparable(value: Any) -> Any:
    """Hashable, and equal for values that no forward can tell apart."""
    if type(value) in _COMPARABLE:
        return type(value), value
    if isinstance(value, (tuple, list)):
        return type(value), *map(_comparable, value)
    if type(value) is dict:
        return dict, *((_comparable(k), _comparable(v)) for k, v in value.items())
    return id(value)


def _parts(module: nn.Module, order: Sequence[str]) -> list[Part]:
    children = module._modules
    found: list[Part] = []
    for name in order:
        child = children.get(name)
        found.append(Pool() if name == "" else nn.Identity() if child is None else child)
    return found


def _structure(module: nn.Module) -> tuple[Any, ...]:
    """What the choice of a recipe depends on beside the numbers in parameters and buffers."""
    return tuple(
        (name, kind, kind.forward, *(() if _is_layer(m) else _facts(m)))
        for name, m in module.named_modules()
        for kind in (original_class(m),)
    )


_FUNCTIONS = frozenset((types.FunctionType, types.MethodType, functools.partial))


def _facts(module: nn.Module) -> tuple[Any, ...]:
    """What a forward may choose by: plain attributes, and methods that were put on the object."""
    kind = type(module)
    patched = [n for n, v in module.__dict__.items() if type(v) in _FUNCTIONS and hasattr(kind, n)]
    return *flags(module), *sorted(patched)


def _is_layer(module: nn.Module) -> bool:
    """Whether this is read by itself, and its attributes are watched as a layer's."""
    known = is_convolution(module) or is_norm(module) or of_module(module) is not None
    own = isinstance(module, FusedModule) and not isinstance(module, Swapped)
    return known or own or is_identity(module)


def _keeping_format(run: Run, input: Tensor) -> Tensor:
    output = run(input)
    if output.dim() == 4 and input.is_contiguous():
        return output.contiguous()
    return output


def _agrees(module: nn.Module, index: int, channels: int, trains: bool) -> bool:
    """Whether a recipe, or its row in train mode, computes what the module's own forward does, with
    any weights."""
    if any(_has_containers(part) for part in module.modules()):
        return False
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)
            probe = _randomized_copy(module)
            recipe = list(recipes(probe))[index]
            run = _training(probe, recipe.row) if trains else _inferring(recipe)
            if run is None:
                return False
            forward = original_class(probe).forward
            inputs = list(_probes(channels, trains))
            before = fingerprint(probe)
            # timm's convolution has to look at the shape, to pad.
            may_look = any(pads_like_tensorflow(original_class(m)) for m in probe.modules())
            original = functools.partial(forward, probe)
            expected = [_outcome(original, input, may_look) for input in inputs]
            # Where both refuse every input, they have nothing in common but that.
            if all(output is None for output in expected) or fingerprint(probe) != before:
                return False
            return all(
                _same(output, _outcome(run, input, True))
                for output, input in zip(expected, inputs, strict=True)
            )
    except Exception:  # a copy that cannot be made, whatever its class raises
        return False


def _inferring(recipe: Recipe) -> Run | None:
    native = recipe.build(False)
    return None if native is None else native.run()


def _training(probe: nn.Module, row: TrainRow | None) -> Run | None:
    """Puts a probe in train mode, but for what drops; a norm then takes its statistics from the
    batch, and the running ones do not matter."""
    for part in probe.modules():
        part.training = not only_drops(part)
    if row is None or train_limit(probe, row, torch.empty(0)) is not None:
        return None
    return functools.partial(run_row, row)


def _has_containers(module: nn.Module) -> bool:
    """Whether there are settings in which a change could not be seen."""
    return any(
        type(value) in (dict, list, set) and not name.startswith("_")
        for name, value in module.__dict__.items()
    )


def _probes(channels: int, trains: bool) -> Iterator[Tensor]:
    """Inputs that tell apart what a block may do: of even and odd sizes, smaller than kernels, and
    in ranges on both sides of where activations bend. What sizes do is seen in eval mode: two are
    enough for train mode after it."""
    sizes = ((9, 11, 1.0), (17, 14, 64.0), (12, 10, 8.0), (5, 4, 1.0))
    for height, width, scale in sizes[:2] if trains else sizes:
        yield scale * torch.randn(2, channels, height, width)


def _outcome(function: Callable[..., Any], input: Tensor, may_look: bool) -> Any:
    """What a function returns; None where it refuses the input.

    NaN if it changes its input, returns a part of it, or looks at its shape: it may then do
    something else for others.
    """
    given = input.clone()
    try:
        with noting() as called:
            output = function(given if may_look else given.as_subclass(Watched))
            looked = any(one in _SHAPES for one in called)
    except Exception:
        return None
    if not isinstance(output, Tensor):
        return output
    output = output.as_subclass(Tensor)
    shared = output.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    if shared or looked or not torch.equal(given, input):
        return torch.full_like(output, torch.nan)
    return output


_SHAPES = (Tensor.shape.__get__, Tensor.size, Tensor.stride, Tensor.numel)  # type: ignore[attr-defined]


def _same(expected: Any, actual: Tensor | None) -> bool:
    if expected is None or actual is None:
        return expected is None and actual is None
    if not isinstance(expected, Tensor) or expected.shape != actual.shape:
        return False
    # Written so that NaN is no agreement.
    return bool((actual - expected).abs().max() <= _AGREEMENT * expected.abs().max())


def _randomized_copy(module: nn.Module) -> nn.Module:
    """With other weights, without hooks, in eval mode, float32 on the CPU."""
    probe = copy.deepcopy(module, _blank(module)).cpu().float()
    for part in probe.modules():
        part.training = False
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        for owner in (part._parameters, part._buffers):
            for name, tensor in owner.items():
                if tensor is None or not tensor.is_floating_point():
                    continue
                tensor.requires_grad_(False)
                fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 4
                if name == "running_var":
                    tensor.uniform_(0.5, 2)
                else:
                    tensor.normal_(0, fan_in**-0.5)
                if name == "weight" and tensor.dim() == 1:  # of a norm
                    tensor.add_(1)
    return probe


def _blank(module: nn.Module) -> dict[int, Any]:
    """For deepcopy: floating-point tensors without their numbers, and what is empty in every
    module."""
    blank: dict[int, Any] = {}
    for part in module.modules():
        for value in part.__dict__.values():
            if type(value) in (dict, OrderedDict, set) and not value:
                blank[id(value)] = type(value)()
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is None or type(tensor) not in (Tensor, nn.Parameter) or tensor.__dict__:
                continue
            if tensor.is_floating_point() or tensor.is_meta:
                dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
                empty = torch.zeros_like(tensor, dtype=dtype, device="cpu")
                blank[id(tensor)] = empty if type(tensor) is Tensor else nn.Parameter(empty)
    return blank


def remember(module: nn.Module, **facts: Any) -> None:
    """Notes facts of a swapped module: forms, backend, error."""
    for name, value in facts.items():
        module.__dict__["_backend" if name == "backend" else f"_fastconv_{name}"] = value


def verified_error(module: Swapped, input: Tensor) -> float | None:
    """The largest difference between the native form and the module's own forward, relative to the
    largest output; None if there is no native form for it now.

    Raises:
        RuntimeError: if it is too large to come from rounding.
    """
    run = None if module._limit(input) is not None else module.made_run("forward", input)
    if run is None:
        return None
    expected = module._plain_forward(input.clone())
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    error = float((run(input) - expected).abs().max() / scale)
    if not error <= _AGREEMENT + _rounding(module, input, expected, scale):
        raise RuntimeError(
            f"swap: {type(module).__name__} must compute what its own forward does, got a largest "
            f"difference of {error:.1e} of the largest output"
        )
    return error


def _rounding(module: Swapped, input: Tensor, expected: Tensor, scale: Tensor) -> float:
    """How far two results of one computation in this dtype may lie apart, beyond float32's error.

    The module's own forward has a rounding error against float32; the native form may have twice
    that, and a few last places.
    """
    if expected.dtype is torch.float32:
        return 0.0
    with torch.autocast(input.device.type, enabled=False):
        exact = copy.deepcopy(module).float()._plain_forward(input.float())
    own_error = float((expected.float() - exact).abs().max() / scale)
    return 3 * own_error + 4 * torch.finfo(expected.dtype).eps


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for as long as the structure is read; nothing is told of it."""
    own = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    modes = [(module, module.training) for module in own]
    for module, _ in modes:
        module.__dict__["training"] = False
    try:
        yield
    finally:
        for module, training in modes:
            module.__dict__["training"] = training
