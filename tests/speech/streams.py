"""A small translator of words, sound, and what its sessions write of it."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from leapformer.models.speech_configuration import LeaPformerSpeechConfig
from leapformer.models.speech_features import LeaPformerFeatureExtractor
from leapformer.models.speech_translation import LeaPformerForSpeechTranslation
from leapformer.tasks.speech.session import TranslationSession

CHUNK, RATIO, RATE = 5, 3, 16_000


def words(size):
    """A tokenizer of whole words."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"▁w{i}": i for i in range(3, size)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build(cross="leap", size=50, **options):
    torch.manual_seed(3)
    config = LeaPformerSpeechConfig(
        **{
            "vocab_size": size,
            "hidden_size": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "encoder_chunk": CHUNK,
            "wait_ratio": RATIO,
            "cross_attention": cross,
            "initializer_range": 0.3,
            "tie_word_embeddings": False,
            **options,
        }
    )
    model = LeaPformerForSpeechTranslation(config).double().eval()
    processor = SimpleNamespace(
        feature_extractor=LeaPformerFeatureExtractor(), tokenizer=words(size)
    )
    return model, processor


def noise(seconds, seed=0):
    samples = int(seconds * RATE)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


@dataclass(frozen=True)
class Written:
    """A token that a session wrote, how many states it saw, and how many were heard by then."""

    token: int
    seen: int
    heard: int


def record(translator):
    """What any session writes, a list of `Written` by session."""
    log = {}

    class Recorded(TranslationSession):
        def write(self, token, after):
            before, seen = self.written, self.taken + self.due()
            text = super().write(token, after)
            if self.written > before:
                log.setdefault(self, []).append(Written(token, seen, self.heard))
            return text

    return (lambda: Recorded(translator)), log


def heard(session, sound, cuts):
    """What a session writes of the sound, in pieces that end at the cuts."""
    text = [session.push(piece) for piece in np.split(sound, sorted(cuts))]
    return "".join(text) + session.finish()
