"""Ready networks with the arguments and state_dict keys of torchvision, native in eval mode.

MobileNetV1, LeNet-5 and Network in Network are not in torchvision: the first has timm's keys.
"""

from ._basic_conv2d import BasicConv2d
from ._builders import create_model, image_size, list_models
from ._features import FeatureNetwork
from ._weights import load_weights
from .alexnet import AlexNet, alexnet
from .efficientnet import (
    EfficientNet,
    StageSetting,
    efficientnet_b0,
    efficientnet_b1,
    efficientnet_b2,
    efficientnet_b3,
    efficientnet_b4,
    efficientnet_b5,
    efficientnet_b6,
    efficientnet_b7,
)
from .efficientnet_v2 import efficientnet_v2_l, efficientnet_v2_m, efficientnet_v2_s
from .googlenet import GoogLeNet, GoogLeNetOutputs, Inception, googlenet
from .inception_v3 import InceptionOutputs, InceptionV3, inception_v3
from .lenet import LeNet5, lenet5
from .mobilenet_v1 import MobileNetV1, MobileNetV1Block, mobilenet_v1
from .mobilenet_v2 import MobileNetV2, mobilenet_v2
from .mobilenet_v3 import BlockSetting, MobileNetV3, mobilenet_v3_large, mobilenet_v3_small
from .nin import NiN, nin
from .resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from .vgg import VGG, vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn

__all__ = [
    "VGG",
    "AlexNet",
    "BasicBlock",
    "BasicConv2d",
    "BlockSetting",
    "Bottleneck",
    "EfficientNet",
    "FeatureNetwork",
    "GoogLeNet",
    "GoogLeNetOutputs",
    "Inception",
    "InceptionOutputs",
    "InceptionV3",
    "LeNet5",
    "MobileNetV1",
    "MobileNetV1Block",
    "MobileNetV2",
    "MobileNetV3",
    "NiN",
    "ResNet",
    "StageSetting",
    "alexnet",
    "create_model",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_l",
    "efficientnet_v2_m",
    "efficientnet_v2_s",
    "googlenet",
    "image_size",
    "inception_v3",
    "lenet5",
    "list_models",
    "load_weights",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "nin",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]
