"""``fastconv classify``: photos through ready networks, on fastconv and on PyTorch as it comes."""

from .networks import Networks, load_networks
from .sources import ClassifyError, demo_photos, find_weights

__all__ = ["ClassifyError", "Networks", "demo_photos", "find_weights", "load_networks"]
