"""A user's own blocks and network, for the tests of the swap."""

import torch
import torch.nn.functional as F
from torch import nn

from .test_nn import randomized


class Shortcut(nn.Module):
    """A user's own inverted residual; whether it adds its input only its forward says."""

    def __init__(self, channels=8, mid=24, stride=1, act=nn.ReLU6, add=True, kernel=3):
        super().__init__()
        self.one = nn.Conv2d(channels, mid, 1, bias=False)
        self.one_norm = nn.BatchNorm2d(mid)
        self.one_act = act()
        pad = kernel // 2
        self.two = nn.Conv2d(mid, mid, kernel, stride, pad, groups=mid, bias=False)
        self.two_norm = nn.BatchNorm2d(mid)
        self.two_act = act()
        self.three = nn.Conv2d(mid, channels, 1, bias=False)
        self.three_norm = nn.BatchNorm2d(channels)
        self.add = add

    def forward(self, x):
        y = self.one_act(self.one_norm(self.one(x)))
        y = self.two_act(self.two_norm(self.two(y)))
        y = self.three_norm(self.three(y))
        return x + y if self.add else y


class Functional(nn.Module):
    """Convolution, norm, and a ReLU that is no module."""

    def __init__(self, activation=F.relu):
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 1, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.activation = activation

    def forward(self, x):
        return self.activation(self.bn(self.conv(x)))


class Net(nn.Module):
    """A network of a user's own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
        )
        self.body = nn.Sequential(Shortcut(), Shortcut(stride=2, add=False), Shortcut())
        self.last = nn.Conv2d(8, 20, 1)
        self.fc = nn.Linear(20, 5)

    def forward(self, x):
        return self.fc(F.relu(self.last(self.body(self.stem(x)))).mean((2, 3)))


def net():
    torch.manual_seed(0)
    return randomized(Net()).eval(), torch.randn(2, 3, 33, 31)


def output(module, *args):
    with torch.no_grad():
        return module(*args)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
