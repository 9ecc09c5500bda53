"""The encoder of the speech translator: frames of sound to states, chunk by chunk."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from ..layers import BlockState, Subsampling, TransformerBlock
from ..ops import Visible
from ..progress import Progress
from .base import build_heads, check_trait
from .speech_configuration import LeaPformerSpeechConfig


class LeaPformerSpeechBlock(GradientCheckpointingLayer, TransformerBlock):
    """A block of the encoder or of the decoder, with gradient checkpointing."""


@dataclass
class SpeechEncoderOutput(BaseModelOutput):
    """`last_hidden_state` [B, S, hidden], one state each 40 ms.

    Attributes:
        real: bool [B, S], True where a state is real; None where all are.
        progress: [B, S], how much has been said; None where it is not learned.
    """

    real: Tensor | None = None
    progress: Tensor | None = None


@dataclass(frozen=True, eq=False)
class EncoderState:
    """What the encoder keeps of a stream: a value, constant in size for linear mechanisms.

    Attributes:
        recent: last inputs of the subsampling.
        blocks: the state of each block.
        counted: learned progress so far, float64 [B].
        states: how many states came before.
    """

    recent: tuple[Tensor, ...] | None = None
    blocks: tuple[BlockState, ...] = ()
    counted: Tensor | None = None
    states: int = 0


class LeaPformerSpeechEncoder(nn.Module):
    """Frames [B, T, bins] -> a `SpeechEncoderOutput` of T // 4 states.

    With `config.encoder_chunk` a state sees its own chunk and all before, so that chunks of a
    stream, each encoded once, give what all of it at once gives.
    """

    main_input_name = "input_features"

    def __init__(self, config: LeaPformerSpeechConfig) -> None:
        super().__init__()
        self.chunk = config.encoder_chunk
        if self.chunk is not None:
            check_trait(config.encoder_attention, "causal", "encode chunk by chunk")
        options = (config.attention_options or {}).get("encoder")
        self.subsampling = Subsampling(config.num_mel_bins, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            LeaPformerSpeechBlock(
                build_heads(config, config.encoder_attention, config.max_source_positions, options),
                config.hidden_size,
                config.intermediate_size,
                config.hidden_dropout_prob,
                config.layer_norm_eps,
                config.encoder_convolution,
            )
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.progress = Progress(config.hidden_size) if config.learned_progress else None

    def forward(
        self, input_features: Tensor, attention_mask: Tensor | None = None, **unused: Any
    ) -> SpeechEncoderOutput:
        """All of the source at once. `attention_mask` [B, T] is 1 for real frames, padding comes
        last. Raises ValueError for audio of less than four frames."""
        if input_features.shape[1] < self.subsampling.factor:
            raise ValueError(
                f"the audio has {input_features.shape[1]} frames: a state of the source takes "
                f"{self.subsampling.factor}"
            )
        x, _ = self.subsampling(input_features)
        real = None
        if attention_mask is not None:
            lengths = attention_mask.bool().sum(1) // self.subsampling.factor
            real = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
        visible = Visible.all() if self.chunk is None else Visible.chunks(self.chunk)
        x, _ = self._blocks(x, EncoderState(), visible=visible, key_mask=real)
        progress = None if self.progress is None else self.progress(x, real)
        return SpeechEncoderOutput(last_hidden_state=x, real=real, progress=progress)

    def step(self, frames: Tensor, state: EncoderState) -> tuple[SpeechEncoderOutput, EncoderState]:
        """The next chunk of a stream, [B, 4 * chunk, bins], or at its end a shorter one, and the
        state to go on from."""
        x, recent = self.subsampling(frames, state.recent)
        x, blocks = self._blocks(x, state, visible="all", return_state=True)
        counted = None
        if self.progress is not None:
            counted = self.progress(x, before=state.counted)
        last = state.counted if counted is None or not x.shape[1] else counted[:, -1]
        found = SpeechEncoderOutput(last_hidden_state=x, progress=counted)
        return found, EncoderState(recent, blocks, last, state.states + x.shape[1])

    def _blocks(
        self, x: Tensor, before: EncoderState, **view: Any
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        positions = before.states + torch.arange(x.shape[1], device=x.device)
        x, after = self.dropout(x), []
        for i, layer in enumerate(self.layers):
            state = before.blocks[i] if before.blocks else None
            found = layer(x, **view, positions=positions, state=state)
            x, state = found if isinstance(found, tuple) else (found, None)
            after.append(state)
        return self.norm(x), tuple(after)
