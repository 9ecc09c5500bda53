"""The language model: a causal LeaPformer that predicts the next token."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .base import IGNORED, LeaPformerModel, LeaPformerPreTrainedModel
from .cache import CACHE_NAME, LeaPformerCache, given_cache
from .configuration import LeaPformerConfig
from .inputs import check_labels, given_input, packed_bounds


class LeaPformerForCausalLM(LeaPformerPreTrainedModel, GenerationMixin):
    """Token ids [B, N] -> logits [B, N, vocab_size] of each next one.

    `generate` goes on from one state a block, constant in size for linear mechanisms. With
    `config.adaptive_cutoffs` input and output are adaptive, and logits are log-probabilities.
    """

    def __init__(self, config: LeaPformerConfig) -> None:
        if not config.causal:
            config = copy.deepcopy(config)
            config.causal = True
        super().__init__(config)
        self.model = LeaPformerModel(config)
        source = "model.embedding.tokens"
        self.lm_head: nn.Linear | nn.AdaptiveLogSoftmaxWithLoss
        if config.adaptive_cutoffs is None:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            tied = {"lm_head.weight": f"{source}.weight"}
        else:
            self.lm_head = nn.AdaptiveLogSoftmaxWithLoss(
                config.hidden_size,
                config.vocab_size,
                config.adaptive_cutoffs,
                div_value=config.adaptive_factor,
            )
            tied = {"lm_head.head.weight": f"{source}.first.weight"}
            for b in range(len(config.adaptive_cutoffs)):
                tied[f"lm_head.tail.{b}.0.weight"] = f"{source}.bands.{b}.up.weight"
                tied[f"lm_head.tail.{b}.1.weight"] = f"{source}.bands.{b}.vectors.weight"
        self._tied_weights_keys = tied
        self._keys_to_ignore_on_save = list(tied) if config.tie_word_embeddings else None
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: Any) -> None:
        self.lm_head = value

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As transformers does it; NotImplementedError for an adaptive vocabulary."""
        if self.config.adaptive_cutoffs is not None:
            raise NotImplementedError(
                "an adaptive vocabulary is cut into bands by frequency: make a model with another "
                "vocab_size instead"
            )
        return super().resize_token_embeddings(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: LeaPformerCache | None = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: LeaPformerCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Args other than these are those of `LeaPformerModel`.

        labels: [B, N], the tokens themselves, -100 where there is nothing to predict; they are
            shifted here, and the first token of a packed document is never predicted. With
            adaptive output they are scored without the logits of the whole vocabulary, which are
            then left out.
        logits_to_keep: logits of so many last tokens only, or of those at these indices; 0 for all.
        num_items_in_batch: by which the summed loss is divided, instead of the labels counted here.
        """
        given = given_input(input_ids, inputs_embeds, self.config.hidden_size)
        check_labels(labels, given, logits_to_keep)
        cache = given_cache(cache, past_key_values)
        alone = cache is None and attention_mask is None
        cu_seq_lens_q = packed_bounds(given, cu_seq_lens_q, position_ids, alone)
        outputs = self.model(
            input_ids,
            attention_mask,
            inputs_embeds,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            cu_seq_lens_q=cu_seq_lens_q,
            **kwargs,
        )
        hidden, logits, loss = outputs.last_hidden_state, None, None
        adaptive = isinstance(self.lm_head, nn.AdaptiveLogSoftmaxWithLoss)
        if labels is not None and cu_seq_lens_q is not None:
            starts = cu_seq_lens_q[:-1].long().to(labels.device)
            labels = labels.index_fill(1, starts[starts < labels.shape[1]], IGNORED)
        if labels is None or not adaptive:
            kept = (
                slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            )
            kept_hidden = hidden[:, kept]
            if isinstance(self.lm_head, nn.AdaptiveLogSoftmaxWithLoss):
                with _precise(hidden):
                    rows = self.lm_head.log_prob(kept_hidden.flatten(0, 1))
                logits = rows.unflatten(0, kept_hidden.shape[:2])
            else:
                logits = self.lm_head(kept_hidden)
        if labels is not None and adaptive:
            loss = self._adaptive_loss(hidden, labels, num_items_in_batch)
        elif labels is not None:
            loss = self.loss_function(
                logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )

    def token_losses(self, input_ids: Tensor) -> Tensor:
        """-log p of each token [B, N] but the first, in nats: float32 [B, N - 1]."""
        hidden = self.model(input_ids, use_cache=False).last_hidden_state[:, :-1]
        targets = input_ids[:, 1:]
        if isinstance(self.lm_head, nn.AdaptiveLogSoftmaxWithLoss):
            return self._adaptive_losses(hidden.flatten(0, 1), targets.flatten()).view_as(targets)
        logits = self.lm_head(hidden).float()
        return nn.functional.cross_entropy(logits.mT, targets, reduction="none")

    def _adaptive_loss(self, hidden: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        predicted = labels[:, 1:] != IGNORED
        losses = self._adaptive_losses(hidden[:, :-1][predicted], labels[:, 1:][predicted])
        return losses.sum() / (predicted.sum() if count is None else count)

    def _adaptive_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p of targets [M] after hidden [M, hidden]: float32 [M]."""
        with _precise(hidden):
            return -self.lm_head(hidden, targets).output.float()


def _precise(x: Tensor) -> AbstractContextManager[object]:
    """Autocast leaves log_softmax in half precision on a CPU alone, which adaptive output refuses
    to mix with what it is given: no autocast there."""
    return torch.autocast("cpu", enabled=False) if x.device.type == "cpu" else nullcontext()
