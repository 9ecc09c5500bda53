"""The decoder of the speech translator, and what it remembers of a stream."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import BlockState, TokenEmbedding
from ..ops import Visible
from .base import build_heads, check_trait
from .cache import LeaPformerCache
from .speech_configuration import LeaPformerSpeechConfig
from .speech_encoder import LeaPformerSpeechBlock, SpeechEncoderOutput


class LeaPformerSpeechCache(LeaPformerCache):
    """A `LeaPformerCache` that also knows how many states the cross-attention has taken in."""

    def reset(self) -> None:
        super().reset()
        self.heard = 0

    @staticmethod
    def cat(caches: Sequence["LeaPformerSpeechCache"]) -> "LeaPformerSpeechCache":
        """The rows of several caches, all of which have read something, one behind the other."""
        whole = LeaPformerSpeechCache()
        whole.states = [
            BlockState.cat(states) for states in zip(*(c.states for c in caches), strict=True)
        ]
        whole.seen = torch.cat([cache.seen for cache in caches if cache.seen is not None])
        return whole

    def row(self, i: int) -> "LeaPformerSpeechCache":
        """One row of the batch, as a cache of its own."""
        one = LeaPformerSpeechCache()
        one.states, one.seen, one.length, one.heard = (
            self.states,
            self.seen,
            self.length,
            self.heard,
        )
        one.batch_select_indices(torch.tensor([i]))
        return one


class LeaPformerSpeechDecoder(nn.Module):
    """Target ids [B, N] and states of the source -> hidden [B, N, hidden]."""

    def __init__(self, config: LeaPformerSpeechConfig) -> None:
        super().__init__()
        check_trait(config.decoder_attention, "causal", "hide the future, as a decoder must")
        check_trait(config.cross_attention, "cross", "attend from one sequence to another")
        check_trait(config.cross_attention, "causal", "hide what was not heard yet")
        options = config.attention_options or {}
        longest = max(config.max_source_positions, config.max_target_positions)
        self.embedding = TokenEmbedding(
            config.vocab_size,
            config.hidden_size,
            "sinusoidal",
            config.max_target_positions,
            config.pad_token_id,
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            LeaPformerSpeechBlock(
                build_heads(
                    config,
                    config.decoder_attention,
                    config.max_target_positions,
                    options.get("decoder"),
                ),
                config.hidden_size,
                config.intermediate_size,
                config.hidden_dropout_prob,
                config.layer_norm_eps,
                config.decoder_convolution,
                build_heads(
                    config,
                    config.cross_attention,
                    longest,
                    options.get("cross"),
                    addressed=config.learned_progress,
                ),
            )
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self,
        ids: Tensor,
        source: SpeechEncoderOutput,
        visible: Tensor | Visible,
        cache: LeaPformerSpeechCache | None = None,
    ) -> Tensor:
        """`visible` counts the states of `source` that each token sees. With a cache, which moves
        on, `source` holds the states behind the `cache.heard` first ones, and the tokens see all of
        those. Padding of the ids comes last."""
        columns, states = ids.shape[1], source.last_hidden_state
        positions = torch.arange(columns, device=ids.device)
        if cache is not None and cache.seen is not None:
            positions = cache.seen.unsqueeze(1) + positions
        x = self.dropout(self.embedding(ids, positions=positions))
        listen: dict[str, Any] = {
            "context": states,
            "visible": visible,
            "key_mask": source.real,
            "positions": positions,
            "key_positions": source.places,
        }
        if source.progress is not None:
            listen["address"] = positions, source.progress
        view = {"visible": "causal", "positions": positions}
        after = []
        for i, layer in enumerate(self.layers):
            if cache is None:
                x = layer(x, listen, **view)
            else:
                state = cache.states[i] if cache.states else None
                x, state = layer(x, listen, **view, state=state, return_state=True)
                after.append(state)
        if cache is not None:
            cache.advance(after, columns, ids.new_full((len(ids),), columns))
            cache.heard += states.shape[1]
        return self.norm(x)
