"""Pure tensor functions: the attention, its visibility and its state."""

from .features import FEATURE_MAPS
from .leap_attention import BACKENDS, choose_backend, leap_attention
from .state import LeapState
from .visibility import Visible, as_rule, seen_pairs, token_positions, visible_counts

__all__ = [
    "BACKENDS",
    "FEATURE_MAPS",
    "LeapState",
    "Visible",
    "as_rule",
    "choose_backend",
    "leap_attention",
    "seen_pairs",
    "token_positions",
    "visible_counts",
]
