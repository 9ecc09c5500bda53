"""What a language model holds: the figures and the picture of `leapformer bench language`."""

import json
from itertools import pairwise

import matplotlib.image
import pytest

from leapformer.bench import language
from leapformer.cli import main


@pytest.fixture
def made(tmp_path, monkeypatch, capsys):
    """The file of a small bench, run by its command, and what that said."""
    monkeypatch.setattr(language, "BLOCK", 10)
    monkeypatch.setitem(language.SHAPE, "hidden_size", 32)
    monkeypatch.setitem(language.SHAPE, "num_hidden_layers", 2)
    out = tmp_path / "new" / "language.json"
    words = "--lengths 64 128 256 512 --tokens 50 --growing 30 --rounds 1"
    assert main(["bench", "language", "--out", str(out), *words.split()]) == 0
    return out, capsys.readouterr().out


def test_generation_is_flat_and_training_linear(made):
    out, said = made
    result = json.loads(out.read_text())
    assert {"versions", "commit", "machine", "recipe"} <= set(result["signature"])
    blocks = {r["attention"]: r["blocks"] for r in result["generation"]}
    assert [block["tokens"] for block in blocks["leap"]] == [10, 20, 30, 40, 50]
    assert [block["tokens"] for block in blocks["softmax"]] == [10, 20, 30]
    held = {name: [block["cache_bytes"] for block in each] for name, each in blocks.items()}
    assert len(set(held["leap"])) == 1
    assert held["softmax"][2] == 3 * held["softmax"][0]
    for name in ("leap", "softmax"):
        peaks = [r["peak_bytes"] for r in result["training"] if r["attention"] == name]
        assert len(peaks) == 4
        steps = [b - a for a, b in pairwise(peaks)]
        assert 1.8 < steps[2] / steps[1] < 2.2  # as much again for twice as many tokens more
    assert "leap: " in said
    picture = matplotlib.image.imread(out.with_suffix(".png"))
    assert picture[..., :3].std() > 0.02


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        ("--out {0}/x.txt", "give the name of a JSON file"),
        ("--out {0}/x.json --tokens 3", "tokens at least 1,000"),
        ("--out {0}/x.json --rounds 0", "must be at least 1"),
        ("--out {0}/x.json --attentions leep", "did you mean leap"),
    ],
)
def test_bad_options_are_named(tmp_path, capsys, words, cure):
    assert main(["bench", "language", *words.format(tmp_path).split()]) == 2
    assert cure in capsys.readouterr().err
