"""Networks as feature maps: where they are, against timm's, and what they hold."""

import pytest
import torch

from fastconv import models

from .meta import meta_device
from .test_networks import assert_close, calibrated, output_of
from .test_nn import Calls

TIMM = {
    "mobilenet_v1": "mobilenetv1_100",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b3": "efficientnet_b3",
    "efficientnet_v2_s": "efficientnetv2_s",
    "efficientnet_v2_l": "efficientnetv2_l",
}


@pytest.mark.parametrize("name", TIMM)
def test_features_are_where_timm_has_them(torchvision, name):
    timm = pytest.importorskip("timm")
    with meta_device():
        theirs = timm.create_model(TIMM[name], features_only=True)
        ours = models.create_model(name, features_only=True)
    assert list(ours.channels) == theirs.feature_info.channels()
    assert list(ours.reductions) == theirs.feature_info.reduction() == [2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mobilenet_v1", ["blocks.1", "blocks.4"]),
        ("mobilenet_v2", ["features.3", "features.17"]),
        ("mobilenet_v3_large", ["features.3", "features.16"]),
        ("efficientnet_b0", ["features.2", "features.7"]),
    ],
)
def test_features(native, name, layers):
    torch.manual_seed(0)
    network = calibrated(models.create_model(name))
    state, input, expected = network.state_dict(), torch.randn(2, 3, 96, 64), []
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(lambda _, __, y: expected.append(y))
    output_of(network, input)
    features = models.create_model(
        name, features_only=True, out_indices=(1, 4), weights=state
    ).eval()
    with Calls() as calls:
        maps = output_of(features, input)
    assert calls.names
    assert [tuple(m.shape[2:]) for m in maps] == [(24, 16), (3, 2)]
    assert [m.shape[1] for m in maps] == list(features.channels)
    assert features.reductions == (4, 32)
    for ours, theirs in zip(maps, expected, strict=True):
        assert_close(ours, theirs)
    kept = features.state_dict()
    assert all(torch.equal(kept[key], state[key]) for key in kept)
    head = ("classifier", "features.18", "features.8" if name == "efficientnet_b0" else "none")
    assert list(kept) == [key for key in state if not key.startswith(head)]
    assert len(models.create_model(name, features_only=True)(input)) == 5
    features.train()(input)[-1].mean().backward()


def test_features_stop_at_the_last_one_wanted():
    features = models.create_model("mobilenet_v2", features_only=True, out_indices=[0])
    assert len(features.features) == 2
    assert [tuple(m.shape) for m in features(torch.randn(2, 3, 32, 32))] == [(2, 16, 16, 16)]
    dilated = models.create_model("mobilenet_v3_small", features_only=True, dilated=True)
    assert dilated.reductions == (2, 4, 8, 16)
    features, input = features.eval(), torch.randn(2, 3, 32, 32)
    torch._dynamo.reset()
    compiled = torch.compile(features, fullgraph=True, backend="eager")
    assert_close(output_of(compiled, input)[0], output_of(features, input)[0])


@pytest.mark.parametrize("indices", [(), (5,), (-1,), (1, 0), (2, 2)])
def test_features_that_do_not_exist(indices):
    with pytest.raises(ValueError, match=r"MobileNetV1: out_indices must be rising .* 0 to 4, got"):
        models.create_model("mobilenet_v1", features_only=True, out_indices=indices)
