"""Pure tensor functions: the attention, its visibility and its state."""

from .features import FEATURE_MAPS
from .leap_attention import BACKENDS, choose_backend, leap_attention
from .state import LeapState
from .visibility import Visible, visible_counts

__all__ = [
    "BACKENDS",
    "FEATURE_MAPS",
    "LeapState",
    "Visible",
    "choose_backend",
    "leap_attention",
    "visible_counts",
]
