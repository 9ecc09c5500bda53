"""The command line: `leapformer lra prepare | train | compare`, `bench attention`."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

try:
    import tyro
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}; the command line needs it: pip install 'leapformer[lra]'") from None

from .ops.checks import known
from .tasks.lra.recipes import RECIPES, Recipe, recipe

DATA = Path("~/.cache/leapformer/lra")
ALL = "all"


@dataclass
class Prepare:
    """Read a task's data as its user has them, check them, and keep them as datasets."""

    task: str
    """listops, text, retrieval, image or pathfinder."""
    source: Path
    """The folder: aclImdb, cifar-10-batches-py, a release of Long-Range Arena, ..."""
    out: Path | None = None
    """The new folder; by default the task's name where train and compare look for it."""
    partial: bool = False
    """Take a published release also where files of it are missing."""

    def __call__(self) -> None:
        from .tasks.lra.data import prepare

        out = (self.out or DATA / self.task).expanduser()
        about = prepare(self.task, self.source, out, self.partial)
        print(f"{self.task}, {about['layout']}: {out}")
        for name, split in about["splits"].items():
            print(f"  {name}: {split['examples']:,} examples, classes {split['classes']}")


@dataclass
class Train:
    """Train one attention on one Long-Range Arena task and test it."""

    out: Path
    """Folder for the result, the model and the checkpoints. A killed run goes on from there."""
    recipe: Annotated[Recipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    attention: str = "leap"
    """A mechanism of the zoo: leap, cosformer, linear, softmax, ... (docs/zoo.md)."""
    seed: int = 0
    data: Path = DATA
    """Where data lie: prepared ones in a folder named after the task, sampled ones beside it."""

    def __call__(self) -> None:
        from .tasks.lra.train import train
        from .tasks.processes import processes
        from .tasks.runs import RESULT

        run = train(self.recipe, self.attention, self.seed, self.out, self.data)
        if processes().is_main_process:
            print(
                f"{self.attention}: test accuracy {100 * run['accuracy']:.1f} %, most frequent "
                f"class {100 * run['majority']:.1f} %; {self.out / RESULT}"
            )


@dataclass
class Compare:
    """Train several attentions, time them, and leave results as JSON, a table and a picture."""

    out: Path
    """Folder for all of it. Started again, it keeps what is finished and goes on with the rest; the
    tables show the attentions and seeds that are asked for."""
    recipe: Annotated[Recipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    attentions: str = ALL
    """Mechanisms of the zoo, separated by commas, or all."""
    seeds: str = "0"
    """Whole numbers, separated by commas."""
    rounds: int = 5
    """Rounds of timing."""
    data: Path = DATA
    """Where data lie: prepared ones in a folder named after the task, sampled ones beside it."""

    def __call__(self) -> None:
        self.compare([self.recipe])

    def compare(self, recipes: list[Recipe]) -> None:
        """Compare on these recipes' tasks."""
        from .tasks.lra.compare import PICTURE, compare

        attentions = _names(self.attentions)
        try:
            seeds = [int(seed) for seed in self.seeds.split(",")]
        except ValueError:
            raise ValueError(f"--seeds {self.seeds}: give whole numbers, such as 0,1,2") from None
        compare(recipes, attentions, seeds, self.out, self.data, self.rounds)
        print()
        print((self.out / "table.md").read_text())
        print(f"picture: {self.out / PICTURE}")


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


@dataclass
class Profile:
    """From which length does each attention pay? Time and memory of a layer and of a model."""

    out: Path
    """The JSON file; a table and a picture are put beside it."""
    attentions: str = ALL
    """Mechanisms of the zoo, separated by commas, or all."""
    lengths: list[int] = field(default_factory=lambda: [2**i for i in range(6, 15)])
    hidden_size: int = 128
    heads: int = 2
    batch: int = 1
    rounds: int = 5
    threads: int = 1
    gibibytes: float = 8.0
    """Leave out what would hold more memory than this."""

    def __call__(self) -> None:
        from .bench.profile import run

        run(
            self.out,
            _names(self.attentions),
            self.lengths,
            self.hidden_size,
            self.heads,
            self.batch,
            self.rounds,
            self.threads,
            self.gibibytes,
        )
        print(self.out.with_suffix(".md").read_text())
        print(f"{self.out}\npicture: {self.out.with_suffix('.png')}")


def _names(listed: str) -> list[str]:
    """Names of attentions, separated by commas, or all there are."""
    from .zoo import ATTENTIONS

    names = [name.strip() for name in listed.split(",") if name.strip()]
    return list(ATTENTIONS) if names == [ALL] else names


Command = Prepare | Train | Compare | Profile | BenchAttention
COMMANDS: dict[str, type[Command]] = {
    "lra prepare": Prepare,
    "lra train": Train,
    "lra compare": Compare,
    "profile": Profile,
    "bench attention": BenchAttention,
}


def _parse(name: str, words: list[str]) -> Callable[[], None]:
    """The command that the words describe. Where it has a recipe, --task and --preset choose it
    and other options override its fields by name; --task all compares on every task."""
    command, prog = COMMANDS[name], f"leapformer {name}"
    if command not in (Train, Compare):
        return tyro.cli(command, args=words, prog=prog)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task", default="listops")
    first.add_argument("--preset", default="quick")
    chosen, _ = first.parse_known_args(words)

    def parsed(task: str) -> Any:
        default = command(out=tyro.MISSING, recipe=recipe(task, chosen.preset))
        found = tyro.cli(command, args=words, prog=prog, default=default)
        return replace(found, recipe=replace(found.recipe, task=task))

    if command is Compare and chosen.task == ALL:
        whole = [parsed(task) for task in RECIPES]
        return partial(whole[0].compare, [each.recipe for each in whole])
    return parsed(chosen.task)


def main(words: list[str] | None = None) -> int:
    """Run a command line; errors of its user are one line on stderr and exit code 2."""
    words = sys.argv[1:] if words is None else words
    debug = words[:1] == ["--debug"]
    words = words[debug:]
    size = 1 if words[:1] and words[0] in COMMANDS else 2
    name, rest = " ".join(words[:size]), words[size:]
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
