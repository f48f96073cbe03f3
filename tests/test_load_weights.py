"""Weights of torchvision and timm, from any kind of file, in each other's networks."""

import sys

import pytest
import torch
from torch import nn

from fastconv import models
from fastconv._torchvision import import_torchvision
from fastconv.models import load_weights, mobilenet_v2

from .meta import meta_device

PAIRS = [  # torchvision's name, timm's
    ("mobilenet_v2", "mobilenetv2_100"),
    ("efficientnet_b0", "efficientnet_b0"),
    ("mobilenet_v3_large", "mobilenetv3_large_100"),
    ("mobilenet_v3_small", "mobilenetv3_small_100"),
]
INPUT = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def from_torchvision(name):
    module = import_torchvision()
    if module is None:
        pytest.skip("torchvision is not installed")
    return module.models.get_model(name)


def from_timm(name):
    import_torchvision()
    return pytest.importorskip("timm").create_model(name)


def randomized(model, seed=0):
    """Weights and statistics of which no two tensors are equal; signals stay of moderate size."""
    torch.manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.7, 1.4)
        nn.init.normal_(norm.bias, 0, 0.3)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    for norm in norms:
        norm.running_mean += 0.2 * torch.randn_like(norm.running_mean)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)
        norm.num_batches_tracked.fill_(7)
    return model.eval()


def assert_same_outputs(ours, theirs):
    # Not part of a state_dict: 1e-3 in torchvision's MobileNetV3 and timm's tf_ networks.
    eps = {module.eps for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)}
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            (module.eps,) = eps
    with torch.no_grad():
        expected, output = theirs(INPUT), ours.eval()(INPUT)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * expected.abs().max()


def fails(model, weights, match, source="auto"):
    """It raises, and the model stays what it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        load_weights(model, weights, source)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.fixture(scope="module")
def timm_state():
    return randomized(from_timm("mobilenetv2_100")).state_dict()


@pytest.mark.parametrize(("torchvision_name", "timm_name"), PAIRS)
def test_torchvision_and_timm(torchvision_name, timm_name):
    one, other = from_torchvision(torchvision_name), randomized(from_timm(timm_name))
    parameters = list(one.parameters())
    assert load_weights(one, other.state_dict()) is one
    assert all(a is b for a, b in zip(parameters, one.parameters(), strict=True))
    assert_same_outputs(one, other)
    assert next(m for m in one.modules() if isinstance(m, nn.BatchNorm2d)).num_batches_tracked == 7
    back = from_timm(timm_name)
    load_weights(back, one.state_dict(), "torchvision")
    expected = other.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in back.state_dict().items())


def test_efficientnet_v2_and_its_timm_name():
    """Values only: timm's tf_ network computes with another padding."""
    with meta_device():
        one, other = from_torchvision("efficientnet_v2_s"), from_timm("tf_efficientnetv2_s")
    state = {
        key: torch.empty(value.shape, dtype=value.dtype)
        for key, value in other.state_dict().items()
    }
    for number, value in enumerate(state.values()):
        value.fill_(number)
    one = one.to_empty(device="cpu")
    load_weights(one, dict(sorted(state.items())), "timm")
    assert [int(value.flatten()[0]) for value in one.state_dict().values()] == list(range(782))


def test_resnet_has_one_set_of_names():
    theirs = randomized(from_timm("resnet50"))
    parameters = [p.clone() for p in theirs.parameters()]
    for source in ("auto", "timm", "torchvision"):
        ours = load_weights(models.resnet50(), theirs.state_dict(), source)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), parameters, strict=True))
    assert_same_outputs(ours, theirs)
    fails(models.resnet18(), theirs.state_dict(), r"layer1\.0\.conv3\.weight is unexpected; ")


def test_safetensors_file(tmp_path, timm_state, monkeypatch):
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "model.safetensors"
    save_file(timm_state, path)  # which sorts by name: not the order of the layers
    expected = load_weights(mobilenet_v2(), timm_state).state_dict()
    state = load_weights(mobilenet_v2(), path).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
    save_file(expected, path)
    state = load_weights(mobilenet_v2(), str(path)).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
    path.write_text("no tensors at all")
    fails(mobilenet_v2(), path, "model.safetensors must be a safetensors file, got: ")
    with pytest.raises(FileNotFoundError):
        load_weights(mobilenet_v2(), tmp_path / "nothing.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="needs safetensors: pip install safetensors"):
        load_weights(mobilenet_v2(), path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    ],
    ids=["state_dict", "model", "both", "module", "_orig_mod", "no-counters"],
)
def test_wrapped_weights(wrap, timm_state, tmp_path):
    path = tmp_path / "checkpoint.pth"
    expected = load_weights(mobilenet_v2(), timm_state).state_dict()
    for state in (timm_state, expected):
        torch.save(wrap(dict(state)), path)
        loaded = load_weights(mobilenet_v2(), path).state_dict()
        for key, value in loaded.items():
            assert "num_batches" in key or torch.equal(value, expected[key]), key


def test_model_inside_a_wrapper(timm_state):
    wrapped = nn.DataParallel(mobilenet_v2())
    load_weights(wrapped, timm_state)
    expected = load_weights(mobilenet_v2(), timm_state).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in wrapped.module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("blocks.2.1.bn2.weight"),
            r"got: blocks\.2\.1\.bn2\.weight, for features\.5\.conv\.1\.1\.weight, is missing$",
        ),
        (
            lambda s: s.update({"blocks.2.1.bn2.wait": torch.zeros(1)}),
            r"got: blocks\.2\.1\.bn2\.wait is unexpected, features\.5\.conv\.1\.1 has none$",
        ),
        (
            lambda s: s.update({"blocks.2.1.bn9.weight": torch.zeros(1)}),
            r"got: blocks\.2\.1\.bn9\.weight is unexpected$",
        ),
        (
            lambda s: s.update({"classifier.bias": torch.zeros(7)}),
            r"got: classifier\.bias must have shape \[1000\], got \[7\]$",
        ),
        (
            lambda s: s.update({"conv_head.weight": torch.zeros(1280, 320)}),
            r"got: conv_head\.weight must have shape \[1280, 320, 1, 1\], got \[1280, 320\]$",
        ),
        (lambda s: s.update({"bn1.bias": 3}), r"got: bn1\.bias is a int, not a tensor"),
        (
            lambda s: s.pop("blocks.2.1.conv_pwl.weight"),
            r"got: 105 layers are needed, 104 are there; what features\.5\.conv\.2 needs is "
            r"missing after blocks\.2\.1\.bn2$",
        ),
    ],
)
def test_one_wrong_key_of_timm(timm_state, change, message):
    state = dict(timm_state)
    change(state)
    fails(mobilenet_v2(), state, f"load_weights: state_dict must fit MobileNetV2, {message}")


def test_other_networks(timm_state):
    message = r"105 layers are needed, 55 are there; blocks.0.0.conv_pw must have the shapes of f"
    fails(mobilenet_v2(), from_timm("mobilenetv1_100").state_dict(), message)
    fails(mobilenet_v2(), {}, r"features\.0\.0\.weight is missing; ")
    fails(
        mobilenet_v2(), {"a": torch.zeros(1)}, "features.0.0.weight is missing; .*a is unexpected"
    )
    fails(mobilenet_v2(), {1: torch.zeros(1)}, r"state_dict must have strings as keys, got \[1\]")
    fails(nn.Linear(2, 2), timm_state, "weight is missing; bias is missing; conv_stem.weight is un")


def test_source(timm_state):
    for source in ("auto", "timm"):
        load_weights(mobilenet_v2(), timm_state, source)
    model = load_weights(mobilenet_v2(), mobilenet_v2().state_dict(), "torchvision")
    fails(
        model,
        timm_state,
        "names that are not torchvision's, such as conv_stem.weight",
        "torchvision",
    )
    fails(model, {"a": torch.zeros(1)}, "names that are not timm's, such as a", "timm")
    fails(model, timm_state, "source must be one of auto, torchvision, timm, got 'keras'", "keras")
