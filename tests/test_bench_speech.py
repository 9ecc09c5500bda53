"""What a stream costs: the figures and the picture of `leapformer bench speech`."""

import json

import matplotlib.image
import pytest

from leapformer.cli import main


def test_a_linear_stream_is_flat_and_sessions_share_the_work(tmp_path, capsys):
    out = tmp_path / "new" / "speech.json"
    words = "--minutes 2 --seconds 2 --sessions 1 3 --threads 1"
    assert main(["bench", "speech", "--out", str(out), *words.split()]) == 0
    result = json.loads(out.read_text())
    assert {"versions", "commit", "machine", "recipe"} <= set(result["signature"])
    held = {
        record["attention"]: [one["state_bytes"] for one in record["minutes"]]
        for record in result["one"]
    }
    waiting = 4 * (8 * 4 * 80 + 16 * 96 * 2)  # frames and states that wait for their turn
    assert abs(held["leap"][1] - held["leap"][0]) < waiting
    assert held["softmax"][1] > 1.8 * held["softmax"][0]
    assert [record["sessions"] for record in result["many"]] == [1, 3]
    assert result["many"][1]["words"] >= 3
    assert "3 sessions: real-time factor" in capsys.readouterr().out
    assert matplotlib.image.imread(out.with_suffix(".png"))[..., :3].std() > 0.02


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        ("--out {0}/x.txt", "give the name of a JSON file"),
        ("--out {0}/x.json --minutes 0", "at least 1"),
        ("--out {0}/x.json --cross leep", "did you mean leap"),
        ("--out {0}/x.json --preset digit", "did you mean digits"),
    ],
)
def test_bad_options_are_named(tmp_path, capsys, words, cure):
    assert main(["bench", "speech", *words.format(tmp_path).split()]) == 2
    assert cure in capsys.readouterr().err
