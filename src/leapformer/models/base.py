"""The bare model: embeddings and blocks, as a transformers model."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..layers import MultiHeadAttention, ShortConvolution, TokenEmbedding, TransformerBlock
from ..proportion import LengthLeaP
from ..zoo import ATTENTIONS, attention_class
from .cache import CACHE_NAME, CACHE_NAMES, LeaPformerCache, given_cache
from .configuration import LeaPformerConfig
from .inputs import given_input, packed_bounds, real_tokens, token_places

IGNORED = -100
"""The label of what is not predicted, as in torch's losses."""

LEFT_ASIDE = (
    *("cu_seq_lens_k", "max_length_q", "max_length_k"),
    *("return_dict", "output_hidden_states", "output_attentions", "num_items_in_batch"),
)
"""Keywords of transformers that say nothing new here, or that its decorators see to."""


def check_trait(attention: str, trait: str, what: str) -> None:
    """Raises ValueError, with the names of those that can, for a mechanism that cannot do it."""
    if not getattr(attention_class(attention).traits, trait):
        able = [name for name, kind in ATTENTIONS.items() if getattr(kind.traits, trait)]
        raise ValueError(f"{attention} cannot {what}: choose from {', '.join(able)}")


def refuse_unknown(keywords: dict[str, Any]) -> None:
    """Raises TypeError for a keyword with a value that no model here knows of: left aside it would
    change what is computed without a word."""
    if keywords.get("output_attentions"):
        raise ValueError("output_attentions: no matrix of weights is made here, none can be given")
    unknown = [x for x, value in keywords.items() if value is not None and x not in LEFT_ASIDE]
    if unknown:
        raise TypeError(f"unexpected keyword(s) {', '.join(unknown)}: no model here takes them")


def build_heads(
    config: Any, attention: str, max_length: int, options: dict[str, Any] | None, **how: Any
) -> MultiHeadAttention:
    """Heads of the configured width with that mechanism in them; `how` as `MultiHeadAttention`."""
    heads = config.num_attention_heads
    if heads < 1 or config.hidden_size < 1 or config.hidden_size % heads:
        raise ValueError(
            f"hidden_size {config.hidden_size} is no multiple of num_attention_heads {heads}"
        )
    kind = attention_class(attention)
    mechanism = kind(heads, config.hidden_size // heads, max_length, **(options or {}))
    return MultiHeadAttention(mechanism, config.hidden_dropout_prob, **how)


class LeaPformerBlock(GradientCheckpointingLayer, TransformerBlock):
    """A block built from a configuration, with gradient checkpointing."""

    def __init__(self, config: LeaPformerConfig) -> None:
        super().__init__(
            build_heads(
                config,
                config.attention,
                config.max_position_embeddings,
                config.attention_options,
                rotary=config.position_embedding == "rotary",
                qk_norm=config.qk_norm,
            ),
            config.hidden_size,
            config.intermediate_size,
            config.hidden_dropout_prob,
            config.layer_norm_eps,
            config.short_convolution,
            feed_forward_convolution=config.feed_forward_convolution,
        )


class LeaPformerPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config: LeaPformerConfig
    config_class = LeaPformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("LeaPformerBlock",)
    _skip_keys_device_placement = CACHE_NAMES
    _is_stateful = True
    _can_record_outputs = {"hidden_states": LeaPformerBlock}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv1d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if isinstance(module, ShortConvolution):
            module.reset_parameters()
        if isinstance(module, LengthLeaP):
            init.constant_(module.steepness, module.STEEPNESS)


class LeaPformerModel(LeaPformerPreTrainedModel):
    """Token ids [B, N] -> last_hidden_state [B, N, hidden].

    With `config.causal` a token sees those up to itself, and the model can go on from a
    `LeaPformerCache`; else every token sees every real token.
    """

    def __init__(self, config: LeaPformerConfig) -> None:
        super().__init__(config)
        if config.causal:
            check_trait(config.attention, "causal", "hide the future, as a causal model must")
        self.embedding = TokenEmbedding(
            config.vocab_size,
            config.hidden_size,
            config.position_embedding,
            config.max_position_embeddings,
            config.pad_token_id,
            config.adaptive_cutoffs,
            config.adaptive_factor,
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            LeaPformerBlock(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding.tokens = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: LeaPformerCache | None = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        past_key_values: LeaPformerCache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Args:
        input_ids: [B, N].
        attention_mask: [B, N], 1 or True for real tokens, on either side; with a cache the whole
            row so far may be given, of which the last N count.
        inputs_embeds: [B, N, hidden], in place of input_ids.
        position_ids: [B, N]; by default real tokens are counted, from the start of each document.
            Where they begin at 0 anew in a single row without mask and cache, documents are packed.
        cache: what came before. It is changed: it goes on to the end of this call.
        use_cache: give back a cache to go on from; a causal model in evaluation does by default,
            unless documents are packed.
        cu_seq_lens_q: bounds of documents packed into one row, int [documents + 1], as
            `DataCollatorWithFlattening(return_flash_attn_kwargs=True)` gives them.
        past_key_values: the cache's name before transformers 5.24, here and in what is returned.

        Raises ValueError for shapes that disagree and for a cache in a model that is not causal,
        TypeError for a keyword that is none of these.
        """
        refuse_unknown(kwargs)
        given = given_input(input_ids, inputs_embeds, self.config.hidden_size)
        rows, columns = given.shape[:2]
        cache = given_cache(cache, past_key_values)
        alone = cache is None and attention_mask is None
        bounds = packed_bounds(given, cu_seq_lens_q, position_ids, alone)
        if use_cache is None and bounds is None:
            use_cache = self.config.causal and not self.training
        cache = self._cache(cache, bool(use_cache), rows)
        before, seen = (0, None) if cache is None else (cache.length, cache.seen)
        key_mask = real_tokens(attention_mask, given, before)
        positions = position_ids
        if positions is None:
            positions = token_places(given, key_mask, seen, bounds)

        x = self.dropout(self.embedding(input_ids, inputs_embeds, positions))
        view = {
            "visible": "causal" if self.config.causal else "all",
            "key_mask": key_mask,
            "positions": positions,
            "cu_seqlens": bounds,
        }
        states = []
        for i, layer in enumerate(self.layers):
            if cache is None:
                x = layer(x, **view)
            else:
                state = cache.states[i] if cache.states else None
                x, state = layer(x, **view, state=state, return_state=True)
                states.append(state)
        if cache is not None:
            real = positions.new_full((rows,), columns) if key_mask is None else key_mask.sum(1)
            cache.advance(states, columns, real)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), **{CACHE_NAME: cache})

    def _cache(
        self, past: LeaPformerCache | None, wanted: bool, rows: int
    ) -> LeaPformerCache | None:
        """The cache to go on from and to fill, if any."""
        if past is None and not wanted:
            return None
        past = LeaPformerCache() if past is None else past
        if not self.config.causal:
            raise ValueError("a model that is not causal has no cache: its tokens see all others")
        if not isinstance(past, LeaPformerCache):
            raise TypeError(f"the cache is a {type(past).__name__}: expected a LeaPformerCache")
        if past.seen is not None and len(past.seen) != rows:
            raise ValueError(f"the cache has {len(past.seen)} rows and the input {rows}")
        if past.states and len(past) != len(self.layers):
            raise ValueError(
                f"the cache is of a model of {len(past)} layers, and this one has "
                f"{len(self.layers)}: start from a new one"
            )
        return past
