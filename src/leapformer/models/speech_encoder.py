"""The encoder of the speech translator: frames of sound to states, chunk by chunk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from ..layers import BlockState, Subsampling, TransformerBlock
from ..ops import Visible
from ..ops.checks import forbid
from ..progress import Progress
from .base import build_heads, check_trait
from .speech_configuration import LeaPformerSpeechConfig


class LeaPformerSpeechBlock(GradientCheckpointingLayer, TransformerBlock):
    """A block of the encoder or of the decoder, with gradient checkpointing."""


@dataclass
class SpeechEncoderOutput(BaseModelOutput):
    """`last_hidden_state` [B, S, hidden], one state each 40 ms.

    Attributes:
        places: the number of each state in its source, int64 [B, S].
        real: bool [B, S], True where a state is real; None where all are.
        progress: [B, S], how much has been said; None where it is not learned.
    """

    places: Tensor | None = None
    real: Tensor | None = None
    progress: Tensor | None = None

    def part(self, first: int, last: int | None = None) -> "SpeechEncoderOutput":
        """The states from `first` up to `last`, without it."""
        return SpeechEncoderOutput(**{name: x[:, first:last] for name, x in self.items()})

    def row(self, i: int) -> "SpeechEncoderOutput":
        """One source of the batch."""
        return SpeechEncoderOutput(**{name: x[i : i + 1] for name, x in self.items()})

    def followed_by(self, after: "SpeechEncoderOutput") -> "SpeechEncoderOutput":
        """These states and those after them."""
        return SpeechEncoderOutput(
            **{name: torch.cat([x, after[name]], 1) for name, x in self.items()}
        )

    @staticmethod
    def padded(sources: Sequence["SpeechEncoderOutput"]) -> "SpeechEncoderOutput":
        """Several sources as a batch, the shorter ones padded at their end."""
        lengths = torch.tensor([source.last_hidden_state.shape[1] for source in sources])
        joined = {
            name: pad_sequence([source[name][0] for source in sources], batch_first=True)
            for name in sources[0]
        }
        states = joined["last_hidden_state"]
        real = torch.arange(states.shape[1]) < lengths.unsqueeze(1)
        return SpeechEncoderOutput(**joined, real=real.to(states.device))


@dataclass(frozen=True, eq=False)
class EncoderState:
    """What the encoder keeps of a stream: a value, constant in size for linear mechanisms.

    Attributes:
        recent: last inputs of the subsampling.
        blocks: the state of each block.
        counted: learned progress so far, float64 [B].
        states: how many states came before, int64 [B].
    """

    recent: tuple[Tensor, ...] | None = None
    blocks: tuple[BlockState, ...] = ()
    counted: Tensor | None = None
    states: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """What it holds, in bytes."""
        kept = [*(self.recent or ()), self.counted, self.states]
        own = sum(x.nbytes for x in kept if x is not None)
        return own + sum(block.nbytes for block in self.blocks)

    @staticmethod
    def cat(states: Sequence["EncoderState"]) -> "EncoderState":
        """The rows of several states, all of which have read something, one behind the other."""

        def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
            return None if parts[0] is None else torch.cat([x for x in parts if x is not None])

        recent = zip(*(state.recent or () for state in states), strict=True)
        blocks = zip(*(state.blocks for state in states), strict=True)
        return EncoderState(
            tuple(torch.cat(x) for x in recent),
            tuple(BlockState.cat(x) for x in blocks),
            joined([state.counted for state in states]),
            joined([state.states for state in states]),
        )

    def select(self, rows: Tensor) -> "EncoderState":
        """Rows of the batch, in the order and as often as `rows` (int64 [B']) names them."""

        def some(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.index_select(0, rows)

        recent = (
            None if self.recent is None else tuple(x.index_select(0, rows) for x in self.recent)
        )
        blocks = tuple(block.select(rows) for block in self.blocks)
        return EncoderState(recent, blocks, some(self.counted), some(self.states))


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
            padded_first = (attention_mask[:, 1:] > attention_mask[:, :-1]).any()
            forbid(padded_first, "attention_mask: padding must come last, behind the sound")
            lengths = attention_mask.bool().sum(1) // self.subsampling.factor
            real = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
        visible = Visible.all() if self.chunk is None else Visible.chunks(self.chunk)
        places = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        x, _ = self._blocks(x, places, (), visible=visible, key_mask=real)
        progress = None if self.progress is None else self.progress(x, real)
        return SpeechEncoderOutput(last_hidden_state=x, places=places, real=real, progress=progress)

    def step(self, frames: Tensor, state: EncoderState) -> tuple[SpeechEncoderOutput, EncoderState]:
        """The next chunk of a stream, [B, 4 * chunk, bins], or at its end a shorter one, and the
        state to go on from."""
        x, recent = self.subsampling(frames, state.recent)
        columns = torch.arange(x.shape[1], device=x.device)
        before = columns.new_zeros(len(x)) if state.states is None else state.states
        places = before.unsqueeze(1) + columns
        x, blocks = self._blocks(x, places, state.blocks, visible="all", return_state=True)
        progress, counted = None, state.counted
        if self.progress is not None:
            if counted is None:
                counted = x.new_zeros(len(x), dtype=torch.float64)
            progress = self.progress(x, before=counted)
            counted = torch.cat([counted.unsqueeze(1), progress], 1)[:, -1]
        found = SpeechEncoderOutput(last_hidden_state=x, places=places, progress=progress)
        return found, EncoderState(recent, blocks, counted, before + x.shape[1])

    def _blocks(
        self, x: Tensor, places: Tensor, before: tuple[BlockState, ...], **view: Any
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        x, after = self.dropout(x), []
        for i, layer in enumerate(self.layers):
            state = before[i] if before else None
            found = layer(x, **view, positions=places, state=state)
            x, state = found if isinstance(found, tuple) else (found, None)
            after.append(state)
        return self.norm(x), tuple(after)
