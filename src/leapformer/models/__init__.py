"""Models of the transformers library. Importing this room registers them with its Auto classes."""

try:
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForSpeechSeq2Seq,
        AutoProcessor,
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
from .speech_configuration import LeaPformerSpeechConfig
from .speech_decoder import LeaPformerSpeechCache
from .speech_features import FeatureStream, LeaPformerFeatureExtractor
from .speech_processor import LeaPformerSpeechProcessor
from .speech_translation import LeaPformerForSpeechTranslation

AutoConfig.register("leapformer", LeaPformerConfig, exist_ok=True)
AutoModel.register(LeaPformerConfig, LeaPformerModel, exist_ok=True)
AutoModelForCausalLM.register(LeaPformerConfig, LeaPformerForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    LeaPformerConfig, LeaPformerForSequenceClassification, exist_ok=True
)
AutoConfig.register("leapformer_speech", LeaPformerSpeechConfig, exist_ok=True)
AutoModelForSpeechSeq2Seq.register(
    LeaPformerSpeechConfig, LeaPformerForSpeechTranslation, exist_ok=True
)
# By name, for a saved extractor or processor names its class: no other model's folder becomes one.
AutoFeatureExtractor.register("leapformer-speech", LeaPformerFeatureExtractor, exist_ok=True)
AutoProcessor.register("leapformer-speech", LeaPformerSpeechProcessor, exist_ok=True)

__all__ = [
    "FeatureStream",
    "LeaPformerCache",
    "LeaPformerConfig",
    "LeaPformerFeatureExtractor",
    "LeaPformerForCausalLM",
    "LeaPformerForSequenceClassification",
    "LeaPformerForSpeechTranslation",
    "LeaPformerModel",
    "LeaPformerPreTrainedModel",
    "LeaPformerSpeechCache",
    "LeaPformerSpeechConfig",
    "LeaPformerSpeechProcessor",
]
