"""The speech translator: trained in parallel on exactly what it sees in a stream."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, ctc_loss
from transformers import GenerationMixin
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from ..ops import Visible, visible_counts
from .base import IGNORED, LeaPformerPreTrainedModel, refuse_unknown
from .cache import CACHE_NAME, given_cache
from .speech_configuration import LeaPformerSpeechConfig
from .speech_decoder import LeaPformerSpeechCache, LeaPformerSpeechDecoder
from .speech_encoder import LeaPformerSpeechEncoder, SpeechEncoderOutput

BLANK = 0
"""Of CTC."""


class LeaPformerForSpeechTranslation(LeaPformerPreTrainedModel, GenerationMixin):
    """Frames [B, T, bins] and target ids [B, N] -> logits [B, N, vocab_size].

    With `wait_k` the tokens see what a stream under that policy has heard; without, all of the
    source. `generate` translates offline, or, with `wait_k=`, under what a stream would have heard;
    unlike a stream it takes the first end, though the source goes on.
    """

    config: LeaPformerSpeechConfig
    config_class = LeaPformerSpeechConfig
    base_model_prefix = ""
    main_input_name = "input_features"
    _no_split_modules = ("LeaPformerSpeechBlock",)
    _can_record_outputs: dict[str, Any] = {}  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "decoder.embedding.tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LeaPformerSpeechConfig) -> None:
        super().__init__(config)
        self.encoder = LeaPformerSpeechEncoder(config)
        self.decoder = LeaPformerSpeechDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.ctc_head = None
        if config.ctc_vocab_size is not None:
            self.ctc_head = nn.Linear(config.hidden_size, config.ctc_vocab_size)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embedding.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.embedding.tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        ctc_labels: Tensor | None = None,
        encoder_outputs: SpeechEncoderOutput | None = None,
        cache: LeaPformerSpeechCache | None = None,
        use_cache: bool | None = None,
        wait_k: int | None = None,
        visible: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: LeaPformerSpeechCache | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Args:
        input_features: [B, T, bins], normalised; or `encoder_outputs` in their place.
        attention_mask: [B, T], 1 for real frames; padding comes last.
        decoder_input_ids: [B, N]; by default the labels moved on by one, behind the start token.
        labels: [B, N], the translation and its end, -100 at padding, which comes last.
        ctc_labels: [B, M], the transcript, -100 at padding; for models with `ctc_vocab_size`.
        cache: what came before, of the same source. It is changed.
        wait_k: units of the source that the first token waits for; None: all of it.
        visible: [N] or, without a cache, [B, N], in place of `wait_k`: how many states each token
            sees.
        num_items_in_batch: by which the summed losses are divided, instead of the labels here.
        past_key_values: the cache's name before transformers 5.24, here and in what is returned.

        Raises TypeError for a keyword that is none of these.
        """
        refuse_unknown(kwargs)
        source = encoder_outputs
        if source is None:
            if input_features is None:
                raise ValueError("give input_features or encoder_outputs")
            source = self.encoder(input_features, attention_mask)
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give decoder_input_ids or labels")
            decoder_input_ids = self.shifted(labels)
        cache = given_cache(cache, past_key_values)
        by_row = visible is not None and visible.dim() > 1
        if cache is None and (not (self.training or by_row) if use_cache is None else use_cache):
            cache = LeaPformerSpeechCache()
        if cache is not None and by_row:
            raise ValueError(
                "visible has a row for each sequence, and a cache goes on for all alike: "
                "give use_cache=False, or one row [N]"
            )
        if cache is not None and not isinstance(cache, LeaPformerSpeechCache):
            raise TypeError(
                f"the cache is a {type(cache).__name__}: expected a LeaPformerSpeechCache"
            )
        whole, seen = source, self._seen(decoder_input_ids, source, cache, wait_k, visible)
        if cache is not None:
            source, seen = _unheard(source, seen, cache.heard)
        hidden = self.decoder(decoder_input_ids, source, seen, cache)
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = cross_entropy(
                logits.float().flatten(0, 1),
                labels.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
                label_smoothing=self.config.label_smoothing if self.training else 0.0,
            )
            if ctc_labels is not None and self.training:
                loss = loss + self.config.ctc_weight * self.ctc_loss(whole, ctc_labels)
            tokens = (labels != IGNORED).sum()
            loss = loss / (tokens if num_items_in_batch is None else num_items_in_batch)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            encoder_last_hidden_state=whole.last_hidden_state,
            **{CACHE_NAME: cache},
        )

    def shifted(self, labels: Tensor) -> Tensor:
        """Labels [B, N] moved on by one, behind the start token, padding as the padding token."""
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        moved = torch.cat([start, labels[:, :-1]], 1)
        return moved.masked_fill(moved == IGNORED, self.config.pad_token_id)

    def ctc_loss(self, source: SpeechEncoderOutput, labels: Tensor) -> Tensor:
        """-log p of the transcripts [B, M], summed, with the head on the encoder."""
        if self.ctc_head is None:
            raise ValueError("the model has no CTC head: give its configuration a ctc_vocab_size")
        states, real = source.last_hidden_state, source.real
        scores = self.ctc_head(states).float().log_softmax(-1).transpose(0, 1)
        lengths = labels.new_full((len(labels),), states.shape[1]) if real is None else real.sum(1)
        there = labels != IGNORED
        return ctc_loss(
            scores,
            labels.clamp_min(0),
            lengths,
            there.sum(1),
            blank=BLANK,
            reduction="sum",
            zero_infinity=True,
        )

    def _seen(
        self,
        ids: Tensor,
        source: SpeechEncoderOutput,
        cache: LeaPformerSpeechCache | None,
        wait_k: int | None,
        visible: Tensor | None,
    ) -> Tensor | Visible:
        """States that each of the tokens sees, from the first state on."""
        if visible is not None:
            return visible
        rule = Visible.all() if wait_k is None else Visible.wait_k(wait_k, self.config.wait_ratio)
        if cache is None or wait_k is None:
            return rule
        before, states = cache.length, source.last_hidden_state.shape[1]
        return visible_counts(rule, len(ids), before + ids.shape[1], states)[before:]


def _unheard(
    source: SpeechEncoderOutput, seen: Tensor | Visible, heard: int
) -> tuple[SpeechEncoderOutput, Tensor | Visible]:
    """Of the source the states that the cross-attention has not taken in, up to the last that a
    token sees, and how many of those each token sees."""
    last = None
    if isinstance(seen, Tensor):
        last = int(seen.max())
        seen = (seen - heard).clamp_min(0)
    return source.part(heard, last), seen
