"""A model that any number of sessions share: what is ready goes through it together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ...models import LeaPformerSpeechProcessor
from ...models.speech_decoder import LeaPformerSpeechCache
from ...models.speech_encoder import EncoderState, SpeechEncoderOutput
from ...models.speech_features import check_samples
from ...models.speech_translation import LeaPformerForSpeechTranslation
from ..pretrained import load_pretrained
from .policy import WaitK
from .session import Memory, TranslationSession


class Translator:
    """A model and its processor, which any number of sessions share.

    Args:
        model: a `LeaPformerForSpeechTranslation` whose encoder goes chunk by chunk.
        processor: the `LeaPformerSpeechProcessor` it was trained with.
        k: units of the source before the first token; None waits for all of it.

    Raises ValueError for an encoder that needs all of the source at once.
    """

    def __init__(
        self, model: LeaPformerForSpeechTranslation, processor: Any, k: int | None
    ) -> None:
        if model.config.encoder_chunk is None:
            raise ValueError("this encoder sees all of the source at once: it cannot be streamed")
        self.model, self.processor = model.eval(), processor
        self.policy = WaitK(k, model.config.wait_ratio)
        self.chunk = model.config.encoder_chunk * model.encoder.subsampling.factor
        self.tail = model.encoder.subsampling.factor
        self.special = frozenset(processor.tokenizer.all_special_ids)
        with torch.inference_mode():
            self.blank = self._blank()

    @staticmethod
    def load(folder: Path | str, k: int | None) -> "Translator":
        """The translator that a run left in its folder `model`; raises as `load_pretrained`."""
        model, processor = load_pretrained(
            folder, LeaPformerForSpeechTranslation, LeaPformerSpeechProcessor
        )
        return Translator(model, processor, k)

    def session(self) -> TranslationSession:
        """A new stream."""
        return TranslationSession(self)

    @torch.inference_mode()
    def push(
        self, sessions: Sequence[TranslationSession], pieces: Sequence[ArrayLike]
    ) -> list[str]:
        """To each session its piece of sound, float [samples] at the extractor's rate, and what
        each writes then. Raises as `TranslationSession.push`, and ValueError for another number of
        pieces, a session twice or of another translator, before anything is taken in."""
        self._check(sessions)
        if len(sessions) != len(pieces):
            raise ValueError(f"{len(pieces)} pieces of sound for {len(sessions)} sessions")
        for session in sessions:
            session.check_open()
        sound = [check_samples(np.asarray(piece)) for piece in pieces]
        for session, samples in zip(sessions, sound, strict=True):
            frames = session.features.push(samples)
            session.frames = np.concatenate([session.frames, frames])
        self._advance(sessions)
        return [session.given_back() for session in sessions]

    @torch.inference_mode()
    def finish(self, sessions: Sequence[TranslationSession]) -> list[str]:
        """The sources are over: the rest of each translation. Raises as
        `TranslationSession.finish`, and ValueError for a session twice or of another translator."""
        self._check(sessions)
        for session in sessions:
            session.check_open(finishing=True)
        for session in sessions:
            session.ended = True
        self._advance(sessions)
        for session in sessions:
            session.done = session.finished = True
        return [session.given_back() for session in sessions]

    @torch.inference_mode()
    def translate(self, sources: Sequence[NDArray[np.float32]]) -> list[str]:
        """What sessions write of these sources, frames [T, bins] as the extractor gives them."""
        sessions = [self.session() for _ in sources]
        for session, frames in zip(sessions, sources, strict=True):
            session.frames = frames
        self._advance(sessions)
        return self.finish(sessions)

    def _check(self, sessions: Sequence[TranslationSession]) -> None:
        if len(set(sessions)) < len(sessions):
            raise ValueError("a session is there twice: give it once, with all of its new sound")
        if any(session.translator is not self for session in sessions):
            raise ValueError(
                "a session is of another translator: give each to that which made it, or use one "
                "translator for all"
            )

    def _blank(self) -> Memory:
        """The states before anything was heard or written."""
        weight = self.model.lm_head.weight
        frames = weight.new_zeros(1, 0, self.model.config.num_mel_bins)
        source, encoder = self.model.encoder.step(frames, EncoderState())
        decoder = LeaPformerSpeechCache()
        none = torch.zeros(1, 0, dtype=torch.int64, device=weight.device)
        self.model.decoder(none, source, "all", decoder)
        return Memory(encoder, decoder, source)

    def _advance(self, sessions: Sequence[TranslationSession]) -> None:
        while True:
            self._write(sessions)
            ready: dict[int, list[TranslationSession]] = {}
            for session in sessions:
                if frames := session.next_frames():
                    ready.setdefault(frames, []).append(session)
            if not ready:
                break
            for frames, group in ready.items():
                self._listen(group, frames)
        for session in sessions:
            session.frames = session.frames.copy()  # of a long piece only what is left

    def _listen(self, sessions: Sequence[TranslationSession], frames: int) -> None:
        """Encode the next so many frames of each session."""
        like = self.model.lm_head.weight
        sound = np.stack([session.frames[:frames] for session in sessions])
        before = EncoderState.cat([session.memory.encoder for session in sessions])
        found, after = self.model.encoder.step(torch.from_numpy(sound).to(like), before)
        for i, session in enumerate(sessions):
            row = torch.tensor([i], device=like.device)
            session.frames = session.frames[frames:]
            memory = session.memory
            session.memory = Memory(
                after.select(row), memory.decoder, memory.source.followed_by(found.row(i))
            )
            session.heard += found.last_hidden_state.shape[1]

    def _write(self, sessions: Sequence[TranslationSession]) -> None:
        """Write with every session until none may, then let each take in what its next token may
        see."""
        while writers := [session for session in sessions if session.writes()]:
            ids = torch.tensor([[session.last] for session in writers])
            hidden, after = self._decode(writers, ids.to(self.model.device))
            tokens = self.model.lm_head(hidden[:, -1]).argmax(-1).tolist()
            for i, (session, token) in enumerate(zip(writers, tokens, strict=True)):
                session.write(token, after.row(i))
        if listeners := [session for session in sessions if session.due() and not session.done]:
            none = torch.zeros(len(listeners), 0, dtype=torch.int64, device=self.model.device)
            _, after = self._decode(listeners, none)
            for i, session in enumerate(listeners):
                session.take(after.row(i))

    def _decode(
        self, sessions: Sequence[TranslationSession], ids: Tensor
    ) -> tuple[Tensor, LeaPformerSpeechCache]:
        """Hidden states of the ids [B, N], after each session took in what it may see."""
        source = SpeechEncoderOutput.padded(
            [session.memory.source.part(0, session.due()) for session in sessions]
        )
        cache = LeaPformerSpeechCache.cat([session.memory.decoder for session in sessions])
        return self.model.decoder(ids, source, "all", cache), cache
