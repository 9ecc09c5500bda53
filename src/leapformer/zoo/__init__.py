"""The attention mechanisms by name. To add one: one file here, one line in `ATTENTIONS`."""

from ..ops.checks import known
from .base import Attention, EncoderAttention, State, Traits, View
from .bigbird import BigBirdAttention
from .cosformer import CosformerAttention
from .informer import InformerAttention
from .kernelized import KernelizedAttention
from .leap import LeapAttention
from .linear import LinearAttention
from .linformer import LinformerAttention
from .nystromformer import NystromformerAttention
from .performer import PerformerAttention
from .reformer import ReformerAttention
from .skyformer import SkyformerAttention
from .softmax import SoftmaxAttention
from .transformer_ls import TransformerLSAttention

ATTENTIONS: dict[str, type[Attention]] = {
    "leap": LeapAttention,
    "cosformer": CosformerAttention,
    "linear": LinearAttention,
    "softmax": SoftmaxAttention,
    "kernelized": KernelizedAttention,
    "linformer": LinformerAttention,
    "nystromformer": NystromformerAttention,
    "informer": InformerAttention,
    "skyformer": SkyformerAttention,
    "performer": PerformerAttention,
    "reformer": ReformerAttention,
    "bigbird": BigBirdAttention,
    "transformer_ls": TransformerLSAttention,
}


def attention_class(name: str) -> type[Attention]:
    """The mechanism of that name; ValueError with the nearest names where there is none."""
    return ATTENTIONS[known("attention", name, ATTENTIONS)]


__all__ = [
    "ATTENTIONS",
    "Attention",
    "EncoderAttention",
    "LinearAttention",
    "State",
    "Traits",
    "View",
    "attention_class",
]
