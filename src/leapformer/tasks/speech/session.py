"""Translation while the speaker is still talking, in memory that does not grow.

A session takes samples in pieces of any size and gives the text that they allow. Each chunk of the
source is encoded once; each token of the translation sees just what it saw in training. Between two
pieces a session keeps the states of encoder and decoder, which are values of fixed size for linear
mechanisms, and the few encoder states that no token may see yet. Any number of sessions go through
the model together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tokenizers.decoders import DecodeStream
from torch import Tensor

from ...models import LeaPformerSpeechProcessor
from ...models.speech_encoder import EncoderState, SpeechEncoderOutput
from ...models.speech_translation import LeaPformerForSpeechTranslation, LeaPformerSpeechCache
from ..pretrained import load_pretrained
from .audio import read_audio
from .policy import WaitK

SPARE = 10
"""A translation has at most so many tokens more than its source has states (25 a second)."""


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
        with torch.inference_mode():
            self.blank = self._blank()

    @staticmethod
    def load(folder: Path, k: int | None) -> "Translator":
        """The translator that a run left in its folder `model`; raises as `load_pretrained`."""
        model, processor = load_pretrained(
            folder, LeaPformerForSpeechTranslation, LeaPformerSpeechProcessor
        )
        return Translator(model, processor, k)

    def session(self) -> "TranslationSession":
        """A new stream."""
        return TranslationSession(self)

    @torch.inference_mode()
    def push(
        self, sessions: Sequence["TranslationSession"], pieces: Sequence[ArrayLike]
    ) -> list[str]:
        """To each session its piece of sound, float [samples] at the extractor's rate, and what
        each writes then. Raises as `TranslationSession.push`, before anything is taken in."""
        for session in sessions:
            session.check_open()
        found = [s.features.push(p) for s, p in zip(sessions, pieces, strict=True)]
        for session, frames in zip(sessions, found, strict=True):
            session.frames = np.concatenate([session.frames, frames])
        return self._advance(sessions)

    @torch.inference_mode()
    def finish(self, sessions: Sequence["TranslationSession"]) -> list[str]:
        """The sources are over: the rest of each translation."""
        for session in sessions:
            session.check_open()
        for session in sessions:
            session.frames = np.concatenate([session.frames, session.features.finish()])
            session.ended = True
        return self._advance(sessions)

    @torch.inference_mode()
    def translate(self, sources: Sequence[NDArray[np.float32]]) -> list[str]:
        """What sessions write of these sources, frames [T, bins] as the extractor gives them."""
        sessions = [self.session() for _ in sources]
        for session, frames in zip(sessions, sources, strict=True):
            session.frames, session.ended = frames, True
        return self._advance(sessions)

    def _blank(self) -> "Memory":
        """The states before anything was heard or written."""
        weight = self.model.lm_head.weight
        frames = weight.new_zeros(1, 0, self.model.config.num_mel_bins)
        source, encoder = self.model.encoder.step(frames, EncoderState())
        decoder = LeaPformerSpeechCache()
        none = torch.zeros(1, 0, dtype=torch.int64, device=weight.device)
        self.model.decoder(none, source, "all", None, decoder)
        return Memory(encoder, decoder, source)

    def _advance(self, sessions: Sequence["TranslationSession"]) -> list[str]:
        text = {id(session): "" for session in sessions}
        while True:
            self._write(sessions, text)
            ready: dict[int, list[TranslationSession]] = {}
            for session in sessions:
                if frames := session.next_frames():
                    ready.setdefault(frames, []).append(session)
            if not ready:
                break
            for frames, group in ready.items():
                self._listen(group, frames)
        for session in sessions:
            if session.ended:
                session.done = True
        return [text[id(session)] for session in sessions]

    def _listen(self, sessions: Sequence["TranslationSession"], frames: int) -> None:
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

    def _write(self, sessions: Sequence["TranslationSession"], text: dict[int, str]) -> None:
        """Write with every session until none may, then let each take in what its next token may
        see."""
        while writers := [session for session in sessions if session.writes()]:
            ids = torch.tensor([[session.last] for session in writers])
            hidden, after = self._decode(writers, ids.to(self.model.device))
            tokens = self.model.lm_head(hidden[:, -1]).argmax(-1).tolist()
            for i, (session, token) in enumerate(zip(writers, tokens, strict=True)):
                text[id(session)] += session.write(token, after.row(i))
        if listeners := [session for session in sessions if session.due() and not session.done]:
            none = torch.zeros(len(listeners), 0, dtype=torch.int64, device=self.model.device)
            _, after = self._decode(listeners, none)
            for i, session in enumerate(listeners):
                session.take(after.row(i))

    def _decode(
        self, sessions: Sequence["TranslationSession"], ids: Tensor
    ) -> tuple[Tensor, LeaPformerSpeechCache]:
        """Hidden states of the ids [B, N], after each session took in what it may see."""
        source = SpeechEncoderOutput.padded(
            [session.memory.source.part(0, session.due()) for session in sessions]
        )
        cache = LeaPformerSpeechCache.cat([session.memory.decoder for session in sessions])
        return self.model.decoder(ids, source, "all", None, cache), cache


@dataclass(frozen=True)
class Memory:
    """All that a session keeps of sound and text: the states of encoder and decoder, and those
    states of the source that no token may see yet."""

    encoder: EncoderState
    decoder: LeaPformerSpeechCache
    source: SpeechEncoderOutput

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return (
            self.encoder.nbytes + self.decoder.nbytes + sum(x.nbytes for x in self.source.values())
        )


class TranslationSession:
    """One speaker. `Translator.session` makes it.

    Attributes:
        heard: states of the source so far (one each 40 ms).
        written: tokens so far.
    """

    def __init__(self, translator: Translator) -> None:
        self.translator = translator
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next piece begins another source."""
        processor = self.translator.processor
        self.features = processor.feature_extractor.stream()
        self.frames = np.zeros((0, self.translator.model.config.num_mel_bins), np.float32)
        self.memory = self.translator.blank
        self.last = self.translator.model.config.decoder_start_token_id
        self.heard = self.taken = self.written = self.hold = 0
        self.ended = self.done = False
        self.decoder = DecodeStream(skip_special_tokens=True)

    def push(self, samples: ArrayLike) -> str:
        """Take samples, float [samples] in [-1, 1] at 16 kHz, also none; the text they allow.

        Raises RuntimeError after `finish`, and what the feature extractor raises for sound it
        cannot read; nothing is taken in then.
        """
        return self.translator.push([self], [samples])[0]

    def finish(self) -> str:
        """The source is over: the rest of the translation. "" for less than 40 ms of sound.

        Raises RuntimeError the second time.
        """
        return self.translator.finish([self])[0]

    @property
    def nbytes(self) -> int:
        """Bytes that the session keeps between two pieces, but for the few last samples."""
        return self.memory.nbytes + self.frames.nbytes

    def check_open(self) -> None:
        """Raises RuntimeError where the source is over."""
        if self.ended:
            raise RuntimeError("the session is finished: reset() it for another source")

    def next_frames(self) -> int:
        """How many frames are to be encoded next: a whole chunk, at the end what there is."""
        if len(self.frames) >= self.translator.chunk:
            return self.translator.chunk
        return len(self.frames) // self.translator.tail * self.translator.tail if self.ended else 0

    def needs(self) -> int:
        """States that the next token must see."""
        return max(self.translator.policy.needs(self.written), self.hold)

    def over(self) -> bool:
        """Nothing comes after what was heard."""
        return self.ended and not self.next_frames()

    def writes(self) -> bool:
        """WRITE the next token now?"""
        if self.done or not self.heard:
            return False
        return self.over() or self.heard >= self.needs()

    def due(self) -> int:
        """Of the states kept back, how many the next token sees."""
        return min(self.heard, self.needs()) - self.taken

    def take(self, after: LeaPformerSpeechCache) -> None:
        """Go on to a decoder that has taken in what was due."""
        due = self.due()
        self.taken += due
        self.memory = Memory(self.memory.encoder, after, self.memory.source.part(due))

    def write(self, token: int, after: LeaPformerSpeechCache) -> str:
        """Take the token, and the text that is whole now. An end before the source is over is not
        taken: the model is asked again after another unit."""
        config = self.translator.model.config
        if token == config.eos_token_id and not self.over():
            self.hold = self.needs() + config.wait_ratio
            return ""
        self.take(after)
        self.last, self.written = token, self.written + 1
        ends = token == config.eos_token_id
        self.done = ends or self.written >= self.heard + SPARE
        tokenizer = self.translator.processor.tokenizer.backend_tokenizer
        return "" if ends else self.decoder.step(tokenizer, token) or ""


def translate(
    session: TranslationSession, audio: Path, piece: float
) -> Iterator[tuple[float, str]]:
    """Push an audio file in pieces of so many seconds: pairs of the seconds heard and the text that
    came then. Raises ValueError for an empty piece, and what `read_audio` raises."""
    if piece <= 0:
        raise ValueError(f"a piece has {piece} seconds: expected more than 0")
    rate = session.translator.processor.feature_extractor.sampling_rate
    samples = read_audio(audio)
    size = max(1, int(piece * rate))
    for begin in range(0, len(samples), size):
        text = session.push(samples[begin : begin + size])
        if text:
            yield min(begin + size, len(samples)) / rate, text
    yield len(samples) / rate, session.finish()
