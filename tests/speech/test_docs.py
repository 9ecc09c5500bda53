"""What docs/speech.md has one type is what the commands take."""

import re
from pathlib import Path

import pytest

from leapformer.cli import main

DOCS = (Path(__file__).parents[2] / "docs" / "speech.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```bash\n(.*?)^```", DOCS, re.M | re.S)).replace("\\\n", " ")
LINES = re.findall(
    r"leapformer speech (\w+)(.*)", BLOCKS.replace("$train", "leapformer speech train")
)


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate", "translate"])
def test_the_options_are_those_of_the_command(command, capsys):
    with pytest.raises(SystemExit):
        main(["speech", command, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    used = {option for name, words in LINES if name == command for option in words.split()}
    used = {option for option in used if option.startswith("--")}
    assert used
    assert used <= known
