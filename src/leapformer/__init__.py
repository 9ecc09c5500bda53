"""LeaPformer: linear attention with learned proportions, for sequences of unknown length.

Importing this loads torch and nothing heavier; the models load transformers when first named.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .ops import LeapState, Visible, leap_attention
from .proportion import LeaP, LengthLeaP, Ramp

if TYPE_CHECKING:
    from .models import (
        LeaPformerConfig,
        LeaPformerForCausalLM,
        LeaPformerForSequenceClassification,
        LeaPformerModel,
    )
    from .zoo import ATTENTIONS

__version__ = "0.1.0"

_LAZY = {
    "ATTENTIONS": "zoo",
    "LeaPformerConfig": "models",
    "LeaPformerForCausalLM": "models",
    "LeaPformerForSequenceClassification": "models",
    "LeaPformerModel": "models",
}

__all__ = [
    "ATTENTIONS",
    "LeaP",
    "LeaPformerConfig",
    "LeaPformerForCausalLM",
    "LeaPformerForSequenceClassification",
    "LeaPformerModel",
    "LeapState",
    "LengthLeaP",
    "Ramp",
    "Visible",
    "leap_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
