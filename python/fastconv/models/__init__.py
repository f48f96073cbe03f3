"""Ready networks with the arguments and state_dict keys of torchvision, native in eval mode.

MobileNetV1 is not in torchvision: it has timm's keys.
"""

from ._builders import create_model, list_models
from ._features import FeatureNetwork
from ._weights import load_weights
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
from .mobilenet_v1 import MobileNetV1, MobileNetV1Block, mobilenet_v1
from .mobilenet_v2 import MobileNetV2, mobilenet_v2
from .mobilenet_v3 import BlockSetting, MobileNetV3, mobilenet_v3_large, mobilenet_v3_small

__all__ = [
    "BlockSetting",
    "EfficientNet",
    "FeatureNetwork",
    "MobileNetV1",
    "MobileNetV1Block",
    "MobileNetV2",
    "MobileNetV3",
    "StageSetting",
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
    "list_models",
    "load_weights",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
]
