"""Commands of the language model: `leapformer lm prepare`, `train`, `evaluate`, ..."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..tasks.lm.recipes import LMRecipe, recipe
from .options import attentions, numbers, peek

DATA = Path("~/.cache/leapformer/lm/default")


@dataclass
class Prepare:
    """Read a corpus, train its tokenizer, and keep both; whole documents are held out."""

    source: Path
    """The folder: WikiText as published, text files, or JSON lines."""
    out: Path = DATA
    """The new folder; by default where train and compare look."""
    vocabulary: str = "bpe"
    """bytes, bpe or words."""
    vocab_size: int | None = 8192
    """Tokens; for words "None" keeps them all, and bytes are always 257."""
    held_out: int = 5
    """Documents for validation, and as many for the test, where the corpus has no such split."""
    seed: int = 0
    """Draws them."""

    def __call__(self) -> None:
        from ..tasks.lm.prepare import prepare

        size = None if self.vocabulary == "bytes" else self.vocab_size
        about = prepare(self.source, self.out, self.vocabulary, size, self.held_out, self.seed)
        print(
            f"{about['layout']}, {about['vocab_size']:,} kinds of token ({about['vocabulary']}): "
            f"{self.out}"
        )
        for name, split in about["splits"].items():
            print(
                f"  {name}: {split['documents']:,} documents, {split['tokens']:,} tokens, "
                f"{split['words']:,} words, {split['bytes']:,} bytes"
            )


@dataclass
class Train:
    """Train a language model with one attention and measure its perplexity."""

    out: Path
    """Folder for the result, the model and the checkpoints. A killed run goes on from there."""
    recipe: Annotated[LMRecipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    attention: str = "leap"
    """A causal mechanism of the zoo: leap, cosformer, linear, softmax, ... (docs/zoo.md)."""
    seed: int = 0
    data: Path = DATA
    """What `leapformer lm prepare` left."""

    def __call__(self) -> None:
        from ..tasks.lm.train import train
        from ..tasks.processes import processes
        from ..tasks.runs import RESULT

        run = train(self.recipe, self.attention, self.seed, self.out, self.data)
        if processes().is_main_process:
            print(f"{self.attention}: {_said(run['test'])}; {self.out / RESULT}")


@dataclass
class Evaluate:
    """Perplexity of a model on a text, and how it holds at lengths it was never trained on."""

    model: Path
    """The folder `model` of a run."""
    text: Path | None = None
    """A text file; in its place --data."""
    natural: bool = False
    """The text is WikiText as published: undo its tokenisation (" @-@ ", blanks before commas, ...)
    first, as is usual for models of other texts, and do not score `<unk>`."""
    data: Path | None = None
    """What `leapformer lm prepare` left: its test split is read."""
    window: int | None = None
    """Tokens that are read at once; None for as many as in training."""
    context: int | None = None
    """Tokens that stand at least before each that is scored; None for half a window. One less than
    the window, as in the paper, reads a whole window for each token."""
    tokens: int | None = None
    """Whole documents of --data from the start until there are so many; None for all."""
    lengths: str = ""
    """Such as 512,1024,2048, separated by commas: the loss of the same tokens after ever more
    context."""
    spans: int = 32
    """Places of the text whose tokens are scored for that."""
    out: Path | None = None
    """A JSON file for the figures."""

    def __call__(self) -> None:
        from ..results import json_file, signature, write_json
        from ..tasks.lm.evaluate import by_length, check_window, measure
        from ..tasks.lm.generate import load_model, load_text

        if self.out is not None:
            json_file(self.out)
        if self.text is not None and self.tokens is not None:
            raise ValueError("--tokens cuts --data at whole documents, and --text is one: give one")
        model, tokenizer = load_model(self.model)
        trained = model.config.max_position_embeddings
        window = trained if self.window is None else self.window
        context = window // 2 if self.context is None else self.context
        check_window(window, context)
        source = (self.text, self.data, self.natural)
        tokens = load_text(self.model, tokenizer, *source).first(self.tokens)
        lengths = numbers("--lengths", self.lengths) if self.lengths else []
        curve = by_length(model, tokens, lengths, self.spans)
        found = measure(model, tokens, window, context)
        print(_said(found))
        for record in curve:
            print(
                f"  in windows of {record['length']:,} tokens: "
                + (record["error"] or f"perplexity {record['perplexity']:.2f}")
            )
        if self.out is not None:
            text = str(self.text or self.data)
            what = {"model": str(self.model), "text": text, "natural": self.natural}
            write_json(self.out, {"signature": signature(**what), **found, "by_length": curve})


@dataclass
class Generate:
    """Write on after a prompt, printing as it goes; a linear mechanism's memory does not grow."""

    model: Path
    """The folder `model` of a run."""
    prompt: str = ""
    """What the text begins with; "-" reads it from standard input."""
    tokens: int = 200
    """At most; the text ends where the model ends the document."""
    ignore_eos: bool = False
    """Begin another document there instead: exactly so many tokens."""
    temperature: float = 0.8
    """0 takes the likeliest token each time."""
    top_k: int = 0
    """Draw among so many likeliest tokens; 0 for all."""
    top_p: float = 0.95
    """Draw among the likeliest tokens that make up so much of the probability."""
    seed: int = 0

    def __call__(self) -> None:
        from ..tasks.lm.generate import load_model, written

        model, tokenizer = load_model(self.model)
        prompt = sys.stdin.read() if self.prompt == "-" else self.prompt
        options: dict[str, Any] = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
            "ignore_eos": self.ignore_eos,
        }
        for piece in written(model, tokenizer, prompt, self.tokens, **options):
            print(piece, end="", flush=True)
        print()


@dataclass
class Compare:
    """Train language models that differ in attention alone; leave JSON, a table and pictures."""

    out: Path
    """Folder for all of it. Started again, it keeps what is finished and goes on with the rest."""
    recipe: Annotated[LMRecipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    attentions: str = "leap,cosformer,linear,softmax+rotary"
    """Causal mechanisms of the zoo, separated by commas, perhaps with positions of their own behind
    a plus: softmax is at its best with rotary ones, which the others cannot have."""
    seeds: str = "0"
    """Whole numbers, separated by commas."""
    data: Path = DATA
    """What `leapformer lm prepare` left."""
    also: list[Path] = field(default_factory=list)
    """Further text files to measure the models on."""
    also_natural: list[Path] = field(default_factory=list)
    """The same, but WikiText as published, to be measured as natural text: its tokenisation undone
    (" @-@ ", blanks before commas, ...) and its `<unk>` not scored."""
    rounds: int = 5
    """Rounds of timing."""

    def __call__(self) -> None:
        from ..tasks.lm.compare import compare
        from ..tasks.processes import processes

        names, seeds = attentions(self.attentions), numbers("--seeds", self.seeds)
        texts = {"also": self.also, "also_natural": self.also_natural}
        compare(self.recipe, names, seeds, self.out, self.data, rounds=self.rounds, **texts)
        if processes().is_main_process:
            print("\n" + (self.out / "table.md").read_text())


def with_preset(command: type[Train | Compare], words: list[str], prog: str) -> Callable[[], None]:
    """The command that the words describe: --preset chooses its recipe, other options override the
    recipe's fields by name."""
    (preset,) = peek(words, preset="quick")
    default = command(out=tyro.MISSING, recipe=recipe(preset))
    return tyro.cli(command, args=words, prog=prog, default=default)


def _said(found: dict[str, float]) -> str:
    return (
        f"perplexity {found['perplexity']:.2f} a token, {found['word_perplexity']:.2f} a word, "
        f"{found['bits_per_byte']:.3f} bits a byte ({found['tokens']:,} tokens)"
    )
