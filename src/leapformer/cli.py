"""The command line: `leapformer lra train`, `lra compare`, `bench attention`."""

import argparse
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

try:
    import tyro
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}; the command line needs it: pip install 'leapformer[lra]'") from None

from .ops.checks import known
from .tasks.lra.recipes import Recipe, recipe

CACHE = Path("~/.cache/leapformer")


@dataclass
class Train:
    """Train one attention on one Long-Range Arena task and test it."""

    out: Path
    """Folder for the result, the model and the checkpoints. A killed run goes on from there."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    attention: str = "leap"
    """A mechanism of the zoo."""
    seed: int = 0
    cache: Path = CACHE
    """Where data sets are kept, once made."""
    source: Path | None = None
    """Read the task's released files from this folder instead of sampling."""

    def __call__(self) -> None:
        from .tasks.lra.train import RESULT, train

        run = train(self.recipe, self.attention, self.seed, self.out, self.cache, self.source)
        print(
            f"{self.attention}: test accuracy {100 * run['accuracy']:.1f} %, most frequent class "
            f"{100 * run['majority']:.1f} %; {self.out / RESULT}"
        )


@dataclass
class Compare:
    """Train several attentions, time them, and leave results.json, a table and a picture."""

    out: Path
    """Folder for all of it. Started again, it keeps what is finished and goes on with the rest."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    attentions: str = "leap,cosformer,linear,softmax"
    """Mechanisms of the zoo, separated by commas."""
    seeds: str = "0"
    """Whole numbers, separated by commas."""
    rounds: int = 5
    """Rounds of timing."""
    cache: Path = CACHE
    """Where data sets are kept, once made."""
    source: Path | None = None
    """Read the task's released files from this folder instead of sampling."""

    def __call__(self) -> None:
        from .tasks.lra.compare import compare

        attentions = [name.strip() for name in self.attentions.split(",") if name.strip()]
        try:
            seeds = [int(seed) for seed in self.seeds.split(",")]
        except ValueError:
            raise ValueError(f"--seeds {self.seeds}: give whole numbers, such as 0,1,2") from None
        compare(self.recipe, attentions, seeds, self.out, self.cache, self.source, self.rounds)
        print()
        print((self.out / "table.md").read_text())
        print(f"picture: {self.out / 'quality_throughput.png'}")


@dataclass
class BenchAttention:
    """Time the op against torch's SDPA and the quadratic form."""

    out: Path
    """The JSON file; the picture is put beside it."""
    lengths: list[int] = field(default_factory=lambda: [2**i for i in range(7, 13)])
    threads: int = 1
    rounds: int = 7
    backend: str = "auto"

    def __call__(self) -> None:
        from .bench.attention import run

        result = run(self.out, self.lengths, self.threads, self.rounds, self.backend)
        for record in result["lengths"]:
            if record["contender"] == "leap":
                print(
                    f"{record['case']}, N={record['length']}, {record['pass']}: "
                    f"{record['times_sdpa']['median']:.2f} times as fast as SDPA"
                )
        for record in result["decode"]:
            if record["contender"] == "leap":
                print(
                    f"decoding after {record['context']}: "
                    f"{1e6 * record['seconds']['median']:.0f} us, "
                    f"{record['times_sdpa']['median']:.1f} times as fast as SDPA"
                )
        print(f"{self.out}\npicture: {self.out.with_suffix('.png')}")


Command = Train | Compare | BenchAttention
COMMANDS: dict[str, type[Command]] = {
    "lra train": Train,
    "lra compare": Compare,
    "bench attention": BenchAttention,
}


def _parse(name: str, words: list[str]) -> Command:
    """The command that the words describe. Where it has a recipe, --task and --preset choose it
    and other options override its fields by name."""
    command, prog = COMMANDS[name], f"leapformer {name}"
    if command is BenchAttention:
        return tyro.cli(command, args=words, prog=prog)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task", default="listops")
    first.add_argument("--preset", default="quick")
    chosen, _ = first.parse_known_args(words)
    default = command(out=tyro.MISSING, recipe=recipe(chosen.task, chosen.preset))  # type: ignore[call-arg]
    return tyro.cli(command, args=words, prog=prog, default=default)


def main(words: list[str] | None = None) -> int:
    """Run a command line; errors of its user are one line on stderr and exit code 2."""
    words = sys.argv[1:] if words is None else words
    debug = words[:1] == ["--debug"]
    words = words[debug:]
    name, rest = " ".join(words[:2]), words[2:]
    if words == ["--version"]:
        print(f"leapformer {version('leapformer')}")
        return 0
    if name not in COMMANDS and all(word in ("lra", "bench", "-h", "--help") for word in words):
        lines = "\n".join(f"  leapformer {n:<16} {c.__doc__}" for n, c in COMMANDS.items())
        print(f"commands (each with --help):\n{lines}\n--debug before a command shows tracebacks")
        return 0
    try:
        _parse(known("command", name, COMMANDS), rest)()
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        if debug:
            raise
        print(f"leapformer: {error}", file=sys.stderr)
        return 2
    return 0
