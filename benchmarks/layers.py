"""The real layers, taken from the networks themselves so that no shape is written down twice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fastconv
from fastconv import _resolve
from fastconv._timing import Contender

from .peers import OURS
from .timing import IMAGES, LAYER, Speed, Work

Forward = Callable[[torch.Tensor], torch.Tensor]

_ORIGINALS = {"mobilenet_v1": "timm:mobilenetv1_100"}  # the others are torchvision's


@dataclass(frozen=True)
class Layer:
    """One layer of a network: plain PyTorch module, and the same work as one fastconv call."""

    op: str
    name: str
    input_shape: tuple[int, ...]
    flops: int
    bytes: int
    module: nn.Module = field(compare=False, repr=False)
    fast: Callable[[nn.Module], Forward] = field(compare=False, repr=False)

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    @property
    def speed(self) -> Speed:
        return LAYER

    def work(self, threads: int = 1) -> Work:
        """This layer at batch 1, as something to compare."""
        input = random_input(self.input_shape)
        forward = self.fast(self.module)
        ours = Contender(OURS, lambda: forward(input), lambda: forward(input))
        return Work(self.id, threads, self.module, (ours,), input, self.flops)


def random_input(shape: tuple[int, ...]) -> torch.Tensor:
    """Normal values in channels_last; zeros would make a CPU faster than it is.

    The first images of a large batch are repeated, so that float64 need not compute all of them.
    """
    images = torch.randn(
        min(IMAGES, shape[0]), *shape[1:], generator=torch.Generator().manual_seed(0)
    )
    input = images[torch.arange(shape[0]) % IMAGES]
    return input.contiguous(memory_format=torch.channels_last) if input.dim() == 4 else input


def network(name: str, size: int = 224) -> nn.Module:
    """The network that fastconv's reproduces, in eval mode, with BatchNorm statistics that fit.

    With others, the output of a deep network with random weights depends on its last biases alone
    and shows no mistake in the layers before.
    """
    with torch.random.fork_rng(devices=[]):
        model = unfitted_network(name)
        _resolve.randomize_norms(model, (3, size, size))
    return model


def unfitted_network(name: str) -> nn.Module:
    """The same as it is made: nothing has run yet, so that nothing has been allocated for that."""
    source = _ORIGINALS.get(name, f"torchvision:{name}")
    return _resolve.resolve(source).module.requires_grad_(False)


def traffic(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Bytes in float32 that must move: the input, the output, and the folded weights once each."""
    with torch.inference_mode():
        input = torch.zeros(input_shape)
        values = input.numel() + module(input).numel()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            values += layer.weight.numel() + layer.weight.shape[0]  # with a bias of each output
    return 4 * values


def flops(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds times 2 of the convolutions and linear layers, for this input shape."""
    total = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d | nn.Linear):
            total += 2 * output.numel() * layer.weight[0].numel()

    handles = [layer.register_forward_hook(count) for layer in module.modules()]
    with torch.inference_mode():
        module(torch.zeros(input_shape))
    for handle in handles:
        handle.remove()
    return total


def _input_shapes(model: nn.Module, size: int = 224) -> dict[nn.Module, tuple[int, ...]]:
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        shapes[module] = tuple(inputs[0].shape)

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    for handle in handles:
        handle.remove()
    return shapes


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, activation: nn.Module | None) -> nn.Module:
    """Convolution with its BatchNorm folded, then the activation: what rivals run best."""
    folded = fuse_conv_bn_eval(conv, norm).requires_grad_(False)
    return nn.Sequential(folded) if activation is None else nn.Sequential(folded, activation)


def _activation(module: nn.Module) -> str:
    return "relu6" if any(isinstance(m, nn.ReLU6) for m in module.modules()) else "none"


def _conv(module: nn.Module) -> nn.Conv2d:
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def _fast_conv(
    op: Callable[..., torch.Tensor], *names: str
) -> Callable[[nn.Module], Callable[[torch.Tensor], torch.Tensor]]:
    """Bind one convolution op to a module's convolution, whose attributes `names` it also takes."""

    def bind(module: nn.Module) -> Forward:
        conv = _conv(module)
        keywords = {name: getattr(conv, name) for name in names}
        keywords |= {"weight": conv.weight, "bias": conv.bias, "activation": _activation(module)}
        return functools.partial(op, **keywords)

    return bind


def _fast_linear(module: nn.Module) -> Forward:
    return functools.partial(fastconv.linear, weight=module.weight, bias=module.bias)


def _fast_squeeze_excite(module: nn.Module) -> Forward:
    reduce, expand = module.fc1, module.fc2
    return functools.partial(
        fastconv.squeeze_excite,
        reduce_weight=reduce.weight,
        reduce_bias=reduce.bias,
        expand_weight=expand.weight,
        expand_bias=expand.bias,
        activation="relu",
        gate="hardsigmoid",
    )


def _fast_block(module: nn.Module) -> Forward:
    """The whole block as one call, on its convolutions with BatchNorm folded."""
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    parts = [fuse_conv_bn_eval(c, n) for c, n in zip(convs, norms, strict=True)]
    arguments = [t for part in parts for t in (part.weight.detach(), part.bias.detach())]
    depthwise, residual = convs[-2], module.use_res_connect
    op = fastconv.inverted_residual if len(parts) == 3 else fastconv.depthwise_separable_conv2d

    def forward(input: torch.Tensor) -> torch.Tensor:
        return op(
            input,
            *arguments,
            stride=depthwise.stride,
            padding=depthwise.padding,
            residual=input if residual else None,
        )

    return forward


_FAST: dict[str, Callable[[nn.Module], Forward]] = {
    "pointwise_conv2d": _fast_conv(fastconv.pointwise_conv2d, "stride"),
    "depthwise_conv2d": _fast_conv(fastconv.depthwise_conv2d, "stride", "padding"),
    "conv2d_bias_act": _fast_conv(fastconv.conv2d_bias_act, "stride", "padding"),
    "pointwise_conv2d_pool": _fast_conv(fastconv.pointwise_conv2d_pool),
    "linear": _fast_linear,
    "squeeze_excite": _fast_squeeze_excite,
    "depthwise_separable_conv2d": _fast_block,
    "inverted_residual": _fast_block,
}

OPS = tuple(_FAST)


def _layer(op: str, module: nn.Module, shape: tuple[int, ...], name: str) -> Layer:
    module = module.eval().requires_grad_(False)
    return Layer(op, name, shape, flops(module, shape), traffic(module, shape), module, _FAST[op])


def _conv_layer(module: nn.Module, shape: tuple[int, ...]) -> Layer:
    conv = _conv(module)
    if conv.groups == conv.in_channels and conv.groups > 1:
        op, channels = "depthwise_conv2d", f"{conv.in_channels}"
    elif conv.kernel_size == (1, 1):
        op, channels = "pointwise_conv2d", f"{conv.in_channels}to{conv.out_channels}"
    else:
        op, channels = "conv2d_bias_act", f"{conv.in_channels}to{conv.out_channels}"
    name = f"{shape[2]}x{shape[3]}-{channels}"
    if conv.kernel_size != (1, 1):
        name += f"-k{conv.kernel_size[0]}s{conv.stride[0]}"
    return _layer(op, module, shape, f"{name}-{_activation(module)}")


def _block_layer(block: nn.Module, shape: tuple[int, ...]) -> Layer:
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    op = "depthwise_separable_conv2d" if len(convs) == 2 else "inverted_residual"
    channels = "-".join(str(c) for c in dict.fromkeys([shape[1], convs[-2].out_channels]))
    residual = "-residual" if block.use_res_connect else ""
    name = f"{shape[2]}x{shape[3]}-{channels}-{convs[-1].out_channels}-s{convs[-2].stride[0]}"
    return _layer(op, block, shape, name + residual)


@functools.cache
def mobilenet_v2_layers() -> tuple[Layer, ...]:
    """Every distinct layer and block of MobileNetV2 at 224x224, in the order of the network."""
    model = network("mobilenet_v2")
    shapes = _input_shapes(model)
    found: list[Layer] = []
    parents = [m for m in model.modules() if isinstance(m, nn.Sequential)]
    for parent in parents:
        children = list(parent)
        for index, conv in enumerate(children):
            if isinstance(conv, nn.Conv2d):
                norm, *rest = children[index + 1 :]
                relu6 = rest[0] if rest and isinstance(rest[0], nn.ReLU6) else None
                found.append(_conv_layer(_folded(conv, norm, relu6), shapes[conv]))
    for block in model.features:
        if hasattr(block, "use_res_connect"):
            found.append(_block_layer(block, shapes[block]))
    head = _folded(model.features[-1][0], model.features[-1][1], model.features[-1][2])
    pooled = nn.Sequential(*head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    conv = model.features[-1][0]
    name = f"7x7-{conv.in_channels}to{conv.out_channels}-relu6"
    found.append(_layer("pointwise_conv2d_pool", pooled, shapes[model.features[-1]], name))
    linear = model.classifier[1]
    name = f"{linear.in_features}to{linear.out_features}"
    found.append(_layer("linear", linear, shapes[linear], name))
    return _distinct(found)


@functools.cache
def squeeze_excite_layers() -> tuple[Layer, ...]:
    """The squeeze-excites of MobileNetV3-Large; MobileNetV2 has none."""
    model = network("mobilenet_v3_large")
    shapes = _input_shapes(model)
    found = []
    for module in model.modules():
        if type(module).__name__ == "SqueezeExcitation":
            _, channels, height, width = shapes[module]
            name = f"{height}x{width}-{channels}-{module.fc1.out_channels}"
            found.append(_layer("squeeze_excite", module, shapes[module], name))
    return _distinct(found)


def _distinct(found: list[Layer]) -> tuple[Layer, ...]:
    return tuple({layer.id: layer for layer in reversed(found)}.values())[::-1]


def layers(op: str) -> list[Layer]:
    """The layers that one call of this op computes."""
    source = squeeze_excite_layers() if op == "squeeze_excite" else mobilenet_v2_layers()
    return [layer for layer in source if layer.op == op]
