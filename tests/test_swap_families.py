"""The swap on every family of convolutional networks of torchvision, and on timm's.

The networks are small and random; their BatchNorms have the statistics of one batch, so that
activations stay in range however deep the network is.
"""

import pytest
import torch
from torch import nn

import fastconv
from fastconv._swapped import Swapped
from fastconv._torchvision import import_torchvision

# The least share of the multiply-accumulates that must run natively.
MOBILE, OTHERS = 0.99, 0.8

TORCHVISION = {
    "alexnet": OTHERS,
    "convnext_tiny": 0.0,  # half of it are linear layers, and its convolutions are all native
    "densenet121": OTHERS,
    "efficientnet_b0": MOBILE,
    "efficientnet_v2_s": MOBILE,
    "googlenet": OTHERS,
    "inception_v3": OTHERS,
    "mnasnet0_5": MOBILE,
    "mobilenet_v2": MOBILE,
    "mobilenet_v3_large": MOBILE,
    "mobilenet_v3_small": MOBILE,
    "regnet_x_400mf": 0.75,
    "regnet_y_400mf": OTHERS,
    "resnet18": OTHERS,
    "resnet50": OTHERS,
    "resnext50_32x4d": OTHERS,
    "shufflenet_v2_x0_5": MOBILE,
    "squeezenet1_1": OTHERS,
    "vgg11_bn": OTHERS,
}

TIMM = {
    "mobilenetv1_100": MOBILE,
    "mobilenetv2_050": MOBILE,
    "mobilenetv2_110d": MOBILE,
    "mobilenetv3_large_100": MOBILE,
    "mobilenetv3_small_075": MOBILE,
    "mobilenetv3_rw": MOBILE,
    "tf_mobilenetv3_small_minimal_100": MOBILE,
    "tf_mobilenetv3_small_075": MOBILE,
    "mobilenetv4_conv_small": MOBILE,
    "mobilenet_edgetpu_100": MOBILE,
    "lcnet_050": MOBILE,
    "fbnetc_100": MOBILE,
    "fbnetv3_b": MOBILE,
    "hardcorenas_a": MOBILE,
    "mixnet_s": MOBILE,
    "tf_mixnet_s": MOBILE,
    "rexnet_100": MOBILE,
    "spnasnet_100": MOBILE,
    "tinynet_e": MOBILE,
    "mobileone_s0": MOBILE,
    "repvit_m0_9": MOBILE,
    "efficientvit_b0": 0.95,
    "efficientnet_b0": MOBILE,
    "efficientnet_lite0": MOBILE,
    "efficientnet_es": MOBILE,
    "efficientnet_b3_pruned": MOBILE,
    "tf_efficientnet_b0": MOBILE,
    "tf_efficientnet_lite0": MOBILE,
    "tf_efficientnetv2_b0": MOBILE,
    "efficientnet_b0_gn": MOBILE,
    "mnasnet_small": MOBILE,
    "semnasnet_075": MOBILE,
    "ghostnet_050": MOBILE,
    "ghostnetv2_100": MOBILE,
    "repghostnet_050": MOBILE,
    "resnet18": OTHERS,
    "resnet26t": OTHERS,
    "seresnet18": OTHERS,
    "resnetv2_18": OTHERS,
    "regnetx_002": OTHERS,
    "regnety_002": OTHERS,
    "convnext_atto": 0.0,
    "convnextv2_atto": 0.0,
    "repvgg_a0": OTHERS,
}

SIZES = {"inception_v3": 80, "repvit_m0_9": 96, "efficientvit_b0": 96, "vgg11_bn": 64}

torchvision = import_torchvision()


@pytest.fixture(autouse=True)
def _few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def calibrated(model, input):
    """Gives every BatchNorm the statistics of this batch, and weights that hide nothing."""
    torch.manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):  # of a scale that is tiny at first
                parameter.fill_(0.5)
        for norm in norms:
            norm.weight.uniform_(0.6, 1.2)
            norm.bias.normal_(0, 0.2)
            norm.momentum = 1.0
        model.train()
        model(input)
    return model.eval()


def check(model, input, least):
    calibrated(model, input)
    kinds = [type(module) for module in model.modules()]
    with torch.inference_mode():
        expected = model(input)
        fastconv.swap(model)
        report = fastconv.report(model, (3, *input.shape[2:]))
        actual = model(input)
        again = model(input)
        fastconv.restore(model)
        restored = model(input)
    scale = expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * scale, "no image matters: no test"
    error = (actual - expected).abs().max()
    if error > 1e-4 * scale:  # a network that amplifies rounding: ours must not be worse
        truth = model.double()(input.double())
        theirs = (expected - truth).abs().max()
        assert (actual - truth).abs().max() <= 2 * theirs
        assert theirs < 1e-2 * scale
    assert torch.equal(actual, again)
    assert torch.equal(restored, expected)
    assert [type(module) for module in model.modules()] == kinds
    assert report.mac_coverage >= least, report
    assert all(row.reason for row in report.skipped), report
    if least in (MOBILE, 0.0):
        assert report.coverage >= 0.95, report


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.skipif(torchvision is None, reason="torchvision is not installed")
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(native, name):
    torch.manual_seed(0)
    arguments = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    model = getattr(torchvision.models, name)(weights=None, num_classes=10, **arguments)
    size = SIZES.get(name, 64)
    check(model, torch.randn(4, 3, size, size), TORCHVISION[name])


@pytest.mark.parametrize("name", TIMM)
def test_timm(native, name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    size = SIZES.get(name, 64)
    check(model, torch.randn(4, 3, size, size), TIMM[name])


@pytest.mark.parametrize("name", fastconv.models.list_models("*b0"))
def test_fastconv_s_own_networks_need_no_swap(name):
    model = fastconv.models.create_model(name).eval()
    assert fastconv.report(model).coverage == 1
    fastconv.swap(model)
    assert not any(isinstance(module, Swapped) for module in model.modules())
