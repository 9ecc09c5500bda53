"""The translator as a speech processor of simulstream 1.0: a live server, and evaluation.

    simulstream_server --server-config server.yaml --speech-processor-config processor.yaml
    simulstream_inference --speech-processor-config processor.yaml --wav-list-file wavs.txt \\
        --metrics-log-file metrics.jsonl

`processor.yaml` names the class and the model:

    type: leapformer.tasks.speech.simulstream.LeaPformerProcessor
    model_path: results/speech/digits/model
    wait_k: 3                  # units of the source, or all
    speech_chunk_size: 0.1     # seconds of sound that are pushed at once
    latency_unit: word
    detokenizer_type: simuleval
"""

from types import SimpleNamespace
from typing import Any

try:
    from simulstream.server.speech_processors import SpeechProcessor
    from simulstream.server.speech_processors.incremental_output import IncrementalOutput
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}; serving streams needs it: pip install 'leapformer[simulstream]'"
    ) from None

from .policy import parse_wait
from .translator import Translator
from .words import Words


class LeaPformerProcessor(SpeechProcessor):
    """One `TranslationSession`; all of a server's share the model, and write whole words."""

    translators: dict[tuple[str, str], Translator] = {}  # noqa: RUF012

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__(config)
        self.session = self.translators[_key(config)].session()
        self.clear()

    @classmethod
    def load_model(cls, config: SimpleNamespace) -> None:
        """`model_path` and `wait_k` of the configuration; once for a whole pool."""
        key = _key(config)
        if key not in cls.translators:
            cls.translators[key] = Translator.load(key[0], parse_wait(key[1]))

    def clear(self) -> None:
        """Ready for the next speaker."""
        self.session.reset()
        self.words = Words()

    def process_chunk(self, waveform: Any) -> IncrementalOutput:
        """float32 [samples] at 16 kHz to the words that are whole now."""
        return self._output(self.words.push(self.session.push(waveform)))

    def end_of_stream(self) -> IncrementalOutput:
        """All the rest; nothing, where it is over already."""
        rest = "" if self.session.ended else self.session.finish()
        return self._output(self.words.finish(rest))

    def tokens_to_string(self, tokens: list[str]) -> str:
        """Words with a blank behind each: so they can be added to whatever was written before."""
        return "".join(f"{word} " for word in tokens)

    def set_source_language(self, language: str) -> None:
        """The model has one pair of languages: any is taken."""

    def set_target_language(self, language: str) -> None:
        """The model has one pair of languages: any is taken."""

    def _output(self, text: str) -> IncrementalOutput:
        words = text.split()
        return IncrementalOutput(words, self.tokens_to_string(words), [], "")


def _key(config: SimpleNamespace) -> tuple[str, str]:
    """Which model, and how long it waits."""
    return str(config.model_path), str(getattr(config, "wait_k", "all"))
