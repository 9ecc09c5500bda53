"""The bare model: embeddings and blocks, as a transformers model."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..layers import MultiHeadAttention, TokenEmbedding, TransformerBlock
from ..zoo import attention_class
from .configuration import LeaPformerConfig


class LeaPformerBlock(GradientCheckpointingLayer, TransformerBlock):
    """A block built from a configuration, with gradient checkpointing."""

    def __init__(self, config: LeaPformerConfig) -> None:
        heads = config.num_attention_heads
        if heads < 1 or config.hidden_size < 1 or config.hidden_size % heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} is no multiple of num_attention_heads {heads}"
            )
        attention = attention_class(config.attention)(
            heads,
            config.hidden_size // heads,
            config.max_position_embeddings,
            **(config.attention_options or {}),
        )
        super().__init__(
            MultiHeadAttention(attention, config.hidden_dropout_prob),
            config.hidden_size,
            config.intermediate_size,
            config.hidden_dropout_prob,
            config.layer_norm_eps,
        )


class LeaPformerPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config: LeaPformerConfig
    config_class = LeaPformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("LeaPformerBlock",)
    _can_record_outputs = {"hidden_states": LeaPformerBlock}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))


class LeaPformerModel(LeaPformerPreTrainedModel):
    """Token ids [B, N] -> last_hidden_state [B, N, hidden]; every token sees every real token."""

    def __init__(self, config: LeaPformerConfig) -> None:
        super().__init__(config)
        self.embedding = TokenEmbedding(
            config.vocab_size,
            config.hidden_size,
            config.position_embedding,
            config.max_position_embeddings,
            config.pad_token_id,
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            LeaPformerBlock(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding.tokens = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """`attention_mask` [B, N] is 1 or True for real tokens; `inputs_embeds` [B, N, hidden]
        replaces `input_ids` [B, N]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        if given.dim() < 2:
            raise ValueError(f"the input is {list(given.shape)}: expected a batch, [B, N]")
        if given.shape[1] == 0:
            raise ValueError("the sequences are empty: a model needs at least one token")
        if attention_mask is not None and attention_mask.shape != given.shape[:2]:
            raise ValueError(
                f"attention_mask is {list(attention_mask.shape)}: "
                f"expected [B, N] = {list(given.shape[:2])}"
            )
        key_mask = None if attention_mask is None else attention_mask.bool()
        x = self.dropout(self.embedding(input_ids, inputs_embeds))
        for layer in self.layers:
            x = layer(x, "all", key_mask)
        return BaseModelOutput(last_hidden_state=self.norm(x))
