"""Every command and every example of the README runs, cut short where it trains or times."""

import json
import re
import shlex
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from leapformer.cli import main
from leapformer.tasks.lm import prepare as lm
from leapformer.tasks.lm.recipes import recipe
from leapformer.tasks.lm.train import train
from leapformer.tasks.lra.data import prepare

README = Path(__file__).parent.parent / "README.md"
SHORT = (
    "--steps 2 --evaluate-every 2 --train-examples 16 --validation-examples 4 "
    "--test-examples 4 --batch-size 4 --timing-batch 1 --data data"
)
SHORT_LM = (
    "--steps 2 --evaluate-every 2 --sequence-length 16 --context 8 --hidden-size 16 "
    "--num-hidden-layers 1 --test-tokens 50 --validation-rows 2"
)
SHORT_SPEECH = (
    "--steps 2 --evaluate-every 2 --batch-size 4 --hidden-size 16 --encoder-layers 1 "
    "--decoder-layers 1 --waits 2 --test-utterances 2"
)
UTTERANCES = "--train-utterances 8 --validation-utterances 2 --test-utterances 2"
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.M | re.S)


COMMANDS = [
    line.split("  #")[0].strip()
    for block in blocks("bash")
    for line in block.splitlines()
    if line.strip()
]

# how to run each kind of command so that it takes seconds and writes nothing into the repository
CUT_SHORT = {
    "make demo": lambda words: [
        *(*words, "-C", str(README.parent), "-o", ".venv/ready", f"BIN={BIN}", "OUT={out}"),
        f"ARGS={SHORT.replace('data data', 'data {out}/data')} --rounds 1",
    ],
    "make test": lambda words: [*words, "-C", str(README.parent), "-n", "-o", ".venv/ready"],
    "pip install": lambda words: [
        *(sys.executable, "-m", *words[:2], "--dry-run", "--no-deps", "--no-build-isolation"),
        *(word.replace(".[", f"{README.parent}[") for word in words[2:]),
    ],
    "leapformer lra train": lambda words: [str(BIN / words[0]), *words[1:], *SHORT.split()],
    "leapformer lra prepare": lambda words: [
        *(str(BIN / words[0]), *words[1:], "--out", "data/prepared")
    ],
    "leapformer lra compare": lambda words: [
        *(str(BIN / words[0]), *words[1:], *SHORT.split(), "--rounds", "1"),
        *("--attentions", "leap,softmax", "--seeds", "0"),
    ],
    "leapformer lm prepare": lambda words: [str(BIN / words[0]), *words[1:], "--vocab-size", "300"],
    "leapformer lm train": lambda words: [str(BIN / words[0]), *words[1:], *SHORT_LM.split()],
    "leapformer lm compare": lambda words: [
        *(str(BIN / words[0]), *words[1:], *SHORT_LM.split(), "--rounds", "1")
    ],
    "leapformer lm generate": lambda words: [str(BIN / words[0]), *words[1:], "--tokens", "20"],
    "leapformer speech prepare": lambda words: [
        *(str(BIN / words[0]), *words[1:], *UTTERANCES.split())
    ],
    "leapformer speech train": lambda words: [
        str(BIN / words[0]),
        *words[1:],
        *SHORT_SPEECH.split(),
    ],
    "leapformer speech evaluate": lambda words: [str(BIN / words[0]), *words[1:], "--waits", "1"],
    "leapformer speech translate": lambda words: [str(BIN / words[0]), *words[1:]],
    "leapformer bench speech": lambda words: [
        *(str(BIN / words[0]), *words[1:], "--minutes", "1", "--seconds", "1"),
        *("--sessions", "1", "2", "--cross", "leap"),
    ],
    "leapformer bench language": lambda words: [
        *(str(BIN / words[0]), *words[1:], "--lengths", "64", "--rounds", "1"),
        *("--tokens", "1000", "--growing", "1000"),
    ],
    "leapformer profile": lambda words: [
        *(str(BIN / words[0]), *words[1:], "--lengths", "16", "32", "--rounds", "1")
    ],
    "torchrun": lambda words: [str(BIN / words[0]), *words[1:], *SHORT.split()],
    "leapformer bench attention": lambda words: [
        *(str(BIN / words[0]), *words[1:], "--lengths", "128", "--rounds", "1")
    ],
}


def fill(folder: Path) -> None:
    """Put there what the commands read: reviews as JSON lines, and small data of three tasks."""
    (folder / "aclImdb").mkdir()
    for name, columns in (("text", ["text"]), ("retrieval", ["text1", "text2"])):
        place = folder / "sources" / name if name != "text" else folder / "aclImdb"
        place.mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            rows = [dict.fromkeys(columns, f"{i} words") | {"label": i % 2} for i in range(24)]
            (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        prepare(name, place, folder / "data" / name)
    for split in ("train", "test"):
        for label in range(10):
            place = folder / "sources" / "image" / split / str(label)
            place.mkdir(parents=True)
            for i in range(3):
                Image.new("L", (32, 32), 20 * label + i).save(place / f"{i}.png")
    prepare("image", folder / "sources" / "image", folder / "data" / "image")


def fill_novels(folder: Path, command: str) -> None:
    """Put there what the commands of the language model read: novels, tokens, a trained model."""
    (folder / "novels").mkdir()
    for i in range(12):
        (folder / "novels" / f"{i}.txt").write_text(f"It was a dark night, the {i}th. " * 20)
    if "prepare" not in command:
        lm.prepare(folder / "novels", folder / "data" / "novels", vocab_size=300)
    if "generate" in command:
        options = dict(word.split() for word in SHORT_LM[2:].split(" --"))
        sizes = {name.replace("-", "_"): int(value) for name, value in options.items()}
        out = folder / "results" / "leap_lm"
        train(replace(recipe("quick"), **sizes), "leap", 0, out, folder / "data" / "novels")


def fill_speech(folder: Path, command: str) -> None:
    """Put there what the commands of speech translation read: a tone for each digit, a corpus, a
    trained model."""
    (folder / "recordings").mkdir()
    for digit in range(10):
        tone = 0.3 * np.sin(np.arange(1600) * (0.2 + 0.1 * digit))
        for index in (0, 5, 45):
            soundfile.write(folder / "recordings" / f"{digit}_her_{index}.wav", tone, 8000)
    soundfile.write(folder / "number.wav", np.tile(tone, 4), 8000)
    prepared = f"speech prepare --corpus digits --pair en-de --source recordings {UTTERANCES}"
    trained = f"speech train --data data/digits --out results/digits {SHORT_SPEECH}"
    with chdir(folder):
        if "prepare" not in command:
            main([*prepared.split(), "--out", "data/digits"])
        if "evaluate" in command or "translate" in command:
            main(trained.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path):
    if command.startswith("leapformer lm"):
        fill_novels(tmp_path, command)
    elif command.startswith("leapformer speech"):
        fill_speech(tmp_path, command)
    else:
        fill(tmp_path)
    kind = next(start for start in CUT_SHORT if command.startswith(start))
    words = CUT_SHORT[kind](shlex.split(command))
    words = [word.replace("{out}", str(tmp_path / "demo")) for word in words]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    if command.startswith(("make demo", "leapformer lra compare")):
        assert "| leap |" in done.stdout
        picture = re.search(r"picture: (\S+)", done.stdout)
        assert picture is not None
        assert (tmp_path / picture[1]).stat().st_size > 10_000
    if command.startswith("leapformer lm compare"):
        assert "| leap |" in done.stdout
    if command.startswith("leapformer speech evaluate"):
        assert "| leap + learned progress | 1 |" in done.stdout
        assert (tmp_path / "results" / "curve" / "curve.png").stat().st_size > 10_000
    if command.startswith("leapformer lm generate"):
        assert "It was a dark" in done.stdout


def test_every_kind_of_command_is_there():
    for kind in CUT_SHORT:
        assert any(command.startswith(kind) for command in COMMANDS), kind


def test_examples_run_one_after_the_other():
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert list(names["logits"].shape) == [2, 10]


def test_links_and_pictures_are_there():
    assert "@" not in README.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
