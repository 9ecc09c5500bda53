"""The command line; `leapformer --help` lists its commands, a file here a group of them."""

import sys
from collections.abc import Callable
from importlib.metadata import version

try:
    import tyro
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}; the command line needs it: pip install 'leapformer[lra]'") from None

from ..ops.checks import known
from . import bench, build, lm, lra, probe, speech

COMMANDS: dict[str, type] = {
    "lra prepare": lra.Prepare,
    "lra train": lra.Train,
    "lra compare": lra.Compare,
    "lm prepare": lm.Prepare,
    "lm train": lm.Train,
    "lm evaluate": lm.Evaluate,
    "lm generate": lm.Generate,
    "lm compare": lm.Compare,
    "lm probe": probe.Probe,
    "speech prepare": speech.Prepare,
    "speech train": speech.Train,
    "speech evaluate": speech.Evaluate,
    "speech translate": speech.Translate,
    "build": build.Build,
    "profile": bench.Profile,
    "bench attention": bench.BenchAttention,
    "bench language": bench.BenchLanguage,
    "bench speech": bench.BenchSpeech,
}
PARSERS: dict[type, Callable[[type, list[str], str], Callable[[], None]]] = {
    lra.Train: lra.with_task,
    lra.Compare: lra.with_task,
    lm.Train: lm.with_preset,
    lm.Compare: lm.with_preset,
    probe.Probe: probe.with_task,
    speech.Train: speech.with_preset,
}
"""Of the commands that have a recipe; the rest are what tyro makes of them."""
GROUPS = {"-h", "--help", *(name.split()[0] for name in COMMANDS if " " in name)}


def _parse(name: str, words: list[str]) -> Callable[[], None]:
    """The command that the words describe, ready to run."""
    command, prog = COMMANDS[name], f"leapformer {name}"
    if command in PARSERS:
        return PARSERS[command](command, words, prog)
    ready: Callable[[], None] = tyro.cli(command, args=words, prog=prog)
    return ready


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
    if name not in COMMANDS and all(word in GROUPS for word in words):
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
