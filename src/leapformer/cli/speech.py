"""Commands of simultaneous speech translation: `leapformer speech prepare`."""

from dataclasses import dataclass
from pathlib import Path

DATA = Path("~/.cache/leapformer/speech/default")


@dataclass
class Prepare:
    """Read a corpus of translated speech; keep features, texts, vocabularies and a processor."""

    source: Path
    """The folder: MuST-C, CoVoST 2, a manifest; for --corpus digits the recordings."""
    out: Path = DATA
    """The new folder."""
    corpus: str = "auto"
    """auto recognises the layout; digits puts spoken numbers together from recorded digits."""
    pair: str | None = None
    """Languages, such as en-de; digits have en-de and en-fr."""
    vocab_size: int = 10_000
    """Pieces of a vocabulary; fewer where the texts have no more."""
    shared_vocabulary: bool = False
    """One vocabulary for transcripts and translations."""
    held_out: int = 200
    """Utterances for validation, where the corpus has no such split."""
    max_bad: float = 0.01
    """The share of a split that may be left out: damaged or very short audio, empty texts."""
    train_utterances: int = 4000
    """Of digits."""
    validation_utterances: int = 300
    """Of digits."""
    test_utterances: int = 500
    """Of digits."""
    seed: int = 0
    """Draws digits and what is held out."""

    def __call__(self) -> None:
        from ..tasks.speech.digits import Counts
        from ..tasks.speech.prepare import prepare

        about = prepare(
            self.source,
            self.out,
            self.corpus,
            self.pair,
            self.vocab_size,
            self.shared_vocabulary,
            self.held_out,
            self.max_bad,
            Counts(self.train_utterances, self.validation_utterances, self.test_utterances),
            self.seed,
        )
        sizes = about["vocab_sizes"]
        print(
            f"{about['layout']}, {sizes['translation']:,} kinds of token in translations, "
            f"{sizes['transcript']:,} in transcripts: {self.out}"
        )
        for name, split in about["splits"].items():
            print(
                f"  {name}: {split['utterances']:,} utterances, {split['hours']:.2f} hours, "
                f"{len(split['left_out'])} left out"
            )
