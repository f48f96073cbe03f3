"""How a module runs as one native op while its parameters stay where they are.

A fused module keeps its ordinary submodules: state_dict, optimizers, hooks and export see plain
PyTorch. In eval mode, where no gradient is wanted, it calls one native op on folded and packed
weights. Those live in a cache that is checked at every call against everything they came from.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from .. import _precision, backend
from ..ops._sequential import Step
from ._watch import Sizes, Slots, Watch

if TYPE_CHECKING:
    from ._unit import TrainRow

Run = Callable[[Tensor], Tensor]


class Native(NamedTuple):
    """A module as one native call.

    Args:
        call: called with the packed weights, or None, and the input
        packed: the packed weights; None if the op shall pack for each call
        steps: the same as steps of a chain; None if it cannot be one
        adopt: called when the packed weights were moved, with where they are now
    """

    call: Callable[[Tensor | None, Tensor], Tensor]
    packed: Tensor | None
    steps: tuple[Step, ...] | None
    adopt: Callable[[Tensor], None] | None = None

    def run(self) -> Run:
        """For calls with the input alone."""
        return partial(self.call, self.packed)


_CACHE = "_fused_cache"
_NOTHING: dict[Any, Any] = {}
_NOT_USED = "num_batches_tracked"  # the only buffer of a BatchNorm that does not enter the fold


class FusedModule(nn.Module):
    """A module that has a native op for the whole of it. Subclasses give the two methods below."""

    _input_dims = 4
    _backend = "auto"  # fastconv.swap can wish for another

    def _plain_forward(self, input: Tensor) -> Tensor:
        """What the module computes, in ordinary PyTorch."""
        raise NotImplementedError

    def _fuse(self, kind: str, pack: bool) -> Native | None:
        """The native op on folded weights, packed or not, or None if there is none.

        A module with more than one native form tells them apart by `kind`.
        """
        raise NotImplementedError

    def _train_row(self) -> "TrainRow | None":
        """The modules inside in the order in which they run, where gradients are wanted; None if
        there is no such row."""
        return None

    def forward(self, input: Tensor) -> Tensor:
        run = self._native_run(input, "forward")
        return self._plain_forward(input) if run is None else run(input)

    def _native_run(self, input: Tensor, kind: str) -> Run | None:
        """What to run instead of the plain forward; None for that."""
        if not self.training and self._backend == "auto" and backend.is_ordinary():
            # Nearly all calls of a network. Between two of them its work has driven all else out of
            # the caches, so every function that is called here costs about a microsecond.
            fused: _Fused | None = self.__dict__.get(_CACHE, _NOTHING).get(kind)
            if fused is not None and self._is_ordinary(input) and fused.is_current():
                return fused.run
        return self._checked_run(input, kind)

    def _is_ordinary(self, input: Tensor) -> bool:
        """Whether this is a float32 tensor for the CPU's kernels; if not it may still be native."""
        return (
            type(input) is Tensor
            and input.is_cpu
            and input.dtype is torch.float32
            and input.layout is torch.strided
            and input.dim() == self._input_dims
        )

    def _checked_run(self, input: Tensor, kind: str) -> Run | None:
        """The same, with every check."""
        if self.training or (torch.is_grad_enabled() and self._wants_gradient(input)):
            return self._train_run(input) if kind == "forward" else None
        name, limit = type(self).__name__, self._limit(input)
        if not backend.choose(name, limit, self._backend, getattr(input, "device", None)):
            return None
        dtype = _precision.casting(input)
        if torch.compiler.is_compiling():  # the fold becomes a part of the graph
            native = None if _is_hooked(self) else self.unpacked(kind)
            if native is None or not self._has_weights_of(dtype):
                return None
            return run_for(native, dtype)
        fused = self._current_fused(kind, dtype)
        if fused is None or fused.run is None:
            return None
        if self._backend != "auto" and input.is_cuda:  # where there are several
            return partial(_wishing, self._backend, fused.run)
        return fused.run

    def _train_run(self, input: Tensor) -> Run | None:
        """What to run where gradients are wanted or norms take statistics; None for the plain
        forward."""
        if not self._runs_natively_as_it_is() or torch.compiler.is_exporting():
            return None
        if type(input) not in (Tensor, nn.Parameter) or not (input.is_cpu or input.is_cuda):
            return None
        row = self._train_row()
        if row is None or _is_hooked(self):
            return None
        from . import _train  # which is made of modules, as this is

        limit = self._limit(input) or _train.train_limit(self, row, input)
        if not backend.choose(type(self).__name__, limit, self._backend, input.device):
            return None
        return partial(_train.run_row, row)

    def _current_fused(self, kind: str, dtype: torch.dtype | None) -> "_Fused | None":
        """The packed native form, from the cache if that is still what the module is; None where
        hooks want to see what is inside.

        Args:
            dtype: of the result, None for float32 in and out
        """
        cache = self.__dict__.get(_CACHE)
        if cache is None:
            cache = self.__dict__[_CACHE] = {}
        key = kind if dtype is None else (kind, dtype)
        fused: _Fused | None = cache.get(key)
        if fused is None or not fused.is_current():
            if _is_hooked(self):
                return None
            native = self._packed_form(kind, dtype)
            fused = cache[key] = _Fused(self, native, self._layers(), dtype)
        return fused

    def _packed_form(self, kind: str, dtype: torch.dtype | None) -> Native | None:
        if not self._has_weights_of(dtype):
            return None
        with torch.no_grad(), _precision.packing_for(dtype or torch.float32):
            return self._form(kind, True)

    def made_run(self, kind: str, input: Tensor) -> Run | None:
        """The packed native form for such an input, made anew."""
        dtype = _precision.casting(input)
        native = self._packed_form(kind, dtype)
        return None if native is None else run_for(native, dtype)

    def _has_weights_of(self, dtype: torch.dtype | None) -> bool:
        """Whether PyTorch would run the layers inside on maps of this dtype."""
        if _precision.autocast_dtype("cpu") or _precision.autocast_dtype("cuda"):
            return True
        layers = [m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        return all(layer.weight.dtype is (dtype or torch.float32) for layer in layers)

    def _may_choose(self, module: nn.Module) -> bool:
        """Whether the native form was made for the attributes that this module inside has."""
        return False

    def _layers(self) -> list[nn.Module]:
        """The modules inside that the native form stands for without having looked into them."""
        return []

    def form(self, pack: bool) -> Native | None:
        """The native form made anew, for a module that this one is a part of."""
        return self._form("forward", pack) if self._runs_natively_as_it_is() else None

    def packed_native(self, kind: str, dims: int) -> Native | None:
        """The packed native form, for a caller that checks the whole of its modules itself."""
        if self.training or self._input_dims != dims or not self._runs_natively_as_it_is():
            return None
        wanted = _precision.wanted()
        fused = self._current_fused(kind, None if wanted is torch.float32 else wanted)
        if fused is None or fused.native is None:
            return None
        return fused.native._replace(adopt=fused.adopt)

    def unpacked_native(self, kind: str, dims: int) -> Native | None:
        """The native form that packs at each call: for graphs, and to know what it would be."""
        if self.training or self._input_dims != dims or not self._runs_natively_as_it_is():
            return None
        return self.unpacked(kind)

    def unpacked(self, kind: str) -> Native | None:
        """The same whoever asks: also for a module that another one runs a part of."""
        return self._form(kind, False)

    def _form(self, kind: str, pack: bool) -> Native | None:
        """The native form, unless something inside drops: a Dropout alone may be in train mode."""
        for module in self.modules():
            if module.training and (only_drops(module) or self._may_choose(module)):
                return None
        return self._fuse(kind, pack)

    def _runs_natively_as_it_is(self) -> bool:
        """Whether nobody has put another forward in the place of this class's."""
        return type(self).forward is FusedModule.forward

    def _wants_gradient(self, input: Tensor) -> bool:
        return input.requires_grad or any(p.requires_grad for p in self.parameters())

    def _limit(self, input: Tensor) -> str | None:
        """Why the native op cannot take this input, None if it can."""
        if type(input) is not Tensor and type(input) is not nn.Parameter:
            return f"the input is a {type(input).__name__}, and the kernels take plain tensors"
        if input.layout is not torch.strided:
            return f"the input is {input.layout}, and the kernels take strided tensors"
        known = input.is_cpu or input.is_cuda
        if not known or input.dtype not in _precision.DTYPES:
            return f"the input is {input.dtype} on {input.device}; the kernels have no such type"
        if input.is_cpu and backend.active_backend() == "triton":
            return "the input is on the CPU, where Triton interprets functions, not modules"
        if input.dim() != self._input_dims:
            return f"the input has {input.dim()} dimensions, and the kernels {self._input_dims}"
        return None

    def _forget(self) -> None:
        self.__dict__.pop(_CACHE, None)

    def train(self, mode: bool = True) -> Any:
        self._forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> Any:
        # For copy, deepcopy and pickle; the class behind this one may have its own.
        own = getattr(super(), "__getstate__", None)
        state = self.__dict__ if own is None else own()
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if name != _CACHE}
        return state


def original_class(module: object) -> Any:
    """The class of a module, or what it was before :func:`fastconv.swap`."""
    kind = type(module)
    return getattr(kind, "_fastconv_original", kind)


class _Fused:
    """The native form of a module, and what it was made of."""

    def __init__(
        self,
        root: FusedModule,
        native: Native | None,
        layers: list[nn.Module],
        dtype: torch.dtype | None,
    ) -> None:
        self.native = native
        self._dtype = dtype
        self.run = None if native is None else run_for(native, dtype)
        # Scripted modules are called as they are: nothing is made of their weights.
        modules = [m for m in root.modules() if not isinstance(m, torch.jit.ScriptModule)]
        slots: Slots = []
        sizes: Sizes = []
        tensors: list[Tensor] = []
        for module in modules:
            for owner in (module._parameters, module._buffers):
                names = [name for name in owner if name != _NOT_USED]
                slots += [(owner, name, owner[name]) for name in names]
                tensors += [tensor for name in names if (tensor := owner[name]) is not None]
            if children := module._modules:
                slots += [(children, *item) for item in children.items()]
                sizes.append((children, len(children)))
            slots += [(module.__dict__, name, module.__dict__[name]) for name in _settings(module)]
            if root._may_choose(module):
                attributes = module.__dict__
                slots += [(attributes, name, value) for name, value in flags(module)]
                slots.append((attributes, "training", module.training))
                sizes.append((attributes, len(attributes)))
        for layer in layers:
            slots.append((layer.__dict__, "training", layer.training))
            # One that forgot its cache may have changed in a way that only it was told of.
            if _CACHE in layer.__dict__:
                slots.append((layer.__dict__, _CACHE, layer.__dict__[_CACHE]))
        inner = modules[1:]
        hooks: list[Any] = [m._forward_hooks for m in inner] + [m._forward_pre_hooks for m in inner]
        sizes += [(hook, 0) for hook in hooks]
        # A forward that was put on a module itself is as good as a hook.
        slots += [(module.__dict__, "forward", ...) for module in inner]
        self._watch = Watch(slots, sizes, tensors)
        self._isa_generation = backend.isa_generation
        # A class can be given another forward later.
        classes = {original_class(m) for m in modules if root._may_choose(m)}
        self._forwards = [(kind, kind.forward) for kind in classes]

    def adopt(self, packed: Tensor) -> None:
        if self.native is not None:
            self.native = self.native._replace(packed=packed)
            self.run = run_for(self.native, self._dtype)
            if self.native.adopt is not None:
                self.native.adopt(packed)

    def is_current(self) -> bool:
        """Whether the module still is what this was made of, and no hook looks inside."""
        if self._isa_generation != backend.isa_generation or not self._watch.holds():
            return False
        if _GLOBAL_HOOKS or _GLOBAL_PRE_HOOKS:
            return False
        return all(kind.forward is forward for kind, forward in self._forwards)


def _wishing(wish: str, run: Run, input: Tensor) -> Tensor:
    with backend.wishing(wish):
        return run(input)


def run_for(native: Native, dtype: torch.dtype | None) -> Run:
    """Calls with a result of this dtype, maps inside as the kernels have them; None: float32 as it
    comes."""
    run = native.run()
    if dtype is None:
        return run

    def casting(input: Tensor) -> Tensor:
        inside = _precision.computed_in(dtype, input.device.type)
        return run(input.to(inside)).to(dtype)

    return casting


PLAIN = frozenset((bool, int, float, str, type(None)))


def flags(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes that a forward may choose by."""
    return [
        (name, value)
        for name, value in module.__dict__.items()
        if type(value) in PLAIN and name != "training" and not name.startswith("_")
    ]


def _settings(module: nn.Module) -> tuple[str, ...]:
    """The attributes that decide what a layer computes."""
    if isinstance(module, nn.Conv2d):
        return "stride", "padding", "padding_mode", "dilation", "groups"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "training", "eps"
    if isinstance(module, nn.MaxPool2d):
        return "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
    if isinstance(module, nn.AvgPool2d):
        windows = ("kernel_size", "stride", "padding", "ceil_mode")
        return *windows, "count_include_pad", "divisor_override"
    if isinstance(module, nn.GELU):
        return ("approximate",)
    if type(module).__name__ == "FrozenBatchNorm2d":  # torchvision's
        return ("eps",) if "eps" in module.__dict__ else ()
    return ("training",) if only_drops(module) else ()


# What drops in train mode and does nothing else: by name, because these are not in PyTorch.
_DROPPING = frozenset(("StochasticDepth", "DropPath", "DropBlock2d"))
_LIBRARIES = frozenset(("torchvision", "timm", "fastconv"))


def only_drops(module: nn.Module) -> bool:
    """Whether this is a dropout of activations or of a branch, which eval mode turns off."""
    kind = type(module)
    known = kind.__name__ in _DROPPING and kind.__module__.split(".")[0] in _LIBRARIES
    return kind is nn.Dropout or kind is nn.Dropout2d or known


# Of all modules: PyTorch keeps these two dicts.
_GLOBAL_HOOKS = global_hooks._global_forward_hooks
_GLOBAL_PRE_HOOKS = global_hooks._global_forward_pre_hooks


def has_global_hooks() -> bool:
    """Whether every module has hooks."""
    return bool(_GLOBAL_HOOKS or _GLOBAL_PRE_HOOKS)


def _is_hooked(root: nn.Module) -> bool:
    return has_global_hooks() or any(
        len(module._forward_hooks) > 0
        or len(module._forward_pre_hooks) > 0
        or ("forward" in module.__dict__ and not isinstance(module, torch.jit.ScriptModule))
        for module in root.modules()
        if module is not root
    )
