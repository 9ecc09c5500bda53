"""Translation while the speaker is still talking, in memory that does not grow.

A session takes samples in pieces of any size and gives the text that they allow. Each chunk of the
source is encoded once; each token of the translation sees just what it saw in training, or, after
an end that came before the source was over, some units more. Between two pieces a session keeps the
states of encoder and decoder, which are values of fixed size for linear mechanisms, and the few
encoder states that no token may see yet.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from tokenizers.decoders import DecodeStream

from ...models.speech_decoder import LeaPformerSpeechCache
from ...models.speech_encoder import EncoderState, SpeechEncoderOutput
from .audio import read_audio

if TYPE_CHECKING:
    from .translator import Translator

SPARE = 10
"""A translation has at most so many tokens more than its source has states (25 a second)."""


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
        text: what was written and not given back yet, as where the model failed in between.
    """

    def __init__(self, translator: "Translator") -> None:
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
        self.ended = self.done = self.finished = False
        self.text = ""
        self.decoder = DecodeStream(skip_special_tokens=True)

    def push(self, samples: ArrayLike) -> str:
        """Take samples, float [samples] in [-1, 1] at 16 kHz, also none; the text they allow.

        Raises RuntimeError after `finish`, and what the feature extractor raises for sound it
        cannot read; nothing is taken in then. Where the model fails the sound was taken in, and
        what was written comes with the next call.
        """
        return self.translator.push([self], [samples])[0]

    def finish(self) -> str:
        """The source is over: the rest of the translation. "" for less than 55 ms of sound, which
        is not one state.

        Raises RuntimeError once it has given the rest.
        """
        return self.translator.finish([self])[0]

    @property
    def nbytes(self) -> int:
        """Bytes that the session keeps between two pieces, but for the few last samples."""
        return self.memory.nbytes + self.frames.nbytes

    def check_open(self, finishing: bool = False) -> None:
        """Raises RuntimeError where the source is over; `finishing`, where the rest was given."""
        if self.finished if finishing else self.ended:
            raise RuntimeError("the session is finished: reset() it for another source")

    def given_back(self) -> str:
        """The text that is to be given back now."""
        text, self.text = self.text, ""
        return text

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
        if self.done or not self.heard or (self.heard < self.hold and not self.over()):
            return False
        return self.translator.policy.writes(self.written, self.heard, self.over())

    def due(self) -> int:
        """Of the states kept back, how many the next token sees."""
        return min(self.heard, self.needs()) - self.taken

    def take(self, after: LeaPformerSpeechCache) -> None:
        """Go on to a decoder that has taken in what was due."""
        due = self.due()
        self.taken += due
        self.memory = Memory(self.memory.encoder, after, self.memory.source.part(due))

    def write(self, token: int, after: LeaPformerSpeechCache) -> None:
        """Take the token, and to `text` what is whole now. An end before the source is over is not
        taken: the model is asked again after another unit."""
        config = self.translator.model.config
        if token == config.eos_token_id and not self.over():
            self.hold = self.needs() + config.wait_ratio
            return
        self.take(after)
        self.last, self.written = token, self.written + 1
        self.done = token == config.eos_token_id or self.written >= self.heard + SPARE
        if token not in self.translator.special:  # no text, yet `decoder` would keep it
            tokenizer = self.translator.processor.tokenizer.backend_tokenizer
            self.text += self.decoder.step(tokenizer, token) or ""


def translate(
    session: TranslationSession, audio: Path, piece: float
) -> Iterator[tuple[float, str]]:
    """Push an audio file in pieces of so many seconds: pairs of the seconds heard and the text that
    came then. Raises ValueError for a piece of no or endless seconds, and what `read_audio`
    raises."""
    if not 0 < piece < math.inf:
        raise ValueError(f"a piece has {piece} seconds: expected a finite number above 0")
    rate = session.translator.processor.feature_extractor.sampling_rate
    samples = read_audio(audio)
    size = max(1, int(piece * rate))
    for begin in range(0, len(samples), size):
        text = session.push(samples[begin : begin + size])
        if text:
            yield min(begin + size, len(samples)) / rate, text
    yield len(samples) / rate, session.finish()
