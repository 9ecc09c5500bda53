"""The translator as an agent of SimulEval 1.1 (Ma et al., arXiv 2007.16193).

    simuleval --agent-class leapformer.tasks.speech.agent.LeaPformerAgent --model-path MODEL \\
        --wait-k 3 --source wavs.txt --target references.txt --source-segment-size 40 --output OUT

The source is pushed on as it comes, of any rate and number of channels; words go out when they are
whole. An empty source gives an empty translation. The last frame of a unit of the source reaches 15
ms beyond it: segments as long as a unit would have each wait for the segment after.
"""

import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

try:
    from simuleval.agents import SpeechToTextAgent
    from simuleval.agents.actions import Action, ReadAction, WriteAction
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}; evaluating streams needs it: pip install 'leapformer[simuleval]', then "
        "pip install --no-deps simuleval==1.1.4 (its own pins clash with those of datasets)"
    ) from None

from ...models.speech_features import check_samples
from .audio import RATE
from .policy import parse_wait
from .translator import Translator
from .words import Words


class LeaPformerAgent(SpeechToTextAgent):
    """One `TranslationSession` after another, as SimulEval drives it."""

    def __init__(self, args: Namespace) -> None:
        self.session = Translator.load(args.model_path, parse_wait(args.wait_k)).session()
        super().__init__(args)

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        """--model-path: the folder `model` of a run; --wait-k: units, or all."""
        parser.add_argument("--model-path", required=True, help="the folder `model` of a run")
        parser.add_argument("--wait-k", default="all", help="units to wait for, or all")

    def reset(self) -> None:
        """Ready for the next source."""
        super().reset()
        self.session.reset()
        self.read, self.words, self.lost = 0, Words(), False
        self.resampler: soxr.ResampleStream | None = None

    def policy(self, states: Any = None) -> Action:
        """READ, or WRITE the words that are whole now; at the end of the source all the rest."""
        states = self.states if states is None else states
        text = self._tried(self.session.push, self._heard(states))
        if states.source_finished:
            rest = self.words.finish(text + self._tried(self.session.finish))
            return WriteAction(rest, finished=True)
        words = self.words.push(text)
        return WriteAction(words, finished=False) if words else ReadAction()

    def _tried(self, call: Callable[..., str], *given: Any) -> str:
        """The text; a source that the model cannot take further ends there, with what was written
        of it and a warning: it must not end a long evaluation."""
        if self.lost:
            return ""
        try:
            return call(*given)
        except ValueError as error:
            self.lost = True
            warnings.warn(f"the rest of a source is left out: {error}", stacklevel=3)
            return self.session.given_back()

    def _heard(self, states: Any) -> NDArray[np.float32]:
        """What is new of the source, channels averaged, resampled where it has another rate; none
        where it cannot be used, with a warning."""
        new = np.array(states.source[self.read :], np.float32)
        self.read += len(new)
        new = new.mean(1) if new.ndim > 1 else new
        rate = states.source_sample_rate or RATE
        if rate != RATE:
            if self.resampler is None:
                self.resampler = soxr.ResampleStream(rate, RATE, 1)
            new = self.resampler.resample_chunk(new, states.source_finished)
        try:
            return check_samples(new)
        except ValueError as error:
            warnings.warn(f"{len(new)} samples are left out: {error}", stacklevel=3)
            return new[:0]
