"""Sequence classification: the mean of the real tokens, then a small net."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .base import LeaPformerModel, LeaPformerPreTrainedModel
from .configuration import LeaPformerConfig


class LeaPformerForSequenceClassification(LeaPformerPreTrainedModel):
    """Token ids [B, N] -> logits [B, num_labels]."""

    def __init__(self, config: LeaPformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LeaPformerModel(config)
        self.head = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.ReLU(),
            nn.Linear(config.intermediate_size, config.num_labels),
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """With `labels` [B] also the loss. `attention_mask` [B, N] is 1 for real tokens: others
        are neither attended to nor pooled."""
        outputs = self.model(input_ids, attention_mask, inputs_embeds, **kwargs)
        logits = self.head(mean_pool(outputs.last_hidden_state, attention_mask))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states
        )


def mean_pool(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of x [B, N, hidden] over the positions where mask [B, N] is true, zeros if none."""
    if mask is None:
        return x.mean(1)
    real = mask.bool().unsqueeze(-1)
    total = torch.where(real, x, 0).sum(1)
    return total / real.sum(1).clamp_min(1)
