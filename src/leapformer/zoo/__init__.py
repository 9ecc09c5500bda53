"""The attention mechanisms by name. To add one: one file here, one line in `ATTENTIONS`."""

import difflib

from .base import Attention, Traits
from .cosformer import CosformerAttention
from .leap import LeapAttention
from .linear import LinearAttention
from .softmax import SoftmaxAttention

ATTENTIONS: dict[str, type[Attention]] = {
    "leap": LeapAttention,
    "cosformer": CosformerAttention,
    "linear": LinearAttention,
    "softmax": SoftmaxAttention,
}


def attention_class(name: str) -> type[Attention]:
    """The mechanism of that name; ValueError with the nearest names where there is none."""
    if name not in ATTENTIONS:
        near = difflib.get_close_matches(name, ATTENTIONS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown attention {name!r}{hint}: choose from {', '.join(ATTENTIONS)}")
    return ATTENTIONS[name]


__all__ = ["ATTENTIONS", "Attention", "Traits", "attention_class"]
