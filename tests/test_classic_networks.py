"""AlexNet, VGG, ResNet and the Inception networks against torchvision's, and LeNet-5 and Network in
Network against their papers."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastconv
from fastconv import models

from .meta import meta_device
from .test_networks import CLASSIC, assert_close, calibrated, output_of, shapes_of
from .test_nn import Calls
from .test_train_networks import _digits
from .train_cases import assert_trains_like

SIZES = {  # of the images on which the results are compared; vgg13 and the others with BatchNorm
    # are the same code, and 133 million weights each
    "alexnet": (71, 64),
    "vgg11": (64, 64),
    "vgg16_bn": (65, 33),
    "vgg19": (33, 47),
    "resnet18": (75, 61),
    "resnet34": (64, 33),
    "resnet50": (75, 61),
    "resnet101": (33, 64),
    "resnet152": (33, 33),
    "googlenet": (97, 64),
    "inception_v3": (107, 128),
}


def counterpart(torchvision, name, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of how weights will be initialized
        return getattr(torchvision.models, name)(**kwargs)


def on_meta(torchvision, name, **kwargs):
    with meta_device():
        return counterpart(torchvision, name, **kwargs)


class Convolutions(TorchDispatchMode):
    """Counts those of PyTorch."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "convolution" in func._opname
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CLASSIC)
def test_keys_and_shapes(torchvision, name):
    theirs = on_meta(torchvision, name)
    with meta_device():
        ours = models.create_model(name)
    assert list(shapes_of(ours).items()) == list(shapes_of(theirs).items())
    settings = [
        [
            (m.__dict__.get("eps"), m.__dict__.get("momentum"), m.__dict__.get("p"))
            for m in network.modules()
            if isinstance(m, (nn.BatchNorm2d, nn.Dropout))
        ]
        for network in (ours, theirs)
    ]
    assert settings[0] == settings[1]
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    heads = ("aux1.", "aux2.")  # which torchvision does not count in GoogLeNet
    assert published == sum(
        p.numel() for key, p in ours.named_parameters() if not key.startswith(heads)
    )


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "resnet50", "googlenet", "inception_v3"])
def test_the_same_seed_gives_torchvision_s_weights(torchvision, name):
    torch.manual_seed(0)
    theirs = counterpart(torchvision, name, num_classes=7).state_dict()
    torch.manual_seed(0)
    ours = models.create_model(name, num_classes=7).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", SIZES)
def test_network(native, torchvision, name):
    torch.manual_seed(0)
    size = SIZES[name]
    ours, theirs = models.create_model(name), on_meta(torchvision, name)
    calibrated(ours, size)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    theirs.eval()
    for count in (3, 1, 0):
        input = torch.randn(count, 3, *size)
        with Calls() as calls, Convolutions() as convolutions:
            output = output_of(ours, input)
        expected = output_of(theirs, input)
        assert calls.names
        assert convolutions.count == 0
        assert output.shape == expected.shape
        if count > 0:
            assert_close(output, expected)
        if count > 1:  # it looks at the images
            assert (expected[0] - expected[1]).abs().max() > 0.01 * expected.abs().max()
    ours.double()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    input = torch.randn(1, 3, *size, dtype=torch.float64)
    with fastconv.use_backend("auto"):
        output, expected = output_of(ours, input), output_of(theirs, input)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


# VGG is built and run as AlexNet is, and its weights in float64 are a gigabyte.
@pytest.mark.parametrize(
    "name", ["lenet5", "alexnet", "nin", "resnet18", "resnet50", "googlenet", "inception_v3"]
)
def test_in_chans_and_odd_sizes(native, name):
    torch.manual_seed(0)
    in_chans, size = (4, (32, 32)) if name == "lenet5" else (1, (95, 81))
    model = calibrated(models.create_model(name, in_chans=in_chans, num_classes=10), size)
    input = torch.randn(2, in_chans, *size)
    truth = copy.deepcopy(model).double()
    output = output_of(model, input)
    assert output.shape == (2, 10)
    with fastconv.use_backend("reference"):
        assert_close(output, output_of(truth, input.double()).float())
    assert output_of(model, input[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"groups": 32, "width_per_group": 4},
        {"replace_stride_with_dilation": [False, True, True]},
        {"zero_init_residual": True},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_resnet_variants(native, torchvision, kwargs):
    torch.manual_seed(0)
    theirs = counterpart(torchvision, "resnet50", num_classes=5, **kwargs)
    torch.manual_seed(0)
    ours = models.resnet50(num_classes=5, **kwargs)
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    calibrated(ours)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(2, 3, 64, 64)
    assert_close(output_of(ours, input), output_of(theirs.eval(), input))


@pytest.mark.parametrize("block", [models.BasicBlock, models.Bottleneck])
def test_a_residual_block_follows_its_parts(native, block):
    torch.manual_seed(0)
    planes = 64 // block.expansion
    module = calibrated(nn.Sequential(nn.Conv2d(3, 64, 1), block(64, planes)), (9, 7))[1]
    input = torch.randn(2, 64, 9, 7)
    with torch.no_grad():
        before = module(input)
        expected = module._plain_forward(input.clone())
        assert_close(before, expected)
        channels_last = input.to(memory_format=torch.channels_last)
        assert_close(module(channels_last), expected)
        module.conv2.weight.mul_(1.5)
        after = module(input)
        assert_close(after, module._plain_forward(input))
        assert not torch.allclose(after, before)
        seen = []
        module.bn2.register_forward_hook(lambda _, __, output: seen.append(output.shape))
        assert_close(module(input), after)
        assert len(seen) == 1
        module.relu = nn.ELU()
        assert not torch.allclose(module(input), after)
    module.train()(input).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_other_parts(native):
    torch.manual_seed(0)
    model, input = calibrated(models.resnet18()), torch.randn(2, 3, 64, 64)
    before = output_of(model, input)
    with torch.no_grad():
        model.layer4[0].downsample[1].running_mean.add_(1)
    after = output_of(model, input)
    assert not torch.allclose(before, after)
    with fastconv.use_backend("reference"):
        assert_close(after, output_of(model, input))
    shapes = []
    handle = model.layer2.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    assert_close(output_of(model, input), after)
    assert shapes == [(2, 128, 8, 8)]
    handle.remove()
    model.layer3[0].downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(128, 256, 1)).eval()
    model.fc = nn.Identity()
    pooled = output_of(model, input)
    assert pooled.shape == (2, 512)
    with fastconv.use_backend("reference"):
        assert_close(pooled, output_of(model, input))


def test_training_is_torchvision_s(native, torchvision):
    torch.manual_seed(0)
    ours, theirs = models.resnet18(num_classes=10), counterpart(torchvision, "resnet18")
    theirs.fc = nn.Linear(512, 10)
    theirs.load_state_dict(ours.state_dict())
    assert_trains_like(ours, theirs, torch.randn(8, 3, 64, 64))


@pytest.mark.parametrize("name", ["lenet5", "nin", "resnet18"])
def test_compile_and_export(native, name):
    torch.manual_seed(0)
    size = (1, 32, 32) if name == "lenet5" else (3, 64, 64)
    model = calibrated(models.create_model(name, num_classes=5), size[1:])
    input = torch.randn(2, *size)
    expected = output_of(model, input)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(output_of(compiled, input), expected)
    program = torch.export.export(model, (input,))
    assert not any("fastconv" in str(node.target) for node in program.graph.nodes)
    assert_close(output_of(program.module(), input), expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11", "vgg16_bn"])
def test_features_are_where_timm_has_them(torchvision, name):
    timm = pytest.importorskip("timm")
    with meta_device():
        theirs = timm.create_model(name, features_only=True)
        ours = models.create_model(name, features_only=True)
        assert list(ours.channels) == theirs.feature_info.channels()
        assert list(ours.reductions) == theirs.feature_info.reduction()
        shapes = [tuple(map.shape) for map in ours(torch.randn(1, 3, 64, 64))]
        assert shapes == [tuple(map.shape) for map in theirs(torch.randn(1, 3, 64, 64))]


def test_features_of_resnet(native):
    torch.manual_seed(0)
    network, input, expected = calibrated(models.resnet18()), torch.randn(2, 3, 64, 64), []
    for layer in ("relu", "layer2", "layer4"):
        network.get_submodule(layer).register_forward_hook(lambda _, __, y: expected.append(y))
    output_of(network, input)
    features = models.FeatureNetwork(network, (0, 2, 4))
    for ours, theirs in zip(output_of(features, input), expected[:3], strict=True):
        assert_close(ours, theirs)
    with pytest.raises(ValueError, match=r"network must be a MobileNet, .*, got GoogLeNet$"):
        models.create_model("googlenet", features_only=True)


def test_lenet5_is_the_paper_s(native):
    model, shapes = models.lenet5().eval(), []
    for name in ("c1", "s2", "c3", "s4", "c5", "f6"):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape[1:])))
    output_of(model, torch.randn(1, 1, 32, 32))
    assert shapes == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84,)]
    assert [sum(p.numel() for p in layer.parameters()) for layer in (model.c1, model.c5)] == [
        156,
        48_120,
    ]
    assert sum(p.numel() for p in model.parameters()) == 61_706
    other = models.lenet5(weights=model.state_dict(), activation_layer=nn.ReLU).eval()
    image = torch.randn(1, 1, 32, 32)
    assert not torch.allclose(output_of(other, image), output_of(model, image))


def test_network_in_network_is_the_paper_s(native):
    model, shapes = models.nin().eval(), []
    assert sum(p.numel() for p in model.parameters()) == 7_595_176
    for layer in model.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape[1:])))
    model.features[-1].register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape[1:])))
    assert output_of(model, torch.randn(1, 3, 224, 224)).shape == (1, 1000)
    assert shapes == [(96, 27, 27), (256, 13, 13), (384, 6, 6), (1000, 6, 6)]


def test_lenet5_learns_real_digits():
    images, labels, test_images, test_labels = _digits()

    def enlarged(images):
        return F.interpolate(images, size=(32, 32), mode="bilinear") * 2 - 1

    def moved(images):
        """Turned, scaled and shifted a little."""
        angle, scale, x, y = (torch.rand(4, len(images)) * 2 - 1) * torch.tensor(
            [[0.3], [0.12], [0.2], [0.2]]
        )
        cosine, sine = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
        rows = [torch.stack(row, 1) for row in ((cosine, -sine, x), (sine, cosine, y))]
        grid = F.affine_grid(torch.stack(rows, 1), images.shape, align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, images, epochs, batch = models.lenet5(), enlarged(images), 20, 32
    optimizer = torch.optim.AdamW(model.parameters())
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(batch)[: len(labels) // batch]:
            output = model(moved(images[rows]))
            loss = F.cross_entropy(output, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    right = output_of(model.eval(), enlarged(test_images)).argmax(1) == test_labels
    assert right.float().mean() >= 0.985


def test_rejects():
    for name in ("lenet5", "alexnet", "nin", "vgg11", "resnet18", "googlenet", "inception_v3"):
        with pytest.raises(ValueError, match=r"^\w+: in_chans must be at least 1, got 0"):
            models.create_model(name, in_chans=0)
    with meta_device():
        assert models.vgg11(in_chans=1).features[0].in_channels == 1
    with pytest.raises(ValueError, match=r"^LeNet5: input must have shape \(N, 1, 32, 32\), got"):
        models.lenet5()(torch.randn(1, 1, 28, 28))
    with pytest.raises(ValueError, match=r"^VGG: layers must be 5 numbers of at least 1, got \[1"):
        models.VGG([1, 1])
    with pytest.raises(ValueError, match=r"^ResNet: layers must be 4 numbers of at least 1, got"):
        models.ResNet(models.BasicBlock, (1, 1, 0, 1))
    with pytest.raises(ValueError, match=r"replace_stride_with_dilation must have 3 values, got"):
        models.resnet50(replace_stride_with_dilation=[True])
    with pytest.raises(ValueError, match=r"^BasicBlock: groups must be 1, got 2"):
        models.resnet18(groups=2)
    with pytest.raises(ValueError, match=r"^BasicBlock: dilation must be 1, got 2"):
        models.resnet18(replace_stride_with_dilation=[False, True, False])
