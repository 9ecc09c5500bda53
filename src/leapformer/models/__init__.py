"""Models of the transformers library. Importing this room registers them with its Auto classes."""

try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}; leapformer's models need it: pip install 'leapformer[models]'"
    ) from error

from .base import LeaPformerModel, LeaPformerPreTrainedModel
from .cache import LeaPformerCache
from .classifier import LeaPformerForSequenceClassification
from .configuration import LeaPformerConfig
from .language_model import LeaPformerForCausalLM

AutoConfig.register("leapformer", LeaPformerConfig, exist_ok=True)
AutoModel.register(LeaPformerConfig, LeaPformerModel, exist_ok=True)
AutoModelForCausalLM.register(LeaPformerConfig, LeaPformerForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    LeaPformerConfig, LeaPformerForSequenceClassification, exist_ok=True
)

__all__ = [
    "LeaPformerCache",
    "LeaPformerConfig",
    "LeaPformerForCausalLM",
    "LeaPformerForSequenceClassification",
    "LeaPformerModel",
    "LeaPformerPreTrainedModel",
]
