"""Networks in training: swapped ones, several processes, and real digits."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastconv
from fastconv._torchvision import import_torchvision
from fastconv.nn import Conv2dNormAct, DepthwiseSeparableConv2d

from .conftest import LEVELS
from .test_nn import Calls
from .train_cases import assert_trains_like

pytestmark = pytest.mark.skipif(not LEVELS, reason="the native library is missing")

# And how many of their depthwise convolutions there are.
SWAPPED = {
    "torchvision:mobilenet_v2": 17,
    "torchvision:mobilenet_v3_small": 11,
    "torchvision:efficientnet_b0": 16,
    "timm:mobilenetv1_100": 13,
    "timm:mobilenetv3_small_100": 11,
    "timm:efficientnet_lite0": 16,
}


def _network(name):
    source, _, name = name.partition(":")
    if import_torchvision() is None:
        pytest.skip("torchvision is not installed")
    if source == "timm":
        return pytest.importorskip("timm").create_model(name)
    import torchvision

    return torchvision.models.get_model(name, weights=None)


@pytest.mark.parametrize("name", SWAPPED)
def test_swapped_networks_train_on_the_kernels(name):
    torch.manual_seed(0)
    plain = _network(name)
    for module in plain.modules():  # what is drawn is compared elsewhere
        for rate in ("p", "drop_prob"):
            if type(module).__name__ in ("Dropout", "StochasticDepth", "DropPath"):
                vars(module)[rate] = 0.0
        if isinstance(getattr(module, "drop_rate", None), float):
            module.drop_rate = 0.0
    model = fastconv.swap(copy.deepcopy(plain))
    with Calls() as calls:
        assert_trains_like(model, plain, torch.randn(8, 3, 64, 64))
    assert calls.names.count("train_depthwise_conv2d_backward") == SWAPPED[name]
    report = fastconv.report(model)
    depthwise = [row for row in report.rows if "groups" in row.shape]
    assert all(row.trains_in for row in depthwise)
    fastconv.restore(model)
    with Calls() as calls:
        model(torch.randn(2, 3, 64, 64))
    assert not calls.names


class _ChoosesByMode(nn.Module):
    """A block that is another one in training."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()

    def forward(self, x):
        output = self.act(self.bn(self.conv(x)))
        return 2 * output if self.training else output


def test_a_forward_that_is_another_in_training_stays_its_own():
    block, input = _ChoosesByMode(), torch.randn(4, 8, 5, 5)
    expected = copy.deepcopy(block)(input)
    fastconv.swap(block)
    with Calls() as calls:
        assert torch.equal(block(input), expected)
    assert not calls.names
    with torch.no_grad(), Calls() as calls:
        block.eval()(input)
    assert calls.names


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_swapped_blocks_drop_as_their_own_class_does(p):
    if import_torchvision() is None:
        pytest.skip("torchvision is not installed")
    from torchvision.models.efficientnet import MBConv, MBConvConfig

    torch.manual_seed(0)
    plain = MBConv(MBConvConfig(6, 3, 1, 16, 16, 1), p, nn.BatchNorm2d)
    block, input = fastconv.swap(copy.deepcopy(plain)), torch.randn(16, 16, 7, 7)
    outputs = []
    for module in (block, plain):
        torch.manual_seed(1)
        with Calls() as calls:
            outputs.append(module(input))
        assert bool(calls.names) == (module is block)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_two_processes_train_like_pytorch(tmp_path):
    command = (
        f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 "
        f"{Path(__file__).with_name('ddp_worker.py')} {tmp_path} auto reference"
    )
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    native = torch.load(tmp_path / "auto", weights_only=True)
    reference = torch.load(tmp_path / "reference", weights_only=True)
    for name, ours in native.items():
        theirs = reference[name]
        torch.testing.assert_close(
            ours, theirs, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def _digits():
    """1797 scanned digits, 16 grey values of 8 x 8 pixels; every fifth is for the test."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn has the data")
    data = datasets.load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    held = torch.arange(len(labels)) % 5 == 0
    return images[~held], labels[~held], images[held], labels[held]


def _shifted(images):
    """Moved by up to a pixel either way."""
    padded = F.pad(images, (1, 1, 1, 1))
    y, x = torch.randint(0, 3, (2, 1)).flatten().tolist()
    return padded[:, :, y : y + 8, x : x + 8]


def test_real_digits_are_learned():
    images, labels, test_images, test_labels = _digits()
    torch.manual_seed(0)
    block = DepthwiseSeparableConv2d
    model = nn.Sequential(
        Conv2dNormAct(1, 32, 3),
        block(32, 64),
        block(64, 128, stride=2),
        block(128, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, 10),
    )
    epochs, batch = 20, 64
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)
    with Calls() as calls:
        model(images[:2]).sum().backward()
    assert "train_depthwise_conv2d_backward" in calls.names
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(batch)[: len(labels) // batch]:
            loss = F.cross_entropy(model(_shifted(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = (model.eval()(test_images).argmax(1) == test_labels).float().mean()
    assert right >= 0.99
