"""The networks against torchvision's and timm's: keys, outputs, modes, feature maps."""

import copy
import itertools

import pytest
import torch
from torch import nn

import fastconv
from fastconv import models
from fastconv.nn import FusedMBConv, MBConv, SqueezeExcite, StochasticDepth

from .meta import meta_device
from .test_nn import Calls, check, randomized
from .train_cases import assert_trains_like

SIZES = {  # of the images on which the results are compared
    "mobilenet_v1": (64, 64),
    "mobilenet_v2": (75, 61),
    "mobilenet_v3_large": (75, 61),
    "mobilenet_v3_small": (64, 64),
    "efficientnet_b0": (75, 61),
    "efficientnet_b1": (64, 64),
    "efficientnet_b2": (61, 75),
    "efficientnet_b3": (64, 64),
    "efficientnet_b4": (33, 65),
    "efficientnet_b5": (64, 33),
    "efficientnet_b6": (33, 33),
    "efficientnet_b7": (33, 47),
    "efficientnet_v2_s": (75, 61),
    "efficientnet_v2_m": (33, 64),
    "efficientnet_v2_l": (33, 33),
}
# Compared in test_classic_networks.py.
CLASSIC = [
    "alexnet",
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "googlenet",
    "inception_v3",
]


def counterpart(torchvision, name, **kwargs):
    if name == "mobilenet_v1":
        timm = pytest.importorskip("timm")
        return timm.create_model("mobilenetv1_100", **kwargs)
    return getattr(torchvision.models, name)(**kwargs)


def calibrated(model, size=(64, 64)):
    """In eval mode, with statistics that are none of the defaults but let the images through."""
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
        nn.init.uniform_(norm.weight, 0.7, 1.4)
        nn.init.normal_(norm.bias, 0, 0.3)
    residual = models.BasicBlock, models.Bottleneck
    for block in model.modules():
        # Else deep random networks are chaotic.
        if getattr(block, "use_res_connect", False) or isinstance(block, residual):
            with torch.no_grad():
                [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)][-1].weight.mul_(0.3)
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        model(torch.randn(4, stem.in_channels, *size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_mean += 0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    return model.eval()


def norms_of(model):
    return [(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def shapes_of(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def output_of(model, input):
    with torch.no_grad():
        return model(input)


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("name", SIZES)
def test_network(native, torchvision, name):
    torch.manual_seed(0)
    ours = models.create_model(name)
    with meta_device():  # its weights are ours, once
        theirs = counterpart(torchvision, name)
    assert list(shapes_of(ours).items()) == list(shapes_of(theirs).items())
    assert norms_of(ours) == norms_of(theirs)
    dropouts = [m.p for m in theirs.modules() if isinstance(m, nn.Dropout)]
    if dropouts:
        assert [m.p for m in ours.modules() if isinstance(m, nn.Dropout)] == dropouts
    calibrated(ours)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    input = torch.randn(2, 3, *SIZES[name])
    with Calls() as calls:
        output = output_of(ours, input)
    expected = output_of(theirs.eval(), input)
    assert_close(output, expected)
    # It looks at the images, and did run natively.
    assert (expected[0] - expected[1]).abs().max() > 0.01 * expected.abs().max()
    if name in ("mobilenet_v1", "mobilenet_v2"):
        assert calls.names == ["sequential"]
        return
    blocks = [m for m in ours.modules() if isinstance(m, MBConv)]
    assert len(blocks) > 10
    dense = {"conv2d_bias_act", "pointwise_conv2d"}
    assert set(calls.names) <= {"sequential", "linear", *dense}
    joined = [one for one, two in itertools.pairwise(calls.names) if one == two == "sequential"]
    assert not joined
    if not name.startswith("efficientnet_v2"):  # whose first blocks have dense convolutions
        assert calls.names == ["sequential"]


NATIVE = (nn.Hardswish(True), nn.ReLU(), nn.SiLU(), nn.Identity(), nn.Tanh(), nn.GELU())
OTHERS = (nn.GELU("tanh"), nn.Mish())


@pytest.mark.parametrize("activation", NATIVE + OTHERS)
def test_activations_between_fully_connected_layers(native, activation):
    torch.manual_seed(0)
    model = calibrated(models.mobilenet_v3_small(width_mult=0.5))
    input = torch.randn(3, 3, 64, 64)
    before = output_of(model, input)
    model.classifier[1] = activation
    with Calls() as calls:
        output = output_of(model, input)
    is_native = activation in NATIVE
    assert calls.names == (["sequential"] if is_native else ["sequential", "linear"])
    with fastconv.use_backend("reference"):
        assert_close(output, output_of(copy.deepcopy(model), input))
    changed = not isinstance(activation, nn.Hardswish)
    assert torch.equal(output, before) != changed


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0"])
def test_the_same_seed_gives_the_counterpart_s_weights(torchvision, name):
    torch.manual_seed(0)
    theirs = counterpart(torchvision, name, num_classes=7).state_dict()
    torch.manual_seed(0)
    ours = models.create_model(name, num_classes=7).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_first_weights_of_mobilenet_v1_are_spread_as_timm_s(torchvision):
    torch.manual_seed(0)
    theirs = counterpart(torchvision, "mobilenet_v1").state_dict()
    ours = models.mobilenet_v1().state_dict()
    for key in ours:
        spread = ours[key].float().std(correction=0).item()
        assert spread == pytest.approx(theirs[key].float().std(correction=0).item(), rel=0.2), key


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("mobilenet_v1", {}),
        ("mobilenet_v3_small", {"dropout": 0.0}),
        ("efficientnet_b0", {"dropout": 0.0, "stochastic_depth_prob": 0.0}),
    ],
)
def test_train_mode_is_the_counterpart_s(native, torchvision, name, off):
    torch.manual_seed(0)
    ours, theirs = models.create_model(name, **off), counterpart(torchvision, name, **off)
    theirs.load_state_dict(ours.state_dict())
    assert_trains_like(ours, theirs, torch.randn(8, 3, 64, 64))
    assert all(p.grad.abs().max() > 0 for p in ours.parameters())


def test_stochastic_depth_is_torchvision_s(torchvision):
    input = torch.rand(64, 3, 2, 2) + 1
    for p in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        expected = torchvision.ops.StochasticDepth(p, "row")(input)
        torch.manual_seed(0)
        output = StochasticDepth(p)(input)
        assert torch.equal(output, expected)
        assert (output == 0).any() == (p > 0)
        assert StochasticDepth(p).eval()(input) is input
    found = [m.p for m in models.efficientnet_b0().modules() if isinstance(m, StochasticDepth)]
    theirs = torchvision.models.efficientnet_b0().modules()
    assert found == [m.p for m in theirs if isinstance(m, torchvision.ops.StochasticDepth)]
    assert max(found) > 0.15
    assert repr(StochasticDepth(0.2)) == "StochasticDepth(p=0.2)"


BLOCKS = {
    "plain": {},
    "no-expand": {"mid_channels": 16},
    "excite": {"squeeze_excite": lambda mid: SqueezeExcite(mid, 4, nn.SiLU)},
    "excite-no-expand": {"mid_channels": 16, "squeeze_excite": lambda mid: SqueezeExcite(mid, 4)},
    "stride": {"stride": 2, "out_channels": 24, "kernel_size": 5},
    "dilation": {"dilation": 2, "activation_layer": nn.Hardswish},
}


def block(**kwargs):
    torch.manual_seed(0)
    arguments = {"in_channels": 16, "mid_channels": 40, "out_channels": 16} | kwargs
    return randomized(MBConv(**arguments, stochastic_depth_prob=0.5)).eval()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_one_native_op(native, name):
    module, input = block(**BLOCKS[name]), torch.randn(2, 16, 9, 7)
    output = check(module, input)
    assert output.shape == ((2, 24, 5, 4) if name == "stride" else input.shape)
    with torch.no_grad():
        module.block[-1][1].running_mean.add_(1)
    assert not torch.allclose(check(module, input), output)
    assert all(key.startswith("block.") for key in module.state_dict())


PARTS = {
    "training": lambda m: m.stochastic_depth.train(),
    "no stochastic depth": lambda m: setattr(m, "stochastic_depth", nn.Identity()),
    "no excitation": lambda m: m.block.__setitem__(2, nn.Identity()),
    "one more": lambda m: m.block.append(nn.Identity()),
    "activation": lambda m: m.block[0].__setitem__(2, nn.ELU()),
}


@pytest.mark.parametrize("change", PARTS)
def test_a_block_whose_parts_were_changed_is_not(native, change):
    module, input = block(**BLOCKS["excite"]), torch.randn(2, 16, 9, 7)
    check(module, input)
    PARTS[change](module)
    with torch.no_grad(), Calls() as calls:
        module(input)
    assert calls.names
    assert "inverted_residual" not in calls.names


def test_networks_without_their_own_parts(native):
    """A model's user may replace the pooling or the classifier, and hook what is inside."""
    model, input = calibrated(models.mobilenet_v3_small()), torch.randn(2, 3, 64, 64)
    expected, shapes = output_of(model, input), []
    handle = model.avgpool.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    assert_close(output_of(model, input), expected)
    assert shapes == [(2, 576, 1, 1)]
    handle.remove()
    model.avgpool = nn.AdaptiveMaxPool2d(1)
    assert not torch.allclose(output_of(model, input), expected)
    model.classifier = nn.Identity()
    assert output_of(model, input).shape == (2, 576)


def test_settings(native):
    """Networks of one's own, with a norm that cannot be folded."""

    def norm(channels):
        return nn.GroupNorm(2, channels)

    stages = [
        models.StageSetting(FusedMBConv, 1, 3, 1, 16, 1),
        models.StageSetting(FusedMBConv, 2, 5, 2, 16, 2),
        models.StageSetting(MBConv, 4, 5, 2, 24, 2),
    ]
    blocks = [models.BlockSetting(5, 32, 24, True, nn.ReLU, 2)]
    for model in (
        models.EfficientNet(stages, 16, num_classes=4, norm_layer=norm, last_channel=64),
        models.MobileNetV3(blocks, 16, 64, num_classes=4, norm_layer=norm),
    ):
        features = models.FeatureNetwork(model)
        input = torch.randn(2, 3, 32, 32)
        assert output_of(model.eval(), input).shape == (2, 4)
        assert features.reductions[:2] == (2, 4)
        model.features = nn.Conv2d(3, model.features[-1].out_channels, 3)
        assert output_of(model, input).shape == (2, 4)


def test_mobilenet_v1_with_other_parts(native):
    model, input = calibrated(models.mobilenet_v1(num_classes=10)), torch.randn(2, 3, 64, 64)
    expected, shapes = output_of(model, input), []
    handles = [
        module.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
        for module in (model.blocks, model.blocks[1], model.bn1)
    ]
    assert_close(output_of(model, input), expected)
    assert shapes == [(2, 32, 32, 32), (2, 128, 16, 16), (2, 1024, 2, 2)]
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        model.blocks[4][1].conv_pw.weight.mul_(1.5)
        with Calls() as calls:
            changed = model(input)
    assert calls.names == ["sequential"]
    assert not torch.allclose(changed, expected)
    with fastconv.use_backend("reference"):
        assert_close(output_of(copy.deepcopy(model).double(), input.double()).float(), changed)
    model.classifier = nn.Identity()
    with torch.no_grad(), Calls() as calls:
        pooled = model(input)
    assert pooled.shape == (2, 1024)
    assert calls.names[:2] == ["conv2d_bias_act", "depthwise_separable_conv2d"]
    model.blocks[4][1] = nn.Identity()
    assert not torch.allclose(output_of(model, input), pooled)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small"])
def test_compile_and_export(native, name):
    model, input = calibrated(models.create_model(name)), torch.randn(2, 3, 64, 64)
    expected = output_of(model, input)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(output_of(compiled, input), expected)
    program = torch.export.export(model, (input,))
    assert not any("fastconv" in str(node.target) for node in program.graph.nodes)
    assert_close(output_of(program.module(), input), expected)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
@pytest.mark.parametrize(
    "kwargs",
    [{"width_mult": 0.75}, {"reduced_tail": True}, {"dilated": True, "reduced_tail": True}],
)
def test_mobilenet_v3_variants(native, torchvision, name, kwargs):
    torch.manual_seed(0)
    ours = calibrated(models.create_model(name, **kwargs))
    with meta_device():
        theirs = counterpart(torchvision, name, **kwargs)
    assert shapes_of(ours) == shapes_of(theirs)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    input = torch.randn(2, 3, 64, 64)
    assert_close(output_of(ours, input), output_of(theirs.eval(), input))


def test_width_of_mobilenet_v1(torchvision):
    timm = pytest.importorskip("timm")
    with meta_device():
        ours, theirs = models.mobilenet_v1(width_mult=1.25), timm.create_model("mobilenetv1_125")
    assert shapes_of(ours) == shapes_of(theirs)


def test_sizes():
    """Parameters in the papers' tables, in millions."""
    expected = {
        "mobilenet_v1": 4.2,
        "mobilenet_v3_large": 5.5,
        "mobilenet_v3_small": 2.5,
        "efficientnet_b0": 5.3,
        "efficientnet_b3": 12,
        "efficientnet_b7": 66,
        "efficientnet_v2_m": 54,
    }
    with meta_device():
        for name, millions in expected.items():
            count = sum(p.numel() for p in models.create_model(name).parameters())
            assert count / 1e6 == pytest.approx(millions, rel=0.025), name
        sides = [models.create_model(f"efficientnet_b{i}").resolution for i in range(8)]
    assert sides == [224, 240, 260, 300, 380, 456, 528, 600]


@pytest.mark.parametrize(
    "name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"]
)
@pytest.mark.parametrize("in_chans", [1, 6])
def test_in_chans(native, name, in_chans):
    torch.manual_seed(0)
    model = calibrated(models.create_model(name, in_chans=in_chans, num_classes=5))
    input = torch.randn(2, in_chans, 64, 64)
    truth = copy.deepcopy(model).double()
    output = output_of(model, input)
    assert output.shape == (2, 5)
    with fastconv.use_backend("reference"):
        assert_close(output, output_of(truth, input.double()).float())


def test_rejects():
    with pytest.raises(ValueError, match="create_model: out_indices must be left out without"):
        models.create_model("mobilenet_v1", out_indices=(0, 1))
    for name in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_v2_s"):
        with pytest.raises(ValueError, match=r"\w+: in_chans must be at least 1, got 0"):
            models.create_model(name, in_chans=0)
    with pytest.raises(ValueError, match=r"EfficientNet: stages must have at least one row, got"):
        models.EfficientNet([])
    with pytest.raises(ValueError, match=r"MobileNetV3: blocks must have at least one row, got"):
        models.MobileNetV3([], 16, 64)
    with pytest.raises(ValueError, match=r"MBConv: stride must be 1 or 2, got 3"):
        MBConv(8, 16, 8, stride=3)
    with pytest.raises(ValueError, match=r"FusedMBConv: stride must be 1 or 2, got 0"):
        FusedMBConv(8, 16, 8, stride=0)
    with pytest.raises(ValueError, match=r"StochasticDepth: p must be between 0 and 1, got 1.5"):
        StochasticDepth(1.5)
    with pytest.raises(FileNotFoundError):
        models.mobilenet_v1("DEFAULT")


class _Asked(Exception):
    pass


@pytest.mark.parametrize("name", [*list(SIZES)[1:], *CLASSIC])
def test_published_weights(monkeypatch, torchvision, name):
    def download(url, **_):
        raise _Asked(url)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    enum = torchvision.models.get_model_weights(name)
    for weights_name, weights in enum.__members__.items():
        for given in (weights_name, weights):
            with meta_device(), pytest.raises(_Asked, match=f"^{weights.url}$"):
                models.create_model(name, weights=given)
    with meta_device(), pytest.raises(ValueError, match="must be a file or one of"):
        models.create_model(name, weights="IMAGENET1K_V9")


def test_weights_of_mobilenet_v1_from_a_file(tmp_path, torchvision):
    timm = pytest.importorskip("timm")
    state = timm.create_model("mobilenetv1_100", num_classes=3).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    for weights in (state, tmp_path / "weights.pth"):
        model = models.mobilenet_v1(weights, num_classes=3)
        assert torch.equal(model.classifier.weight, state["classifier.weight"])


def test_all_networks_are_listed():
    names = {*SIZES, *CLASSIC, "lenet5", "nin"}
    assert models.list_models() == sorted(names)
    assert names < set(models.__all__)
