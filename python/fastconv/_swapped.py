"""A module that was swapped: its class is a subclass, made here, of the class that it had.

Its attributes, parameters, submodules and hooks stay where they are, so everything that looks at
the module finds what it found before. Only its forward (or forward_features) is another: native
where it can be, else the one of its own class.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._recipes import Recipe, recipes
from .nn._fused import FusedModule, Native, original_class

_FORM = "_fastconv_form"  # which recipe, and what it was found for

# Of the largest output: the two ways round differently, and no difference in meaning is so small.
_AGREEMENT = 1e-3


class Swapped(FusedModule):
    """Put in front of a module's class by :func:`swapped_class`."""

    _method = "forward"
    _fastconv_original: Any

    def recipe(self) -> Recipe | None:
        """The recipe that was found to compute what this module does."""
        form = self.__dict__.get(_FORM)
        for index, recipe in enumerate(recipes(self)):
            if recipe.certain and recipe.method == self._method:
                return recipe
            if form == (index, _structure(self)):
                return recipe
        return None

    def _layers(self) -> list[nn.Module]:
        return [m for m in self.modules() if m is not self and isinstance(m, FusedModule)]

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        recipe = self.recipe()
        return None if recipe is None else recipe.build(pack)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class cannot be found by its name: it is made again from the one that can.
        return _rebuild, (original_class(self), self._method), self.__getstate__()


class SwappedForward(Swapped):
    """Whose forward is native."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and len(kwargs) == 0 and isinstance(args[0], Tensor):
            run = self._native_run(args[0], "forward")
            if run is not None:
                return run(args[0])
        return self._fastconv_original.forward(self, *args, **kwargs)

    def _plain_forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._fastconv_original.forward(self, input)
        return output

    def _runs_natively_as_it_is(self) -> bool:
        return getattr(type(self).forward, "_is_fastconv", False)


class SwappedFeatures(Swapped):
    """Whose forward_features is native."""

    _method = "forward_features"

    def forward_features(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and len(kwargs) == 0 and isinstance(args[0], Tensor):
            run = self._native_run(args[0], "forward_features")
            if run is not None:
                return run(args[0])
        return self._fastconv_original.forward_features(self, *args, **kwargs)

    def _plain_forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._fastconv_original.forward_features(self, input)
        return output

    def _runs_natively_as_it_is(self) -> bool:
        return False  # as a part of a chain, because its forward is more


_KINDS: dict[str, type[Swapped]] = {"forward": SwappedForward, "forward_features": SwappedFeatures}


def swapped_class(original: type, method: str) -> type:
    """The subclass of `original` whose `method` is native; always the same one."""
    kind = _KINDS[method]
    subclasses: list[type] = original.__subclasses__()
    for subclass in subclasses:
        if subclass.__bases__ == (kind, original):
            return subclass
    names: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_fastconv_original": original,
        "forward": original.forward,  # type: ignore[attr-defined]
        method: _wrapped(kind, original, method),
    }
    return type(original.__name__, (kind, original), names)


def _wrapped(kind: type[Swapped], original: type, method: str) -> Callable[..., Any]:
    """The native method, with the signature and documentation of the class's own."""
    native = getattr(kind, method)

    @functools.wraps(getattr(original, method))
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return native(self, *args, **kwargs)

    run._is_fastconv = True  # type: ignore[attr-defined]
    return run


def _rebuild(original: type, method: str) -> nn.Module:
    kind: Any = swapped_class(original, method)
    module: nn.Module = kind.__new__(kind)
    return module


def find_form(module: nn.Module) -> tuple[Recipe, tuple[int, Any]] | None:
    """The recipe that computes what the module does, and what :class:`Swapped` must remember.

    Runs a copy of the module on random inputs; the module itself is not called.
    """
    for index, recipe in enumerate(recipes(module)):
        if recipe.certain:
            return recipe, (index, None)
        if recipe.method == "forward_features":
            agrees = _calls_in_order(module, recipe)
        else:
            agrees = _agrees(module, index, recipe.channels)
        if agrees:
            return recipe, (index, _structure(module))
    return None


def _structure(module: nn.Module) -> tuple[Any, ...]:
    """What the choice of a recipe depends on beside the numbers in parameters and buffers."""
    inside = tuple((name, original_class(m)) for name, m in module.named_modules())
    return original_class(module).forward, inside


def _agrees(module: nn.Module, index: int, channels: int) -> bool:
    """Whether a recipe computes what the module's own forward does, with any weights."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            probe = _randomized_copy(module)
            native = list(recipes(probe))[index].build(False)
            if native is None:
                return False
            run, forward = native.run(), original_class(probe).forward
            inputs = list(_probes(channels))
            expected = [_outcome(forward, probe, input.clone()) for input in inputs]
            # Where both refuse every input, they have nothing in common but that.
            if all(output is None for output in expected):
                return False
            return all(
                _same(output, _outcome(run, input))
                for output, input in zip(expected, inputs, strict=True)
            )
    except Exception:  # a copy that cannot be made, whatever its class raises
        return False


def _probes(channels: int) -> Iterator[Tensor]:
    """Inputs that tell apart what a block may do: of even and odd sizes, smaller than kernels, and
    in ranges on both sides of where activations bend."""
    for height, width, scale in ((9, 11, 1.0), (12, 10, 8.0), (5, 4, 1.0), (17, 14, 64.0)):
        yield scale * torch.randn(2, channels, height, width)


def _outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns; None where it refuses the input."""
    try:
        return function(*arguments)
    except Exception:
        return None


def _same(expected: Any, actual: Tensor | None) -> bool:
    if expected is None or actual is None:
        return expected is None and actual is None
    if not isinstance(expected, Tensor) or expected.shape != actual.shape:
        return False
    # Written so that NaN is no agreement.
    return bool((actual - expected).abs().max() <= _AGREEMENT * expected.abs().max())


def _randomized_copy(module: nn.Module) -> nn.Module:
    """With other weights, without hooks, in eval mode, float32 on the CPU."""
    probe = copy.deepcopy(module).to_empty(device="cpu").float()
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


class _Probe(nn.Module):
    """Stands for a module, and notes that it was called with what the one before returned."""

    def __init__(self, calls: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._calls = calls

    def forward(self, input: Tensor) -> Tensor:
        output = input.clone()
        self._calls.append((input, output))
        return output


def _calls_in_order(module: nn.Module, recipe: Recipe) -> bool:
    """Whether a method calls what was registered before global_pool, in this order."""
    calls: list[tuple[Tensor, Tensor]] = []
    probe = copy.copy(module)
    names = list(module._modules)
    names = names[: names.index("global_pool")]
    used = {n: _Probe(calls) for n in names if module._modules[n] is not None}
    probe.__dict__["_modules"] = {**module._modules, **used}
    input = torch.zeros(1)
    try:
        method: Callable[..., Any] = getattr(original_class(module), recipe.method)
        with torch.no_grad():
            output = method(probe, input)
    except Exception:
        return False
    expected = [input, *(o for _, o in calls)]
    passed = all(i is e for (i, _), e in zip(calls, expected, strict=False))
    return len(calls) == len(used) and passed and output is expected[-1]


def remember(module: nn.Module, **facts: Any) -> None:
    """Notes facts of a swapped module: form, backend, error."""
    for name, value in facts.items():
        module.__dict__["_backend" if name == "backend" else f"_fastconv_{name}"] = value


def verified_error(module: Swapped, input: Tensor) -> float | None:
    """The largest difference between the native form and the module's own forward, relative to the
    largest output; None if there is no native form for it now.

    Raises:
        RuntimeError: if it is too large to come from rounding.
    """
    native = None if module._limit(input) is not None else module._fuse(module._method, True)
    if native is None:
        return None
    expected = module._plain_forward(input.clone())
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    error = float((native.run()(input) - expected).abs().max() / scale)
    if not error <= _AGREEMENT:
        raise RuntimeError(
            f"swap: {type(module).__name__} must compute what its own forward does, got a largest "
            f"difference of {error:.1e} of the largest output"
        )
    return error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for as long as the structure is read; nothing is told of it."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.__dict__["training"] = False
    try:
        yield
    finally:
        for module, training in modes:
            module.__dict__["training"] = training
