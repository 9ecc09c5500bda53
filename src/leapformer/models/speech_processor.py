"""What a speech translator reads and writes: features of audio, tokens of text."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from .base import IGNORED
from .speech_features import LeaPformerFeatureExtractor, Samples


def padded_labels(tokenizer: PreTrainedTokenizerFast, texts: list[str], end: bool = True) -> Tensor:
    """Ids of the texts, int64 [B, N], -100 behind them; with or without the end of each."""
    rows = [tokenizer(text)["input_ids"][: None if end else -1] for text in texts]
    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(ids, batch_first=True, padding_value=IGNORED)


class LeaPformerSpeechProcessor(ProcessorMixin):
    """A feature extractor and the tokenizer of what is written, kept in one folder.

    Args:
        feature_extractor: of the audio.
        tokenizer: of the target texts; it must end each with its `eos_token` and have a
            `pad_token`.
    """

    def __init__(
        self, feature_extractor: LeaPformerFeatureExtractor, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__(feature_extractor, tokenizer)

    def __call__(
        self,
        audio: Samples | list[Samples] | None = None,
        text: str | list[str] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """A batch for a model.

        Args:
            audio: 1-D arrays of floats in [-1, 1], or one; gives `input_features` float32 [B, T,
                bins] and `attention_mask` [B, T].
            text: texts, or one; gives `labels` int64 [B, L], each ended by the end token and padded
                with -100.
            sampling_rate, options: as of `LeaPformerFeatureExtractor`.
            return_tensors: "pt" for tensors; lists otherwise.

        Raises ValueError where neither is given, and what the extractor raises.
        """
        if audio is None and text is None:
            raise ValueError("neither audio nor text is given: give one or both")
        batch = BatchFeature()
        if audio is not None:
            found = self.feature_extractor(
                audio, sampling_rate, return_tensors=return_tensors, **options
            )
            batch.update(found)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            labels = padded_labels(self.tokenizer, texts).tolist()
            batch.update(BatchFeature({"labels": labels}, tensor_type=return_tensors))
        return batch

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """Texts of rows of token ids (lists, arrays, a tensor [B, L]), -100 left out. `options` are
        those of the tokenizer, such as `skip_special_tokens=True`."""
        rows = [[i for i in map(int, row) if i != IGNORED] for row in sequences]
        found: list[str] = self.tokenizer.batch_decode(rows, **options)
        return found
