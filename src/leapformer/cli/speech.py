"""Commands of simultaneous speech translation: `leapformer speech prepare`, `train`, ..."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..tasks.speech.recipes import SpeechRecipe, recipe
from .options import peek

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
    piece_length: int | None = None
    """Characters of a piece at most; None: 16, and 11 for digits, whose numbers would otherwise be
    a piece each."""
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
            self.piece_length,
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


@dataclass
class Train:
    """Train a translator, and translate the test split as its stream would."""

    out: Path
    """Folder for the result, the model and the checkpoints. A killed run goes on from there."""
    recipe: Annotated[SpeechRecipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    seed: int = 0
    data: Path = DATA
    """What `leapformer speech prepare` left."""

    def __call__(self) -> None:
        from ..tasks.processes import processes
        from ..tasks.runs import RESULT
        from ..tasks.speech.train import train

        run = train(self.recipe, self.seed, self.out, self.data)
        if processes().is_main_process:
            for record in run["test"]:
                waits = f"wait {record['wait']}" if record["wait"] else "wait for all"
                print(
                    f"  {waits}: BLEU {record['bleu']:.1f}, chrF {record['chrf']:.1f}, "
                    f"{100 * record['exact']:.1f} % exactly right"
                )
            print(f"{run['parameters']:,} parameters; {self.out / RESULT}")


@dataclass
class Evaluate:
    """Stream the test split through finished runs; keep quality and latency, a table, a curve."""

    runs: list[Path]
    """Folders that `leapformer speech train` left, trained on the same data."""
    out: Path
    """Folder for all of it. Started again, it keeps the simulations that are there."""
    data: Path = DATA
    """What `leapformer speech prepare` left."""
    waits: str = "1,2,3,5,8,all"
    """Units of the source to wait for, separated by commas, and all."""
    utterances: int | None = 200
    """So many of the test split, from its start; None for all."""

    def __call__(self) -> None:
        from ..tasks.speech.evaluate import evaluate, table
        from ..tasks.speech.policy import parse_wait

        waits = [parse_wait(each) for each in self.waits.split(",")]
        print(table(evaluate(self.runs, waits, self.out, self.data, self.utterances)))
        print(f"{self.out}/results.json, table.md, curve.png")


@dataclass
class Translate:
    """Translate an audio file as if it were spoken now, printing as it goes."""

    model: Path
    """The folder `model` of a run."""
    audio: Path
    """wav, flac or mp3, of any rate."""
    wait: str = "all"
    """Units of the source to wait for before the first word, or all."""
    piece: float = 0.1
    """Seconds of sound that come in at once."""
    times: bool = False
    """Say at which second of the source each piece of text came."""

    def __call__(self) -> None:
        from ..tasks.speech.policy import parse_wait
        from ..tasks.speech.session import translate
        from ..tasks.speech.translator import Translator

        session = Translator.load(self.model, parse_wait(self.wait)).session()
        for second, text in translate(session, self.audio, self.piece):
            print(f"{second:6.2f} s {text}\n" if self.times else text, end="", flush=True)
        print()


def with_preset(command: type[Train], words: list[str], prog: str) -> Callable[[], None]:
    """The command that the words describe: --preset chooses its recipe, other options override the
    recipe's fields by name."""
    (preset,) = peek(words, preset="digits")
    default = command(out=tyro.MISSING, recipe=recipe(preset))
    return tyro.cli(command, args=words, prog=prog, default=default)
