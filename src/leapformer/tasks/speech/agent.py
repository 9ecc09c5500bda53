"""The translator as an agent of SimulEval 1.1 (Ma et al., arXiv 2007.16193).

    simuleval --agent-class leapformer.tasks.speech.agent.LeaPformerAgent --model-path MODEL \\
        --wait-k 3 --source wavs.txt --target references.txt --source-segment-size 320 --output OUT

The source is pushed on as it comes; words go out when they are whole.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np

try:
    from simuleval.agents import SpeechToTextAgent
    from simuleval.agents.actions import Action, ReadAction, WriteAction
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}; evaluating streams needs it: pip install 'leapformer[simuleval]', then "
        "pip install --no-deps simuleval==1.1.4 (its own pins clash with those of datasets)"
    ) from None

from .translator import Translator


class LeaPformerAgent(SpeechToTextAgent):
    """One `TranslationSession` after another, as SimulEval drives it."""

    def __init__(self, args: Namespace) -> None:
        wait = None if args.wait_k == "all" else int(args.wait_k)
        self.session = Translator.load(Path(args.model_path), wait).session()
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
        self.read, self.begun = 0, ""

    def policy(self, states: Any = None) -> Action:
        """READ, or WRITE the words that are whole now; at the end of the source all the rest."""
        states = self.states if states is None else states
        if states.source_sample_rate not in (0, self.rate):
            raise ValueError(
                f"the source has {states.source_sample_rate} Hz: the model reads {self.rate}"
            )
        new = np.array(states.source[self.read :], np.float32)
        self.read += len(new)
        self.begun += self.session.push(new)
        if states.source_finished:
            rest = self.begun + self.session.finish()
            return WriteAction(rest.strip(), finished=True)
        words, _, begun = self.begun.rpartition(" ")
        if not words.strip():
            return ReadAction()
        self.begun = begun
        return WriteAction(words.strip(), finished=False)

    @property
    def rate(self) -> int:
        """Samples a second that the model reads."""
        rate: int = self.session.translator.processor.feature_extractor.sampling_rate
        return rate
