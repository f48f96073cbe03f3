"""Ready networks with torchvision's arguments and state_dict keys, native in eval mode."""

from ._builders import create_model, list_models
from ._weights import load_weights
from .mobilenet_v2 import MobileNetV2, mobilenet_v2

__all__ = ["MobileNetV2", "create_model", "list_models", "load_weights", "mobilenet_v2"]
